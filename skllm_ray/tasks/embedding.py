"""Texts to vectors: the one task that asks for embeddings and not for answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, Row, odd_lengths


@dataclass(frozen=True)
class EmbeddingTask:
    """Embed each text as it is. Whoever runs it calls ``Backend.embed`` and :meth:`rows`."""

    def rows(self, embeddings: Sequence[Embedding]) -> list[Row[NDArray[np.float32]]]:
        """Return one row per embedding; its value is the vector, of shape (n_dims,)."""
        return [
            Row(e.vector, e.vector is not None, Reply(None, None, e.usage, e.error, e.attempts, e.model))
            for e in embeddings
        ]

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return what is sent, which is each text as it is."""
        return [ChatRequest(({"role": "user", "content": text},)) for text in texts]

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[NDArray[np.float32]]]:  # noqa: ARG002
        """Refuse: an answer is no vector."""
        raise TypeError("An embedding task has no answers to parse: call the backend's embed and this task's rows.")


def of_one_length(rows: Sequence[Row[NDArray[np.float32]]]) -> list[Row[NDArray[np.float32]]]:
    """Return `rows` with an error in place of each vector that is not as long as most of them."""
    odd = odd_lengths([row.value for row in rows])
    return [
        replace(row, value=None, valid=False, reply=replace(row.reply, error=odd[i])) if i in odd else row
        for i, row in enumerate(rows)
    ]
