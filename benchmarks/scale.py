"""Batch jobs: millions of rows, resuming, and scaling, with a backend that answers at once or after a fixed time.

    python -m benchmarks.scale throughput --rows 5000000
    python -m benchmarks.scale resume --parts 10000
    python -m benchmarks.scale workers

``throughput`` compares with the same work by hand in Ray Data: read Parquet, map (format the prompt of each row, parse
its answer), write Parquet. ``resume`` plans a job whose parts are all there. ``workers`` runs jobs with 1, 2, 4 and
8 workers against a backend that takes its time, so that waiting is what is shared out.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import skllm_ray
from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.tasks.base import ChatRequest, Reply, Usage
from skllm_ray.testing import FakeBackend, FakeSpec

LABELS = ["negative", "neutral", "positive"]
ANSWER = '{"label": "positive"}'
REPLY = Reply(ANSWER, usage=Usage(100, 5), model="instant")
SLOW_S = 0.5
_UNITS_EACH = 80


class InstantBackend(FakeBackend):
    """A backend that answers at once, and always the same."""

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return as many replies as requests."""
        return [REPLY] * len(requests)


class InstantSpec(FakeSpec):
    """Tells workers to open an `InstantBackend`."""

    def open(self, resolve_secret: Any) -> InstantBackend:  # noqa: ARG002  the protocol's signature
        """Open it."""
        return InstantBackend(self.answer)


class Instant(ZeroShotGPTClassifier):
    """A zero-shot classifier whose backend answers at once."""

    def _resolve(self) -> Any:
        return InstantSpec(lambda _: ANSWER, key="instant")


class Slow(ZeroShotGPTClassifier):
    """A zero-shot classifier whose backend takes half a second for what it is asked together."""

    def _resolve(self) -> Any:
        return FakeSpec(lambda _: ANSWER, latency_s=SLOW_S, key="slow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "resume", "workers", "all"])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    todo = {"throughput": throughput, "resume": resume, "workers": workers}
    folder = Path(tempfile.mkdtemp(prefix="skllm-ray-scale-"))
    found: dict[str, Any] = {}
    try:
        for name, measure in todo.items():
            if given.what in {name, "all"}:
                found |= measure(given, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()))  # noqa: T201
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n")


# --- millions of rows ------------------------------------------------------------------------------------------------


