"""Asking a model that was tuned to turn one text into another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skllm_ray.tasks.base import ChatRequest, Reply, Row


@dataclass(frozen=True)
class TunedTextTask:
    """Send each text as it is: what to do with it, the model has learnt."""

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        return [ChatRequest(({"role": "user", "content": text},)) for text in texts]

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[str]]:  # noqa: ARG002
        """Return one row per reply."""
        return [Row(reply.text, reply.text is not None, reply) for reply in replies]
