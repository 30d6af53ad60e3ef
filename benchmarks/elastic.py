"""A cluster that grows with its work: from no node to four, to one, to none; spot losses; a slow node; the first row.

    python -m benchmarks.elastic job        # 0 → 4 → 1 → 0 nodes in one batch job
    python -m benchmarks.elastic predict    # the same in one call of predict
    python -m benchmarks.elastic dataset    # the same in one Dataset
    python -m benchmarks.elastic spot --losses 30
    python -m benchmarks.elastic slow
    python -m benchmarks.elastic file       # a file to four nodes: from a throttled hub, and from one another

Needs Linux. The autoscaler is Ray's own, its nodes are processes of this machine with logical GPUs, and the model is a
stand-in that takes a fixed time for each row and writes down what it was asked, so that rows lost and rows asked twice
are counted by the model itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import ray

import skllm_ray
from benchmarks.autoscaling import AutoscalingCluster, autoscaling_cluster, until
from skllm_ray import batch
from skllm_ray.batch.output.timeline import first_row_parts, read_timeline
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.execution import model_pool
from skllm_ray.llm.base import ModelChoice, Placement
from skllm_ray.llm.registry import PROVIDERS, Provider
from skllm_ray.testing import StandInSpec, asked_calls, asked_rows

LABELS = ["good", "bad"]
_spec: list[StandInSpec] = []


def spec_of(choice: ModelChoice) -> StandInSpec:
    """Return the stand-in of this run."""
    del choice
    return _spec[0]


PROVIDERS["standin"] = Provider("gpt", f"{__name__}:spec_of", "unknown", "none")


@dataclass
class World:
    """A cluster without workers, a model, and what was seen of both."""

    cluster: AutoscalingCluster
    folder: Path
    samples: list[tuple[float, int]] = field(default_factory=list)
    """When how many nodes were there."""

    def classifier(self) -> Any:
        """Return a fitted classifier of the stand-in."""
        return ZeroShotGPTClassifier(model="standin::model").fit(None, LABELS)

    def texts(self, n: int, last: int = 0, times: float = 1.0) -> list[str]:
        """Return `n` texts, and `last` more that take `times` as long."""
        return [f"row {i} " for i in range(n)] + [f"row {n + i} *{times:g} " for i in range(last)]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note meanwhile how many nodes there are."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.25):
                self.samples.append((time.time(), len(self.cluster.nodes())))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def node_counts(self) -> list[int]:
        """Return how many nodes there were, one number for each change."""
        return [n for n, _ in itertools.groupby(n for _, n in self.samples)]


def rates_by_replicas(folder: Path) -> dict[int, float]:
    """Return the rows per second while 1, 2, … replicas had loaded, counted by the model itself."""
    spans = []
    for path in folder.glob("asked-*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        begun = [line for line in lines if "began" in line]
        ended = [line for line in lines if "ended" in line]
        if ended:
            pairs = zip(begun, ended, strict=False)
            spans.append((begun[0]["began"], ended[-1]["ended"], [(b["began"], e["ended"], e["n"]) for b, e in pairs]))
    edges = sorted({edge for first, last, _ in spans for edge in (first, last)})
    found: dict[int, tuple[float, float]] = {}
    for start, end in itertools.pairwise(edges):
        n = sum(first <= start and end <= last for first, last, _ in spans)
        rows = sum(
            count * max(0.0, min(end, e) - max(start, b)) / max(1e-9, e - b)
            for _, _, calls in spans
            for b, e, count in calls
        )
        seconds, total = found.get(n, (0.0, 0.0))
        found[n] = seconds + end - start, total + rows
    return {n: rows / seconds for n, (seconds, rows) in sorted(found.items()) if n and seconds > 1.0}


def busy_share(folder: Path) -> dict[str, float]:
    """Return which share of its time each replica worked: from its first block on, and from its third on.

    What lies between is the start of a call: tasks that begin, speeds that are learnt.
    """
    found = {"all": [0.0, 0.0], "from the third block on": [0.0, 0.0]}
    for path in folder.glob("asked-*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        begun = [line["began"] for line in lines if "began" in line]
        ended = [line["ended"] for line in lines if "ended" in line]
        for name, first in (("all", 0), ("from the third block on", 2)):
            if len(ended) > first + 1:
                found[name][0] += sum(e - b for b, e in zip(begun[first:], ended[first:], strict=False))
                found[name][1] += ended[-1] - begun[first]
    return {name: round(busy / seconds, 3) for name, (busy, seconds) in found.items() if seconds}


@contextmanager
def world(*, most: int = 4, idle_s: float = 6.0, **model: Any) -> Iterator[World]:
    """Start a cluster without workers, for a model of one GPU for each replica."""
    folder = tempfile.mkdtemp(prefix="el", dir="/tmp")  # short, since sockets lie in it
    placement = Placement(num_cpus=0, num_gpus=1, min_replicas=1, max_replicas=most)
    logs = Path(folder, "asked")
    logs.mkdir()
    _spec[:] = [StandInSpec(**{"folder": str(logs), "placement": placement, **model})]
    try:
        with autoscaling_cluster(folder, most=most, idle_s=idle_s) as cluster:
            skllm_ray.init(cluster.address)
            try:
                yield World(cluster, logs)
            finally:
                skllm_ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_job(one: World, texts: list[str], **options: Any) -> Any:
    """Run a batch job over some texts; return its result."""
    source, output = one.folder.parent / "in.parquet", one.folder.parent / "out"
    pd.DataFrame({"id": range(len(texts)), "text": texts}).to_parquet(source)
    result = batch.run(one.classifier(), str(source), str(output), **options)
    assert result.complete, result
    found = pq.read_table(output).column("id").to_pylist()
    assert sorted(found) == list(range(len(texts))), "rows lost or twice in the output"
    return result


def run_predict(one: World, texts: list[str]) -> None:
    """Run one call of predict."""
    assert len(one.classifier().predict(texts)) == len(texts)


def run_dataset(one: World, texts: list[str]) -> None:
    """Run one Dataset."""
    rows = ray.data.from_items([{"text": text} for text in texts], override_num_blocks=max(1, len(texts) // 256))
    found = one.classifier().predict_dataset(rows, "text").to_pandas()
    assert sorted(found["text"]) == sorted(texts)


HOW: dict[str, Callable[[World, list[str]], Any]] = {"job": run_job, "predict": run_predict, "dataset": run_dataset}


def grow_and_shrink(
    how: str, n: int = 6000, row_s: float = 0.05, last_s: float = 60.0, nodes: int = 4
) -> dict[str, Any]:
    """Return what is seen when the cluster goes from no node to four, to one for a long last block, and to none."""
    last = 16
    with world(most=nodes, row_s=row_s, load_s=1.0) as one, one.watched():
        began = time.time()
        HOW[how](one, one.texts(n, last, last_s / last / row_s))
        ended = time.time()
        parts = first_row_parts(read_timeline(_output(one))) if how == "job" else []
        _unload()
        went_home = until(lambda: not one.cluster.nodes(), 60)
        counts = asked_rows(str(one.folder))
        rates = rates_by_replicas(one.folder)
        first = min(call["ended"] for call in asked_calls(str(one.folder)) if "ended" in call)
        one.samples.append((time.time(), len(one.cluster.nodes())))
        return {
            "nodes over time": one.node_counts(),
            "seconds": round(ended - began, 1),
            "rows/s by replicas": {k: round(v, 2) for k, v in rates.items()},
            f"efficiency at {nodes}": round(rates.get(nodes, 0.0) / (nodes / row_s), 3),
            "busy share of replicas, between their first and last block": busy_share(one.folder),
            "rows": len(counts),
            "rows asked again": sum(counts.values()) - len(counts),
            "first row after, s": round(first - began, 1),
            "of it": dict(parts),
            "all nodes gone": went_home,
            "after the end, s": round(time.time() - ended, 1),
        }


def spot(losses: int, rows_each: int = 6000, nodes: int = 4, row_s: float = 0.02, seed: int = 0) -> dict[str, Any]:
    """Return what is lost and done again when nodes are taken away at random, half of them with a notice."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    with world(most=nodes, row_s=row_s, load_s=0.5) as one:
        n = 0
        lost: list[tuple[str, int]] = []
        while len(lost) < losses:
            over = threading.Event()
            rows = one.texts(rows_each)
            before = asked_rows(str(one.folder))
            took = threading.Thread(target=_take_nodes, args=(one, rng, over, lost, losses), daemon=True)
            took.start()
            result = run_job(one, rows, unit_rows=500)
            over.set()
            took.join()
            shutil.rmtree(one.folder.parent / "out")
            n += 1
            after = asked_rows(str(one.folder))
            again = sum(after.values()) - sum(before.values()) - len(rows)
            found.append({"rows": result.rows_done, "asked again": again, "failed": result.rows_failed})
            print(json.dumps({"losses so far": len(lost), **found[-1]}), file=sys.stderr, flush=True)  # noqa: T201
        return {
            "jobs": n,
            "losses": len(lost),
            "with notice": sum(kind == "notice" for kind, _ in lost),
            "rows in flight on killed nodes": sum(rows for kind, rows in lost if kind == "killed"),
            "rows asked again": sum(one["asked again"] for one in found),
            "rows failed": sum(one["failed"] for one in found),
            "each job": found,
        }


