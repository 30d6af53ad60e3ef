"""Vectors of texts: many texts in a request, and halves of it where a server refuses one. No SDK here."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.openai.errors import count_of, row_error
from skllm_ray.tasks.base import Embedding, Usage

_MOST_TEXTS = 128
_MOST_CHARACTERS = 200_000
_ONE_TEXTS_FAULTS = {"bad_request", "context_length", "content_filter", "malformed_response"}

Part = tuple[str, ...]


def in_parts(texts: Sequence[str], ask: Callable[[Sequence[Part]], list[Embedding]]) -> list[Embedding]:
    """Return one embedding per text.

    Parameters
    ----------
    texts : sequence of str
        The texts.
    ask : callable
        Returns, for each part, an embedding whose ``vector`` has shape (n_texts_of_part, n_dims).
    """
    found: dict[int, Embedding] = {}
    open_parts = _cut(texts)
    tried = 0
    while open_parts:
        answers = ask([tuple(texts[i] for i in rows) for rows in open_parts])
        smaller: list[range] = []
        for rows, answer in zip(open_parts, answers, strict=True):
            if answer.error is not None and len(rows) > 1 and _may_be_one_texts_fault(answer):
                middle = rows.start + len(rows) // 2
                smaller += [range(rows.start, middle), range(middle, rows.stop)]
            else:
                found.update(zip(rows, _split(answer, [texts[i] for i in rows], tried), strict=True))
        open_parts, tried = smaller, tried + 1
    return [found[i] for i in range(len(texts))]


def read(answer: object, n_texts: int) -> Embedding:
    """Return the vectors in a server's answer, as one matrix; vectors come as base64 or as lists, in any order."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(data, list):
        return Embedding(error=row_error("malformed_response", "The answer holds no vectors."))
    if len(data) != n_texts:
        # Some servers drop a text or take so many at most: halves tell. A single text is asked again as it is.
        message = f"The answer holds {len(data)} vectors for {n_texts} texts."
        return Embedding(error=row_error("malformed_response", message, retryable=n_texts == 1))
    vectors: dict[int, NDArray[np.float32]] = {}
    try:
        for position, item in enumerate(data):
            index = item.get("index")
            vectors[position if index is None else int(index)] = _vector(item["embedding"])
        matrix = np.stack([vectors[i] for i in range(n_texts)])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        matrix = np.zeros(0, np.float32)
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        message = "The answer's vectors are missing, empty, no finite numbers, or differ in length."
        return Embedding(error=row_error("malformed_response", message, retryable=n_texts == 1))
    usage = answer.get("usage")
    told = usage if isinstance(usage, dict) else {}
    tokens = count_of(told.get("prompt_tokens")) or count_of(told.get("total_tokens"))
    return Embedding(matrix, usage=Usage(prompt_tokens=tokens), model=str(answer.get("model") or ""))


def _vector(value: Any) -> NDArray[np.float32]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), dtype="<f4").astype(np.float32)
    vector = np.asarray(value, dtype=np.float32)
    if vector.ndim == 2 and len(vector):  # a vector for each token, from a model without pooling of its own
        mean = vector.mean(axis=0)
        vector = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return vector


def _cut(texts: Sequence[str]) -> list[range]:
    parts, start, size = [], 0, 0
    for i, text in enumerate(texts):
        if i > start and (i - start == _MOST_TEXTS or size + len(text) > _MOST_CHARACTERS):
            parts.append(range(start, i))
            start, size = i, 0
        size += len(text)
    if len(texts) > start:
        parts.append(range(start, len(texts)))
    return parts


def _may_be_one_texts_fault(answer: Embedding) -> bool:
    error = answer.error
    return error is not None and not error.retryable and error.kind in _ONE_TEXTS_FAULTS


def _split(answer: Embedding, texts: Sequence[str], tried: int) -> list[Embedding]:
    """Return the embedding of each text of a part; its tokens and cost by the texts' lengths."""
    attempts = answer.attempts + tried if answer.attempts else 0
    if answer.error is not None or answer.vector is None:
        return [replace(answer, vector=None, attempts=attempts)] * len(texts)
    sizes = np.array([len(text) + 1 for text in texts], dtype=np.float64)
    edges = np.rint(np.concatenate([[0.0], np.cumsum(sizes)]) / sizes.sum() * answer.usage.prompt_tokens)
    tokens = np.diff(edges).astype(int)
    cost, whole = answer.usage.cost_usd, max(1, answer.usage.prompt_tokens)
    return [
        Embedding(
            vector,
            Usage(prompt_tokens=int(n), cost_usd=None if cost is None else cost * int(n) / whole),
            attempts=attempts,
            model=answer.model,
        )
        for vector, n in zip(answer.vector, tokens, strict=True)
    ]
