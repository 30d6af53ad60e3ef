"""What happens to one block of texts, wherever it runs: render, ask, parse."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from skllm_ray.config import Secret
from skllm_ray.execution.open_backends import opened
from skllm_ray.llm.base import Backend, BackendSpec
from skllm_ray.llm.cancellation import Call, active_call, not_sent
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, Row, Task, Usage
from skllm_ray.tasks.embedding import EmbeddingTask

BLOCK_ROWS = 256
"""Rows in a block: one request to a model actor, one Dataset task."""


def process(
    texts: Sequence[str], task: Task[Any], backend: Backend, spec: BackendSpec, embedder: Backend | None = None
) -> list[Row[Any]]:
    """Return one row per text; `embedder` makes the vectors that some tasks render with."""
    if isinstance(task, EmbeddingTask):
        rows = list(task.rows(backend.embed(spec.adapt_texts(texts))))
        return _with_requests(rows, task.render(texts)) if _keeps_requests() else rows
    embedding = embedding_of(task)
    if embedder is not None and embedding is not None:
        return _with_vectors(texts, task, backend, spec, embedder.embed(embedding.adapt_texts(texts)))
    return _ask(texts, task, backend, spec.adapt(task.render(texts), texts))


def _ask(texts: Sequence[str], task: Task[Any], backend: Backend, requests: list[ChatRequest]) -> list[Row[Any]]:
    """Ask and parse; a cache keeps no answers that the task cannot use."""
    rows = task.parse(texts, backend.complete(requests))
    useless = [ask for ask, row in zip(requests, rows, strict=True) if not row.valid and row.error is None]
    if useless:
        backend.forget(useless)
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
    answered = _ask(asked, task, backend, spec.adapt([request for _, request in requests], asked))
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
    with opened_pair(task, spec, secrets) as (backend, embedder):
        for start in range(0, len(texts), BLOCK_ROWS):
            part = texts[start : start + BLOCK_ROWS]
            yield range(start, start + len(part)), process_for(call, part, task, backend, spec, embedder)


@contextmanager
def opened_pair(
    task: Task[Any], spec: BackendSpec, secrets: Mapping[str, Secret]
) -> Iterator[tuple[Backend, Backend | None]]:
    """Give the open backends of a call that runs in this process: the one that is asked, and the embedder, if any."""
    embedding = embedding_of(task)
    with ExitStack() as stack:
        backend = stack.enter_context(opened(spec, secrets))
        yield backend, None if embedding is None else stack.enter_context(opened(embedding, secrets))
