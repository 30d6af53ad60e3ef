"""Many warm calls of each kind on Ray: whether anything grows from call to call.

    python -m benchmarks.growth --calls 50

Each call has 600 rows in several blocks. After a few calls to warm up, these are taken after every call: the driver's
threads, open files and resident memory; the workers' number, their most open files and memory; living actors; objects
and bytes in the object store. None may be higher in the last fifth of the calls than in the first, but for some noise.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from pydantic import BaseModel
from ray._private.internal_api import memory_summary
from ray._private.state import actors

import skllm_ray
from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.models.gpt.extraction import GPTExtractor
from skllm_ray.testing import ChatServer, prompt_of
from skllm_ray.vectorization import GPTVectorizer

ROWS = 600
WARM = 5
NOISE = {"driver MB": 30.0, "worker MB": 30.0, "store MB": 5.0}
"""What may be more at the end than at the beginning; of counts, 3."""
TEXTS = [f"thing {row} is {'good' if row % 3 else 'bad'}" for row in range(ROWS)]


class Thing(BaseModel):
    number: int


def answer(body: dict[str, Any]) -> str:
    prompt = prompt_of(body)
    if "number" in str(body.get("response_format", "")):
        return json.dumps({"number": int(re.search(r"thing (\d+)", prompt)[1])})  # type: ignore[index]
    return '{"label": "good"}' if "is good" in prompt else '{"label": "bad"}'


def serve(pipe: Any) -> None:
    """Serve until told to end, in a process of its own: its connections are not the driver's."""
    with ChatServer(answer) as server:
        pipe.send(server.url)
        pipe.recv()


def kinds(folder: Path) -> dict[str, Callable[[], Any]]:
    clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
    vectors = GPTVectorizer(model="custom_url::e").fit(TEXTS)
    extractor = GPTExtractor(Thing, model="custom_url::m").fit(TEXTS)
    source = folder / "in.parquet"
    pq.write_table(pa.table({"text": TEXTS}), source)

    def job() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            assert batch.run(clf, str(source), output, unit_rows=200, screen=None).complete

    return {
        "predict": lambda: clf.predict(TEXTS),
        "predict_proba": lambda: clf.predict_proba(TEXTS),
        "predict_dataset": lambda: clf.predict_dataset(
            ray.data.from_items([{"text": text} for text in TEXTS], override_num_blocks=4), "text"
        ).take_all(),
        "vectors": lambda: vectors.transform(TEXTS),
        "extraction": lambda: extractor.transform(TEXTS),
        "batch.run": job,
    }


def taken() -> dict[str, float]:
    """Return what may grow, as it is now."""
    gc.collect()
    me = psutil.Process()
    workers = [one for one in me.children(recursive=True) if one.is_running() and _title(one).startswith("ray::")]
    store = memory_summary(stats_only=True)
    found = re.search(r"Plasma memory usage (\d+) MiB, (\d+) objects", store)
    return {
        "threads": me.num_threads(),
        "files": me.num_fds(),
        "driver MB": me.memory_info().rss / 1e6,
        "workers": len(workers),
        "worker files": max([_of(one.num_fds) for one in workers], default=0),
        "worker MB": max([_of(lambda one=one: one.memory_info().rss) for one in workers], default=0) / 1e6,
        "actors": sum(one["State"] == "ALIVE" for one in actors().values()),
        "objects": float(found[2]) if found else 0.0,
        "store MB": float(found[1]) if found else 0.0,
    }


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _of(ask: Callable[[], float]) -> float:
    try:
        return ask()
    except psutil.Error:  # it has just ended
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--only", default="", help="Kinds, separated by commas.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    SKLLMConfig.set_show_progress(False)
    told: dict[str, Any] = {}
    grown = []
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    spawn.Process(target=serve, args=(theirs,), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        SKLLMConfig.set_openai_key("sk-local")
        SKLLMConfig.set_gpt_url(ours.recv())
        skllm_ray.init("local", num_cpus=2)
        for name, call in kinds(Path(folder)).items():
            if given.only and name not in given.only.split(","):
                continue
            for _ in range(WARM):
                call()
            began, series = time.perf_counter(), []
            for _ in range(given.calls):
                call()
                series.append(taken())
            fifth = max(1, given.calls // 5)
            ends = {what: [statistics.median(one[what] for one in some) for some in (series[:fifth], series[-fifth:])]
                    for what in series[0]}  # fmt: skip
            told[name] = {"seconds a call": round((time.perf_counter() - began) / given.calls, 2)} | {
                what: [round(value, 1) for value in pair] for what, pair in ends.items()
            }
            grown += [f"{name}: {what} {a:g} → {b:g}" for what, (a, b) in ends.items() if b - a > NOISE.get(what, 3)]
            print(name, json.dumps(told[name]), flush=True)  # noqa: T201
        skllm_ray.shutdown()
    ours.send(None)
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    if grown:
        sys.exit("Grown: " + "; ".join(grown))


if __name__ == "__main__":
    main()
