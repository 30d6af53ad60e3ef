"""Rows that a server refuses, and faults that pass: a batch job on Ray, its rows checked, its memory watched.

    python -m benchmarks.faults --rows 200000

Of the rows, 2% hold texts that the server refuses for ever, each with a reason of its own, and 5% meet a fault that
passes at their first try: a 500, a 503, a 429 or a connection that is closed. Every good row must have its own answer,
and every bad one its own reason. The resident memory of the driver and of the workers is taken every few seconds; the
first fifth of the run, in which buffers fill, is left out of what they grew by; the series is told, too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import skllm_ray
from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.testing import ChatServer, StatusFault, WireFault, prompt_of

EVERY_S = 3.0
SHOWN = 20
REFUSAL = 700_000_000  # no part of a text, of which messages hide what they quote
WORKER = "ray::_run_units"
PASSING = (
    *(StatusFault(500), StatusFault(503), WireFault.DROP) * 33,
    StatusFault(429, headers=(("retry-after-ms", "50"),)),
)


def text_of(row: int) -> str:
    return f"thing <{row}> is {'fine' if row % 3 else 'awful'}"


def is_refused(row: int) -> bool:
    return row % 50 == 7


class Script:
    """What the server answers: it remembers who met a fault already."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> str | StatusFault | WireFault:
        row = int(prompt_of(body).rpartition("thing <")[2].partition(">")[0])
        with self._lock:
            self.asked[row] += 1
            first = self.asked[row] == 1
        if is_refused(row):
            return StatusFault(400, f"Refusal {REFUSAL + row}.")
        if first and row % 20 == 3:
            return PASSING[row // 20 % len(PASSING)]
        return '{"label": "good"}' if row % 3 else '{"label": "bad"}'


def serve(pipe: Any) -> None:
    """Serve until told to end, in a process of its own, whose memory is nobody's business."""
    with ChatServer(Script()) as server:
        pipe.send(server.url)
        pipe.recv()
        pipe.send(server.n_requests)


class Memory:
    """Takes the resident memory of this process and of the workers, in MB, every few seconds."""

    def __init__(self) -> None:
        self.driver: list[float] = []
        self.workers: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(EVERY_S):
            self.driver.append(me.memory_info().rss / 1e6)
            held = []
            for child in me.children(recursive=True):
                try:
                    if WORKER in " ".join(child.cmdline()):
                        held.append(child.memory_info().rss / 1e6)
                except psutil.Error:
                    continue
            if held:
                self.workers.append(max(held))


def growth(values: list[float]) -> dict[str, float]:
    """Return the medians of the second and of the last fifth."""
    fifth = max(1, len(values) // 5)
    return {"early": statistics.median(values[fifth : 2 * fifth]), "late": statistics.median(values[-fifth:])}


def series(values: list[float]) -> list[int]:
    """Return some twenty of the values, from the first to the last."""
    return [round(value) for value in values[:: max(1, len(values) // SHOWN)]]


def check(output: Path, n_rows: int) -> Counter[str]:
    """Return how many rows are as they should be, and how many are not."""
    found: Counter[str] = Counter()
    for part in sorted(output.glob("part-*.parquet")):
        table = pq.read_table(part, columns=["id", "prediction", "error_kind", "error"])
        for row, label, kind, reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if is_refused(row):
                right = label is None and kind == "bad_request" and f"Refusal {REFUSAL + row}." in reason
                found["refused, with its own reason" if right else "refused, and wrong"] += 1
            else:
                right = label == ("good" if row % 3 else "bad") and kind is None
                found["right" if right else f"wrong ({kind})"] += 1
    found["missing"] = n_rows - found.total()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="f"))
    source = folder / "in.parquet"
    ids = range(given.rows)
    pq.write_table(pa.table({"id": ids, "text": [text_of(row) for row in ids]}), source, row_group_size=50_000)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    skllm_ray.init()
    try:
        with Memory() as memory:
            SKLLMConfig.set_gpt_url(ours.recv())
            SKLLMConfig.set_rate_limit("custom_url::m", max_concurrency=32)
            clf = ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce").fit(None, ["good", "bad"])
            began = time.monotonic()
            screen = batch.LineScreen(lambda line: sys.stderr.write(line + "\n"), 30)
            result = batch.run(clf, str(source), str(folder / "out"), screen=screen)
            seconds = time.monotonic() - began
            ours.send("end")
            n_requests = ours.recv()
        rows = check(folder / "out", given.rows)
    finally:
        skllm_ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    told = {
        "complete": result.complete,
        "errors": result.errors,
        "rows": dict(rows),
        "requests": n_requests,
        "rows_per_s": round(given.rows / seconds),
        "driver_mb": growth(memory.driver),
        "largest_worker_mb": growth(memory.workers),
        "driver_series_mb": series(memory.driver),
        "largest_worker_series_mb": series(memory.workers),
    }
    print(json.dumps(told, indent=1))  # noqa: T201
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    if not result.complete or set(rows) - {"right", "refused, with its own reason", "missing"} or rows["missing"]:
        sys.exit("Some rows are wrong.")


if __name__ == "__main__":
    main()
