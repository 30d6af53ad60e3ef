"""Texts to a Ray Dataset of blocks, blocks to the backend, rows back to the driver."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data

from skllm_ray.execution import session
from skllm_ray.execution.block import BLOCK_ROWS, open_here, process, process_here
from skllm_ray.execution.model_pool import PooledBackend, connect, is_nested_without_room
from skllm_ray.execution.rate_limiter import use_cluster_limiter
from skllm_ray.execution.vault import fetch_secrets, hand_over
from skllm_ray.execution.workers import compare_workers
from skllm_ray.llm.base import Backend, BackendSpec
from skllm_ray.tasks.base import Row, Task

_API_TASKS = 8  # Dataset tasks of a stateless backend at once; each keeps many requests in flight


def on_cluster(
    texts: Sequence[str], task: Task[Any], spec: BackendSpec, secrets: Mapping[str, str]
) -> Generator[tuple[Sequence[int], list[Row[Any]]], None, None]:
    """Yield finished blocks, as they finish, of a call that uses Ray."""
    compare_workers(spec)
    if spec.placement.stateful and session.in_ray_worker() and is_nested_without_room(spec):
        yield from process_here(texts, task, spec, secrets)
        return
    backend: PooledBackend | None = connect(spec) if spec.placement.stateful else None
    if backend is not None and len(texts) <= BLOCK_ROWS:
        yield range(len(texts)), process(texts, task, backend, spec)
        return
    if backend is None:
        hand_over(secrets)
    in_flight = 2 * backend.n_replicas if backend is not None else _API_TASKS
    yield from _through_dataset(texts, task, spec, backend, in_flight)


def _through_dataset(
    texts: Sequence[str], task: Task[Any], spec: BackendSpec, backend: PooledBackend | None, in_flight: int
) -> Generator[tuple[Sequence[int], list[Row[Any]]], None, None]:
    size = _block_size(len(texts), in_flight)
    tables = [
        pa.table({"row": pa.array(range(start, min(start + size, len(texts)))), "text": texts[start : start + size]})
        for start in range(0, len(texts), size)
    ]
    with _quiet_data():
        dataset = ray.data.from_blocks(tables)  # from_arrow would ask a task, which waits for a CPU of the actors
        dataset.context.enable_progress_bars = False
        mapped = dataset.map_batches(
            _map_block,
            fn_kwargs={"task": task, "spec": spec, "backend": backend},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=min(in_flight, len(tables))),
            zero_copy_batch=True,
        )
        for batch in mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for positions, rows in zip(batch["positions"], batch["rows"], strict=True):
                yield positions.as_py(), pickle.loads(rows.as_py())  # noqa: S301 - written by our own task below


def _block_size(n_texts: int, in_flight: int) -> int:
    """Return rows per block: enough blocks to keep all workers busy to the end, none needlessly small."""
    return max(32, min(BLOCK_ROWS, -(-n_texts // (4 * in_flight))))


def _map_block(batch: pa.Table, task: Task[Any], spec: BackendSpec, backend: PooledBackend | None) -> pa.Table:
    """Process one block on a worker. The rows travel back as one value: they are Python objects, not columns."""
    texts = batch["text"].to_pylist()
    used: Backend = backend if backend is not None else open_here(spec, _worker_secrets())
    rows = process(texts, task, used, spec)
    return pa.table(
        {
            "positions": pa.array([batch["row"].to_pylist()], pa.list_(pa.int64())),
            "rows": pa.array([pickle.dumps(rows, protocol=5)], pa.large_binary()),
        }
    )


def _worker_secrets() -> dict[str, str]:
    use_cluster_limiter()
    return fetch_secrets()


@contextmanager
def _quiet_data() -> Iterator[None]:
    """Keep Ray Data's running commentary out of the user's terminal; its log files still get it."""
    handlers = [h for h in logging.getLogger("ray.data").handlers if not isinstance(h, logging.FileHandler)]
    before = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(max(handler.level, logging.ERROR))
    try:
        yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)
