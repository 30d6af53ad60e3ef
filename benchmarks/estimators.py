"""Estimators: what a call of one row costs, a million rows through a Dataset, and what the order of examples saves.

    python -m benchmarks.estimators latency
    python -m benchmarks.estimators dataset --rows 1000000
    python -m benchmarks.estimators examples --rows 64
    python -m benchmarks.estimators prompts

``latency`` and ``dataset`` use a backend that answers at once, so that what is left is this library's own time;
``dataset`` compares with a Ray Data map that formats the same prompts and parses the same answers by hand. ``examples``
runs dynamic few-shot on ``gguf::demo`` with the examples in the canonical order and with the nearest first; ``prompts``
zero-shot with the text last and first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import skllm_ray
from skllm_ray.classification import DynamicFewShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.testing import FakeSpec

LABELS = ["negative", "neutral", "positive"]
ANSWER = '{"label": "positive"}'
SPEC = FakeSpec(lambda _: ANSWER, key="instant")


class Instant(ZeroShotGPTClassifier):
    """A zero-shot classifier whose backend answers at once."""

    def _resolve(self) -> Any:
        return SPEC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["latency", "dataset", "examples", "prompts"])
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {"latency": latency, "dataset": dataset, "examples": examples, "prompts": prompts}[given.what](given)
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()))  # noqa: T201
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


# --- one row ---------------------------------------------------------------------------------------------------------


def latency(given: argparse.Namespace) -> dict[str, Any]:
    """Time ``predict`` of one row, warm: in local mode, in this process without Ray, and with Ray."""
    clf = Instant().fit(None, LABELS)
    found = {"one row in this process, ms": _median_ms(clf, given.calls)}
    skllm_ray.init(local_mode=True)
    found["one row in local mode, ms"] = _median_ms(clf, given.calls)
    skllm_ray.shutdown()
    skllm_ray.init()
    found["one row with Ray, ms"] = _median_ms(clf, given.calls)
    local = ZeroShotGPTClassifier(model="gguf::demo").fit(None, LABELS)
    whole = _median_ms(local, given.calls)
    skllm_ray.shutdown()
    skllm_ray.init(local_mode=True)
    here = _median_ms(local, given.calls)
    skllm_ray.shutdown()
    return {**found, "gguf::demo with Ray, ms": whole, "gguf::demo in local mode, ms": here}


def _median_ms(clf: ZeroShotGPTClassifier, n_calls: int) -> float:
    texts = ["I love it, works like a charm."]
    for _ in range(20):
        clf.predict(texts)
    times = []
    for _ in range(n_calls):
        start = time.perf_counter()
        clf.predict(texts)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1000, 2)


# --- a million rows --------------------------------------------------------------------------------------------------


def dataset(given: argparse.Namespace) -> dict[str, Any]:
    """Push rows through ``predict_dataset`` and through a map by hand, by turns; watch memory and processor time."""
    n_rows = given.rows or 1_000_000
    skllm_ray.init()
    clf = Instant().fit(None, LABELS)
    pipelines = {"by hand": _by_hand(clf), "predict_dataset": clf.predict_dataset}
    for pipeline in pipelines.values():
        _consume(pipeline(_texts(max(1000, n_rows // 50))), max(1000, n_rows // 50))  # warm
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    cpu: dict[str, list[float]] = {name: [] for name in pipelines}
    found: dict[str, Any] = {"rows": n_rows}
    for number in range(given.rounds):
        for name in sorted(pipelines, reverse=number % 2 == 1):  # so that a busy machine hits both alike
            with _Processors() as processors:
                rate, memory = _consume(pipelines[name](_texts(n_rows)), n_rows)
            rates[name].append(rate)
            cpu[name].append(processors.seconds / n_rows * 1e6)
            found[f"{name}, driver MB after a tenth, at most"] = [round(memory[len(memory) // 10]), round(max(memory))]
    for name in pipelines:
        found[f"{name}, rows/s"] = " ".join(f"{rate:,.0f}" for rate in rates[name])
        found[f"{name}, processor time, µs per row"] = " ".join(f"{spent:.1f}" for spent in cpu[name])
    shares = [ours / hand for ours, hand in zip(rates["predict_dataset"], rates["by hand"], strict=True)]
    found["share of by hand, each round"] = " ".join(f"{share:.2f}" for share in shares)
    found["share of by hand, median"] = round(statistics.median(shares), 2)
    skllm_ray.shutdown()
    return found


class _Processors:
    """The time on processors of this process and all that it started, in seconds; Ray's workers come and go."""

    def __enter__(self) -> _Processors:
        self._ended = threading.Event()
        self._before = self._now()
        self._last = dict(self._before)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._last |= self._now()
        self.seconds = sum(self._last.values()) - sum(self._before.values())

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            self._last |= self._now()

    def _now(self) -> dict[int, float]:
        found, here = {}, psutil.Process()
        for process in [here, *here.children(recursive=True)]:
            with suppress(psutil.Error):
                spent = process.cpu_times()
                found[process.pid] = spent.user + spent.system
        return found


