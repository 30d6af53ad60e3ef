"""Vectors of texts: many texts in a request, and halves of it where a server refuses one. No SDK here."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.openai.errors import row_error
from skllm_ray.tasks.base import Embedding, Usage

_MOST_TEXTS = 128
_MOST_CHARACTERS = 200_000

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
        message = f"The answer holds {len(data)} vectors for {n_texts} texts."
        return Embedding(error=row_error("malformed_response", message))
    vectors: list[NDArray[np.float32] | None] = [None] * n_texts
    for position, item in enumerate(data):
        vectors[int(item.get("index", position))] = _vector(item["embedding"])
    if any(vector is None or vector.size == 0 or vector.shape != vectors[0].shape for vector in vectors):  # type: ignore[union-attr]
        return Embedding(error=row_error("malformed_response", "The answer's vectors are empty or differ in length."))
    usage = answer.get("usage") or {}
    tokens = int(usage.get("prompt_tokens") or usage.get("total_tokens") or 0)
    matrix = np.stack([vector for vector in vectors if vector is not None])
    return Embedding(matrix, usage=Usage(prompt_tokens=tokens), model=str(answer.get("model") or ""))


def _vector(value: Any) -> NDArray[np.float32]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), dtype="<f4").astype(np.float32)
    return np.asarray(value, dtype=np.float32)


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
    return error is not None and error.kind in {"bad_request", "context_length", "content_filter"}


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
