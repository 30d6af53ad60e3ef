"""What happens to one block of texts, wherever it runs: render, ask, parse."""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from skllm_ray.config import Secret, resolve_secret
from skllm_ray.errors import ClusterError, SkllmRayWarning
from skllm_ray.execution import session
from skllm_ray.execution.reply_cache import with_cache
from skllm_ray.llm.base import Backend, BackendSpec, adapt, adapt_texts
from skllm_ray.llm.calls import Call, active_call, not_sent
from skllm_ray.llm.gate import install_limiter
from skllm_ray.llm.gpt.clients.llama_cpp.handler import Freed, ModelCache, key_here
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, Row, Task, Usage
from skllm_ray.tasks.embedding import EmbeddingTask

BLOCK_ROWS = 256
"""Rows in a block: one request to a model actor, one Dataset task."""
_opening = threading.RLock()  # two threads that ask the same model first must not open it twice

_opening = threading.RLock()  # two threads that ask the same model first must not open it twice


def process(
    texts: Sequence[str], task: Task[Any], backend: Backend, spec: BackendSpec, embedder: Backend | None = None
) -> list[Row[Any]]:
    """Return one row per text; `embedder` makes the vectors that some tasks render with."""
    if isinstance(task, EmbeddingTask):
        rows = list(task.rows(backend.embed(adapt_texts(spec, texts))))
        return _with_requests(rows, task.render(texts)) if _keeps_requests() else rows
    embedding = embedding_of(task)
    if embedder is not None and embedding is not None:
        return _with_vectors(texts, task, backend, spec, embedder.embed(adapt_texts(embedding, texts)))
    return _ask(texts, task, backend, adapt(spec, task.render(texts), texts))


def _ask(texts: Sequence[str], task: Task[Any], backend: Backend, requests: list[ChatRequest]) -> list[Row[Any]]:
    """Ask and parse; a cache keeps no answers that the task cannot use."""
    rows = task.parse(texts, backend.complete(requests))
    forget = getattr(backend, "forget", None)
    if forget is not None:
        useless = [ask for ask, row in zip(requests, rows, strict=True) if not row.valid and row.error is None]
        if useless:
            forget(useless)
    return _with_requests(rows, requests) if _keeps_requests() else rows


def _keeps_requests() -> bool:
    call = active_call()
    return call is not None and call.keeps_requests


def _with_requests(rows: Sequence[Row[Any]], requests: Sequence[ChatRequest]) -> list[Row[Any]]:
    return [replace(row, request=request) for row, request in zip(rows, requests, strict=True)]


def process_for(
    call: Call, texts: Sequence[str], task: Task[Any], backend: Backend, spec: BackendSpec, embedder: Backend | None
) -> list[Row[Any]]:
    """Process a block of `call`: once a row has failed for a reason that all share, nothing more is sent."""
    if call.ended is not None:
        return [Row(None, False, Reply(error=not_sent(call.ended), attempts=0))] * len(texts)
    with call.active():
        rows = process(texts, task, backend, spec, embedder)
    fatal = next((row.error for row in rows if row.error is not None and row.error.fatal), None)
    if fatal is not None:
        call.end(fatal)
    return rows


def embedding_of(task: Task[Any]) -> BackendSpec | None:
    """Return the backend whose vectors `task` renders with, if it needs any."""
    return getattr(task, "embedding", None)


def _with_vectors(
    texts: Sequence[str], task: Task[Any], backend: Backend, spec: BackendSpec, embeddings: Sequence[Embedding]
) -> list[Row[Any]]:
    """Ask for the texts that have a vector. Requests that begin alike are sent one after the other."""
    rows: list[Row[Any]] = [
        Row(None, False, Reply(usage=e.usage, error=e.error, attempts=e.attempts, model=e.model)) for e in embeddings
    ]
    vectors = {i: e.vector for i, e in enumerate(embeddings) if e.vector is not None}
    if not vectors:
        return rows
    rendered = task.render([texts[i] for i in vectors], np.stack(list(vectors.values())))
    requests = sorted(zip(vectors, rendered, strict=True), key=lambda pair: pair[1].messages[-1]["content"])
    asked = [texts[i] for i, _ in requests]
    answered = _ask(asked, task, backend, adapt(spec, [request for _, request in requests], asked))
    for (i, _), row in zip(requests, answered, strict=True):
        rows[i] = replace(row, reply=replace(row.reply, usage=_sum(row.reply.usage, embeddings[i].usage)))
    return rows


def _sum(one: Usage, other: Usage) -> Usage:
    known = [usage.cost_usd for usage in (one, other) if usage.cost_usd is not None]
    return Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        one.cached_tokens + other.cached_tokens,
        sum(known) if len(known) == 2 else one.cost_usd,
    )


def process_here(
    texts: Sequence[str], task: Task[Any], spec: BackendSpec, secrets: Mapping[str, Secret], call: Call
) -> Generator[tuple[range, list[Row[Any]]], None, None]:
    """Yield the blocks of a call that runs in this process."""
    backend = open_here(spec, secrets)
    embedding = embedding_of(task)
    embedder = None if embedding is None else open_here(embedding, secrets)
    install_limiter(None)  # no Ray: this process keeps the limit by itself
    for start in range(0, len(texts), BLOCK_ROWS):
        part = texts[start : start + BLOCK_ROWS]
        yield range(start, start + len(part)), process_for(call, part, task, backend, spec, embedder)


def open_pair_here(task: Task[Any], spec: BackendSpec, secrets: Mapping[str, Secret]) -> tuple[Backend, Backend | None]:
    """Return the open backends of a call that runs in this process, which keeps the limit by itself."""
    embedding = embedding_of(task)
    found = open_here(spec, secrets), None if embedding is None else open_here(embedding, secrets)
    install_limiter(None)
    return found


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


def open_here(spec: BackendSpec, secrets: Mapping[str, Secret]) -> Backend:
    """Return the backend of `spec` in this process, opened at the first call.

    Raises
    ------
    ClusterError
        If a parent process opened it before a fork: its threads do not exist here.
    """
    key = key_here(spec.key)
    with _opening:
        held = ModelCache.get(key)
        if isinstance(held, OpenBackend):
            if held.pid != os.getpid():
                raise ClusterError(
                    f"{spec.model} was opened before this process was forked, and its threads do not survive a fork.",
                    'Start child processes with the "spawn" method.',
                )
            if spec.placement.stateful and held.spec != spec:
                warn_of_changes(spec)
            return held.backend
        backend = with_cache(spec.open(lambda reference: resolve_secret(reference, secrets)), spec)
        ModelCache.store(key, OpenBackend(spec, backend))
    if not spec.placement.stateful and not session.is_initialised():
        atexit.register(backend.close)  # connections are closed in order, not by whoever comes last
    return backend


def warn_of_changes(spec: BackendSpec) -> None:
    """Warn that the model of `spec` is loaded with other settings."""
    warnings.warn(
        f"{spec.model} stays loaded with the settings of its first use; changed ones take effect after "
        "ModelCache.clear().",
        SkllmRayWarning,
        stacklevel=3,
    )