def _texts(n_rows: int) -> Any:
    import ray.data

    def write(batch: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": batch["id"],
            "text": np.array([f"Review number {i}: it works as it should." for i in batch["id"]]),
        }

    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray.data.range(n_rows, override_num_blocks=max(8, n_rows // 10_000)).map_batches(write)


def _by_hand(clf: ZeroShotGPTClassifier) -> Callable[[Any], Any]:
    """Return the same pipeline without this library: a prompt is formatted and an answer parsed for each row."""
    template = clf.render_prompt(["{x}"])[0] or ""
    head, _, tail = template.partition("{x}")

    def answer(batch: dict[str, Any]) -> dict[str, Any]:
        prompts = [[{"role": "user", "content": head + text + tail}] for text in batch["text"]]
        return {**batch, "prediction": np.array([json.loads(ANSWER)["label"] for _ in prompts])}

    return lambda ds: ds.map_batches(answer, batch_size=256, num_cpus=0, concurrency=8)


def _consume(ds: Any, n_rows: int) -> tuple[float, list[float]]:
    process, memory, seen = psutil.Process(), [], 0
    start = time.perf_counter()
    for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
        seen += batch.num_rows
        memory.append(process.memory_info().rss / 1e6)
    if seen != n_rows:
        raise RuntimeError(f"{seen} of {n_rows} rows came back")
    return n_rows / (time.perf_counter() - start), memory


# --- the order of examples -------------------------------------------------------------------------------------------


def examples(given: argparse.Namespace) -> dict[str, Any]:
    """Compare the share of prompt tokens that are reused, and the time, in both orders."""
    from dataclasses import replace

    from skllm_ray.datasets import get_classification_dataset
    from skllm_ray.execution.open_backends import open_here
    from skllm_ray.llm.open_models import ModelCache

    n_rows = given.rows or 256
    X, y = get_classification_dataset()
    skllm_ray.init(local_mode=True)
    clf = DynamicFewShotGPTClassifier(model="gguf::demo", n_examples=2).fit(X, y)
    texts = [text for text, _ in zip(_endless(list(X)), range(n_rows), strict=False)]
    ordered = clf.memory_
    found: dict[str, Any] = {"rows": n_rows, "examples": len(X)}
    for name, memory in (
        ("nearest first", replace(ordered, order=np.zeros(0, np.int64))),
        ("canonical order", ordered),
    ):
        clf.memory_ = memory
        times, shares = [], []
        for _ in range(3):
            ModelCache.clear()
            clf.predict(["warm"])
            engine = open_here(clf._spec(), {})._engine  # type: ignore[attr-defined]
            before, start = engine.n_reused, time.perf_counter()
            details = clf.predict_details(texts)
            times.append(time.perf_counter() - start)
            shares.append((engine.n_reused - before) / details["prompt_tokens"].sum())
        found[f"{name}, rows/s"] = round(n_rows / statistics.median(times), 1)
        found[f"{name}, share of prompt tokens reused"] = round(statistics.median(shares), 3)
    found["speed-up"] = round(found["canonical order, rows/s"] / found["nearest first, rows/s"], 2)
    skllm_ray.shutdown()
    return found


def prompts(given: argparse.Namespace) -> dict[str, Any]:
    """Compare the library's template, whose text comes last, with the same one whose text comes first."""
    from skllm_ray.datasets import get_classification_dataset
    from skllm_ray.execution.open_backends import open_here
    from skllm_ray.llm.open_models import ModelCache
    from skllm_ray.prompts.templates import ZERO_SHOT_CLF_PROMPT_TEMPLATE as LAST

    n_rows = given.rows or 256
    X, y = get_classification_dataset()
    texts = [text for text, _ in zip(_endless(list(X)), range(n_rows), strict=False)]
    truth = [label for label, _ in zip(list(y) * n_rows, range(n_rows), strict=False)]
    body, _, text = LAST.partition("Text:\n")
    skllm_ray.init(local_mode=True)
    found: dict[str, Any] = {"rows": n_rows}
    for name, template in (("text last", LAST), ("text first", f"Text:\n{text}\n\n{body}")):
        clf = ZeroShotGPTClassifier(model="gguf::demo", prompt_template=template).fit(X, y)
        times, shares = [], []
        for _ in range(3):
            ModelCache.clear()
            clf.predict(["warm"])
            engine = open_here(clf._spec(), {})._engine  # type: ignore[attr-defined]
            before, start = engine.n_reused, time.perf_counter()
            details = clf.predict_details(texts)
            times.append(time.perf_counter() - start)
            shares.append((engine.n_reused - before) / details["prompt_tokens"].sum())
        found[f"{name}, rows/s"] = round(n_rows / statistics.median(times), 1)
        found[f"{name}, share of prompt tokens reused"] = round(statistics.median(shares), 3)
        found[f"{name}, accuracy"] = round(float(np.mean(details["prediction"].to_numpy() == truth)), 3)
    found["speed-up"] = round(found["text last, rows/s"] / found["text first, rows/s"], 2)
    skllm_ray.shutdown()
    return found


def _endless(texts: list[str]) -> Iterator[str]:
    number = 0
    while True:
        yield from (f"{text} ({number})" for text in texts)
        number += 1


if __name__ == "__main__":
    main()
