"""What happens to one block of texts, wherever it runs: render, ask, parse."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from skllm_ray.config import resolve_secret
from skllm_ray.errors import ClusterError
from skllm_ray.execution.reply_cache import with_cache
from skllm_ray.llm.base import Backend, BackendSpec, adapt
from skllm_ray.llm.gate import install_limiter
from skllm_ray.llm.gpt.clients.llama_cpp.handler import Freed, ModelCache
from skllm_ray.tasks.base import Row, Task

BLOCK_ROWS = 256
"""Rows in a block: one request to a model actor, one Dataset task."""


def process(texts: Sequence[str], task: Task[Any], backend: Backend, spec: BackendSpec) -> list[Row[Any]]:
    """Return one row per text."""
    return task.parse(texts, backend.complete(adapt(spec, task.render(texts), texts)))


def process_here(
    texts: Sequence[str], task: Task[Any], spec: BackendSpec, secrets: Mapping[str, str]
) -> Generator[tuple[range, list[Row[Any]]], None, None]:
    """Yield the blocks of a call that runs in this process."""
    backend = open_here(spec, secrets)
    install_limiter(None)  # no Ray: this process keeps the limit by itself
    for start in range(0, len(texts), BLOCK_ROWS):
        part = texts[start : start + BLOCK_ROWS]
        yield range(start, start + len(part)), process(part, task, backend, spec)


class OpenBackend:
    """A backend that is open in this process, kept in ``ModelCache`` for the next call."""

    def __init__(self, spec: BackendSpec, backend: Backend) -> None:
        self.spec = spec
        self.backend = backend
        self.pid = os.getpid()

    def close(self) -> list[Freed]:
        """Close the backend, unless it belongs to a parent process."""
        if self.pid != os.getpid():
            return []
        if not self.spec.placement.stateful:
            self.backend.close()
            return []
        import psutil

        before = psutil.Process().memory_info().rss
        self.backend.close()
        freed = max(0, before - psutil.Process().memory_info().rss)
        return [Freed(self.spec.model, "this process", self.pid, freed / 1e6)]


def open_here(spec: BackendSpec, secrets: Mapping[str, str]) -> Backend:
    """Return the backend of `spec` in this process, opened at the first call.

    Raises
    ------
    ClusterError
        If a parent process opened it before a fork: its threads do not exist here.
    """
    key = f"{spec.key} in process"
    held = ModelCache.get(key)
    if isinstance(held, OpenBackend):
        if held.pid != os.getpid():
            raise ClusterError(
                f"{spec.model} was opened before this process was forked, and its threads do not survive a fork.",
                'Start child processes with the "spawn" method.',
            )
        return held.backend
    backend = with_cache(spec.open(lambda reference: resolve_secret(reference, secrets)), spec)
    ModelCache.store(key, OpenBackend(spec, backend))
    return backend