def throughput(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time a fifth of the rows and all of them, by turns; watch this process's memory."""
    skllm_ray.init()
    clf = Instant().fit(None, LABELS)
    found: dict[str, Any] = {}
    _write_input(folder / "warm", 20_000)
    _by_hand(clf, folder / "warm", folder / "warm-hand")
    _ours(clf, folder / "warm", folder / "warm-ours")
    for n_rows in (given.rows // 5, given.rows):
        source = folder / f"in-{n_rows}"
        _write_input(source, n_rows)
        rates: dict[str, list[float]] = {"by hand": [], "skllm-ray": []}
        most = dict.fromkeys(rates, 0.0)
        for number in range(given.rounds):
            for name in sorted(rates, reverse=number % 2 == 1):  # by turns, so that a busy machine hits both alike
                target = folder / f"out-{n_rows}-{number}-{name.replace(' ', '-')}"
                with _Memory() as memory:
                    start = time.perf_counter()
                    (_by_hand if name == "by hand" else _ours)(clf, source, target)
                    rates[name].append(n_rows / (time.perf_counter() - start))
                most[name] = max(most[name], memory.most)
                rows = sum(pq.read_metadata(part).num_rows for part in target.rglob("*.parquet"))
                if rows != n_rows:
                    raise RuntimeError(f"{name}: {rows} of {n_rows} rows were written")
                shutil.rmtree(target)
        for name, found_rates in rates.items():
            found[f"{n_rows:,} rows, {name}, rows/s"] = " ".join(f"{rate:,.0f}" for rate in found_rates)
            found[f"{n_rows:,} rows, {name}, driver MB at most"] = round(most[name])
        shares = [ours / hand for ours, hand in zip(rates["skllm-ray"], rates["by hand"], strict=True)]
        found[f"{n_rows:,} rows, share of by hand, each round"] = " ".join(f"{share:.2f}" for share in shares)
        found[f"{n_rows:,} rows, share of by hand, median"] = round(statistics.median(shares), 2)
        shutil.rmtree(source)
    skllm_ray.shutdown()
    return found


def _write_input(folder: Path, n_rows: int, rows_per_file: int = 500_000) -> None:
    folder.mkdir()
    for number, start in enumerate(range(0, n_rows, rows_per_file)):
        ids = np.arange(start, min(n_rows, start + rows_per_file))
        texts = [f"Review number {i}: it works as it should." for i in ids]
        table = pa.table({"id": ids, "text": texts})
        pq.write_table(table, folder / f"{number:04d}.parquet", row_group_size=50_000)


def _by_hand(clf: ZeroShotGPTClassifier, source: Path, target: Path) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    system, _, template = (clf.render_prompt(["{x}"])[0] or "").removeprefix("[system]\n").partition("\n\n[user]\n")
    head, _, tail = template.partition("{x}")
    known = set(LABELS)

    def ask(messages: list[dict[str, str]]) -> str:  # the backend that answers at once
        return ANSWER if messages else ""

    def answer(batch: dict[str, Any]) -> dict[str, Any]:
        said = {"role": "system", "content": system}
        prompts = [[said, {"role": "user", "content": f"{head}{text}{tail}"}] for text in batch["text"]]
        labels = [json.loads(ask(prompt)).get("label") for prompt in prompts]
        return {**batch, "prediction": np.array([label if label in known else None for label in labels])}

    ray.data.read_parquet(str(source)).map_batches(answer, batch_size=1024).write_parquet(str(target))


def _ours(clf: ZeroShotGPTClassifier, source: Path, target: Path) -> None:
    result = batch.run(clf, str(source), str(target))
    if not result.complete:
        raise RuntimeError(f"not complete: {result}")


class _Memory:
    """The most memory that this process held, in MB."""

    def __enter__(self) -> _Memory:
        self._ended = threading.Event()
        self._process = psutil.Process()
        self.most = self._process.memory_info().rss / 1e6
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.most = max(self.most, self._process.memory_info().rss / 1e6)


# --- resuming --------------------------------------------------------------------------------------------------------


def resume(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time how long a job with thousands of finished parts takes to find that nothing is left."""
    skllm_ray.init(local_mode=True)
    clf = Instant().fit(None, LABELS)
    source, target = folder / "resume-in", folder / "resume-out"
    _write_input(source, given.parts * 20)
    options = {"unit_rows": 20}
    batch.run(clf, str(source), str(target), **options)
    parts = len(list(target.glob("part-*.parquet")))
    start = time.perf_counter()
    result = batch.run(clf, str(source), str(target), **options)
    seconds = time.perf_counter() - start
    skllm_ray.shutdown()
    if result.this_run.rows or parts < given.parts:
        raise RuntimeError(f"{parts} parts, {result.this_run.rows} rows asked again")
    return {"finished parts": parts, "planning to resume, s": round(seconds, 2)}


# --- workers ---------------------------------------------------------------------------------------------------------


def workers(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time jobs whose blocks each take half a second of waiting, with 1, 2, 4 and 8 workers.

    Each worker gets the same number of blocks, so that starting a job, which is not shared out, costs all jobs alike.
    """
    del given
    skllm_ray.init(num_cpus=8)
    clf = Slow().fit(None, LABELS)
    source = folder / "workers-in"
    _write_input(source, 8 * _UNITS_EACH * 1024)
    options: dict[str, Any] = {"unit_rows": 1024}
    batch.run(clf, str(source), str(folder / "workers-warm"), workers=8, limit=16 * 1024, **options)
    found: dict[str, Any] = {}
    alone = 0.0
    for n_workers in (1, 2, 4, 8):
        n_rows = n_workers * _UNITS_EACH * 1024
        target = folder / f"workers-{n_workers}"
        start = time.perf_counter()
        result = batch.run(clf, str(source), str(target), workers=n_workers, limit=n_rows, **options)
        seconds = time.perf_counter() - start
        if result.rows_done != n_rows:
            raise RuntimeError(f"{result.rows_done} of {n_rows} rows were done")
        rate = n_rows / seconds
        alone = alone or rate
        found[f"{n_workers} workers, rows/s"] = round(rate)
        found[f"{n_workers} workers, efficiency"] = round(rate / alone / n_workers, 3)
        found[f"{n_workers} workers, share of waiting"] = round(_UNITS_EACH * SLOW_S / seconds, 3)
    skllm_ray.shutdown()
    return found


if __name__ == "__main__":
    main()