def _take_nodes(one: World, rng: random.Random, over: threading.Event, lost: list[tuple[str, int]], most: int) -> None:
    """Take a node now and then, with a notice and without in turn, where a replica works on it."""
    while not over.wait(rng.uniform(3.0, 8.0)) and len(lost) < most:
        busy = {node: rows for node, rows in _in_flight().items() if rows}
        if not busy:
            continue
        node = rng.choice(sorted(busy))
        if len(lost) % 2 == 0:
            with suppress(ray.exceptions.RaySystemError):
                one.cluster.drain(node, 30)
                until(lambda node=node: node not in _in_flight(), 25)
                one.cluster.kill(node)
                lost.append(("notice", 0))
        else:
            one.cluster.kill(node)
            lost.append(("killed", busy[node]))


def _in_flight() -> dict[str, int]:
    """Return how many rows the replica on each node was given and has not answered."""
    key = _spec[0].key

    def rows(pool: Any) -> dict[str, int]:
        model = pool._models.get(key)
        held = model.replicas.values() if model is not None else ()
        return {replica.place.node: replica.load.rows for replica in held}

    return dict(ray.get(model_pool.pool_of("job").__ray_call__.remote(rows)))


def slow_node(n: int = 6000, row_s: float = 0.02) -> dict[str, Any]:
    """Return how a job ends with one of four replicas at a fifth of the others' speed."""
    found = {}
    for how in ("job", "predict"):
        with world(row_s=row_s, load_s=0.5, slow=5.0) as one:
            _spec[0] = replace(_spec[0], placement=replace(_spec[0].placement, min_replicas=4))
            one.classifier().predict(["row 0"])  # all four are there
            began = time.time()
            HOW[how](one, one.texts(n))
            took = time.time() - began
            ideal = n * row_s / 3.2
            calls = [call for call in asked_calls(str(one.folder)) if "began" in call and call["began"] >= began]
            ends = [call["ended"] for call in asked_calls(str(one.folder)) if "ended" in call]
            work_s = max(ends) - min(call["began"] for call in calls)
            found[how] = {
                "seconds of the model's work": round(work_s, 1),
                "ideal": round(ideal, 1),
                "ratio": round(work_s / ideal, 3),
                "seconds with start and end": round(took, 1),
            }
    return found


