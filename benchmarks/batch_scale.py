"""200,000 rows by provider batches of 50,000, of which 1% fail and 2% expire: memory, time, and the bill.

    python -m benchmarks.batch_scale [--rows 200000]

A local server of files and batches, in a process of its own, answers with the label that each prompt names; one row in
a hundred is refused for good (its text is too long), and of each batch 2% of the lines expire. The same rows are then
delivered directly, at the flex tier (fewer rows), and by batches that a deadline cuts short, so that the rest is asked
directly. Each line tells the rows that have a result, those with an error, the most memory that the driver took beyond
its start, and whether the job counts what the server wants to be paid, to the cent and beyond.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.delivery import deliver
from skllm_ray.batch.delivery.deadline import Deadline
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.testing import StatusFault, prompt_of
from skllm_ray.testing.batch_server import BatchServer

INPUT, OUTPUT = 1.0, 2.0


def serve(told: Any) -> None:
    """Be the server; tell its address, and then, whenever asked, its bill."""

    def answer(body: dict[str, Any]) -> str | StatusFault:
        prompt = prompt_of(body)
        if "number" in prompt and prompt.rstrip("`\n ").endswith("00"):
            return StatusFault(400, "This model's maximum context length is exceeded.", "context_length_exceeded")
        return '{"label": "good"}' if "good thing" in prompt else '{"label": "bad"}'

    with BatchServer(answer, expired_share=0.02) as server:
        told.send(server.url)
        while told.recv():
            told.send((server.bill.usd(INPUT, OUTPUT), dict(server.bill.requests), len(server.batches)))


def deliver_rows(url: str, n_rows: int, delivery: str) -> dict[str, Any]:
    """Deliver some rows; return what came of them. Runs in a process of its own, so that its memory is its own."""
    deliver.POLLING = Polling(0.5, 1.2, 5.0, 0.0)  # type: ignore[misc]
    skllm_ray.init(local_mode=True)
    SKLLMConfig.set_gpt_url(url)
    options: dict[str, Any] = {"input_price": INPUT, "output_price": OUTPUT}
    if delivery == "flex":
        options = {"input_price": INPUT / 2, "output_price": OUTPUT / 2}  # of one's own server the user names the price
    if delivery in {"batch", "mixed"}:
        options |= {"delivery": "batch", "batch_price_share": 0.5}
    if delivery == "mixed":
        options["deadline"] = "1h"
        looks = iter(range(1_000_000))
        Deadline.is_due = lambda *_, **__: next(looks) > 4  # type: ignore[method-assign]
    tier = {"service_tier": "flex"} if delivery == "flex" else {}
    clf = ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce", request_options=tier).fit(
        None, ["bad", "good"]
    )
    with tempfile.TemporaryDirectory() as folder:
        texts = [f"a {'good' if i % 3 else 'bad'} thing, number {i}" for i in range(n_rows)]
        pq.write_table(pa.table({"text": texts}), f"{folder}/in.parquet")
        del texts
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        result = batch.run(clf, f"{folder}/in.parquet", f"{folder}/out", **options)
        seconds = time.perf_counter() - began
        parts = [pq.read_table(part, columns=["prediction"]) for part in sorted(Path(f"{folder}/out").glob("part-*"))]
        found = pa.concat_tables(parts)["prediction"].to_pylist()
    wrong = sum(one not in {None, "good" if i % 3 else "bad"} for i, one in enumerate(found))
    assert result.complete, result.stopped
    assert len(found) == n_rows
    assert not wrong
    skllm_ray.shutdown()
    return {
        "rows": n_rows, "with a result": sum(one is not None for one in found), "errors": dict(result.errors),
        "seconds": round(seconds, 1), "counted_usd": result.total.cost_usd, "unknown_usd": result.unknown_usd,
        "memory beyond start, MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
    }  # fmt: skip


def main() -> int:
    """Print a line for each way of delivery."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--few", type=int, default=4000, help="Rows that are delivered in the other ways.")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    broken = 0
    for delivery, n_rows in (("batch", given.rows), ("direct", given.few), ("flex", given.few), ("mixed", given.few)):
        here, there = context.Pipe()
        server = context.Process(target=serve, args=(there,), daemon=True)
        server.start()
        url = here.recv()
        with context.Pool(1) as pool:
            found = pool.apply(deliver_rows, (url, n_rows, delivery))
        here.send(True)
        bill, requests, n_batches = here.recv()
        here.send(False)
        server.join()
        found |= {"bill_usd": bill, "requests": requests, "batches": n_batches}
        is_equal = abs(bill - found["counted_usd"]) < 1e-6
        broken += not is_equal
        print(delivery, json.dumps(found), "equal" if is_equal else "NOT EQUAL", flush=True)  # noqa: T201
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
