"""Vectors of texts: many texts in a request, and halves of it where one of them may make it fail. No SDK here."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.api.failures import AnswerError, count_of, row_error
from skllm_ray.llm.api.response_body import UnreadableError
from skllm_ray.llm.api.server_message import told_in
from skllm_ray.tasks.base import LOST, Embedding, RowError, Usage, odd_lengths

_MOST_TEXTS = 128
_MOST_CHARACTERS = 200_000
_ONE_TEXTS_FAULTS = {
    "bad_request",
    "context_length",
    "content_filter",
    "malformed_response",
    "server_error",
    "timeout",
    "connection",
}
_MOST_FRUITLESS = 5  # times that the texts were halved, and nobody got a vector

_NO_VECTOR: Final[RowError] = row_error(
    "malformed_response",
    "The text's vector is missing, empty, or holds what is no finite number.",
    retryable=False,
)

_NONE: Final[Mapping[str, str]] = {}

Part = tuple[str, ...]


def in_parts(
    texts: Sequence[str], ask: Callable[[Sequence[Part]], list[Embedding]], *, repeats_lost: bool = True
) -> list[Embedding]:
    """Return one embedding per text.

    Parameters
    ----------
    texts : sequence of str
        The texts.
    ask : callable
        Returns, for each part, an embedding whose ``vector`` has shape (n_texts_of_part, n_dims).
    repeats_lost : bool, default=True
        Whether to ask again after a failure that leaves open whether the server wants to be paid.
    """
    found: dict[int, Embedding] = {}
    open_parts = _cut(texts)
    tried = fruitless = 0
    while open_parts:
        answers = ask([tuple(texts[i] for i in rows) for rows in open_parts])
        fruitless = 0 if any(answer.error is None for answer in answers) else fruitless + 1
        smaller: list[range] = []
        for rows, answer in zip(open_parts, answers, strict=True):
            if (
                answer.error is not None
                and len(rows) > 1
                and _may_be_one_texts_fault(
                    answer.error, repeats_lost=repeats_lost, is_outage=fruitless >= _MOST_FRUITLESS
                )
            ):
                middle = rows.start + len(rows) // 2
                smaller += [range(rows.start, middle), range(middle, rows.stop)]
            else:
                found.update(zip(rows, _split(answer, [texts[i] for i in rows], tried), strict=True))
        open_parts, tried = smaller, tried + 1
    return [found[i] for i in range(len(texts))]


def tries_of(texts: Sequence[str]) -> int | None:
    """Return how often a request of these texts is sent: of several, once, since halves of it come next."""
    return 1 if len(texts) > 1 else None


def of_one_length(found: Sequence[Embedding]) -> list[Embedding]:
    """Return `found` with an error in place of each vector that is not as long as most of them."""
    odd = odd_lengths([one.vector for one in found])
    return [replace(one, vector=None, error=odd[i]) if i in odd else one for i, one in enumerate(found)]


def read(answer: object, n_texts: int, headers: Mapping[str, str] = _NONE) -> Embedding:
    """Return the vectors in a server's answer, as one matrix; vectors come as base64 or as lists, in any order.

    A row ends in NaN where its vector is shorter than others; what is no vector of finite numbers is NaN alone.

    Raises
    ------
    AnswerError
        If the answer tells of a failure of the server.
    UnreadableError
        If it holds no vectors.
    """
    told = told_in(answer)
    if told is not None:
        raise AnswerError(told, headers)
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(data, list):
        raise UnreadableError("The answer holds no vectors.")
    if len(data) != n_texts:
        # Some servers drop a text or take so many at most: halves tell. A single text is asked again as it is.
        message = f"The answer holds {len(data)} vectors for {n_texts} texts."
        return Embedding(error=row_error("malformed_response", message, retryable=n_texts == 1))
    matrix = _matrix(data)
    if matrix is None:
        message = "The answer's vectors are missing, empty, no finite numbers, or in no order."
        return Embedding(error=row_error("malformed_response", message, retryable=n_texts == 1))
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    tokens = count_of(counts.get("prompt_tokens")) or count_of(counts.get("total_tokens"))
    return Embedding(matrix, usage=Usage(prompt_tokens=tokens), model=str(answer.get("model") or ""))


def _matrix(data: Sequence[Any]) -> NDArray[np.float32] | None:
    """Return the vectors, one below the other; None where there is none, or nobody knows whose each is."""
    vectors: dict[int, NDArray[np.float32]] = {}
    for position, item in enumerate(data):
        index, value = (item.get("index"), item.get("embedding")) if isinstance(item, dict) else (None, None)
        place = position if index is None else _place(index)
        if place is not None:
            vectors[place] = _vector(value)
    if vectors.keys() != set(range(len(data))):
        return None
    matrix = np.full((len(data), max(map(len, vectors.values()))), np.nan, np.float32)
    for place, vector in vectors.items():
        if np.isfinite(vector).all():
            matrix[place, : len(vector)] = vector
    return None if np.isnan(matrix).all() else matrix


def _place(index: object) -> int | None:
    if isinstance(index, str) and index.isdecimal():
        index = int(index[:9])
    return index if isinstance(index, int) else None


def _vector(value: Any) -> NDArray[np.float32]:
    """Return a vector; empty where there is none."""
    try:
        vector = _numbers(value)
    except (ValueError, TypeError, OverflowError):
        return np.zeros(0, np.float32)
    return vector if vector.ndim == 1 else np.zeros(0, np.float32)


def _numbers(value: Any) -> NDArray[np.float32]:
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


def _may_be_one_texts_fault(error: RowError, *, repeats_lost: bool, is_outage: bool) -> bool:
    if error.fatal or error.down or error.kind not in _ONE_TEXTS_FAULTS:
        return False
    if not error.retryable or error.kind == "connection":
        return repeats_lost or not error.retryable
    return not is_outage and (repeats_lost or error.kind not in LOST)


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
            None if np.isnan(vector[0]) else vector[~np.isnan(vector)] if np.isnan(vector[-1]) else vector,
            Usage(prompt_tokens=int(n), cost_usd=None if cost is None else cost * int(n) / whole),
            _NO_VECTOR if np.isnan(vector[0]) else None,
            attempts,
            answer.model,
        )
        for vector, n in zip(answer.vector, tokens, strict=True)
    ]