def file_to_four(n_bytes: int, hub_bytes_per_s: float) -> dict[str, Any]:
    """Return how long a file takes to four nodes: each from a throttled hub, and one from it and the rest from it."""
    from ray.cluster_utils import Cluster

    from skllm_ray.execution.weights import Files, warm_nodes
    from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
    from tests.hub import Hub

    demo = DEMO_FILE.read_bytes()
    folder = tempfile.mkdtemp(prefix="el", dir="/tmp")
    content = demo + bytes(n_bytes - len(demo))
    name = "owner/repo/model.gguf"
    try:
        with Hub(content, bytes_per_s=hub_bytes_per_s) as hub:
            os.environ.update(HF_ENDPOINT=hub.url, HF_HOME=f"{folder}/home", HF_HUB_DISABLE_XET="1")
            cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 1, "object_store_memory": 200_000_000, "include_dashboard": False},
            )
            for _ in range(3):
                cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
            skllm_ray.init(cluster.address)
            try:
                began = time.monotonic()
                found = warm_nodes(name, "", folder_of=lambda node: f"{folder}/{node}")
                shared_s, shared_bytes = time.monotonic() - began, hub.n_bytes
                began = time.monotonic()
                strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
                files = [
                    ray.remote(Files)
                    .options(num_cpus=0, scheduling_strategy=strategy(node["NodeID"], soft=False))
                    .remote(name, f"{folder}/{node['NodeID']}-alone")
                    for node in ray.nodes()
                ]
                ray.get([one.fetch.remote() for one in files])
                alone_s = time.monotonic() - began
                return {
                    "bytes": n_bytes,
                    "hub, bytes/s": hub_bytes_per_s,
                    "one download and the rest from one another, s": round(shared_s, 1),
                    "downloaded, bytes": shared_bytes,
                    "each node": [(one.source, round(one.seconds, 1)) for one in found],
                    "four downloads, s": round(alone_s, 1),
                    "four downloads, bytes": hub.n_bytes - shared_bytes,
                }
            finally:
                skllm_ray.shutdown()
                cluster.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _output(one: World) -> Any:
    return open_folder(str(one.folder.parent / "out"), StorageOptions.of(None), {})


def _unload() -> None:
    from skllm_ray.llm.open_models import ModelCache

    ModelCache.clear()


def main() -> None:
    """Run one of them and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=["job", "predict", "dataset", "spot", "slow", "file"])
    parser.add_argument("--losses", type=int, default=30)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--last", type=float, default=60.0, help="seconds of the last block, which one replica does")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=1024, help="the file's size")
    parser.add_argument("--hub-megabytes", type=float, default=50.0, help="what the hub sends in a second, to all")
    given = parser.parse_args()
    if given.what == "spot":
        found = spot(given.losses, given.rows, given.nodes)
    elif given.what == "file":
        found = file_to_four(given.megabytes << 20, given.hub_megabytes * 2**20)
    elif given.what == "slow":
        found = slow_node(given.rows)
    else:
        found = grow_and_shrink(given.what, given.rows, last_s=given.last, nodes=given.nodes)
    print(json.dumps(found, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
