"""A new task in one file: what a text is worth, from 1 to 5. `test_new_task.py` uses it as any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.reading import Reading
from skllm_ray.models._base.transformer import TextTransformer
from skllm_ray.tasks.answers import read_json, value_of
from skllm_ray.tasks.base import ChatRequest, Reply, Row
from skllm_ray.tasks.text import conversation

_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"rating": {"type": "integer", "enum": [1, 2, 3, 4, 5]}},
    "required": ["rating"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class RatingTask:
    """Ask for a number from 1 to 5."""

    question: str

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        prompt = f'{self.question} Answer as {{"rating": 1}}, from 1 (worst) to 5 (best).'
        return [ChatRequest(conversation(prompt, text), json_schema=_SCHEMA, max_output_tokens=16) for text in texts]

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[int]]:
        """Return one row per reply; what is no number from 1 to 5 is not valid."""
        found = [value_of(read_json(reply.text, field="rating"), "rating") for reply in replies]
        ratings = [value if value in {1, 2, 3, 4, 5} else None for value in found]
        return [Row(value, value is not None, reply) for value, reply in zip(ratings, replies, strict=True)]


@dataclass(eq=False, repr=False)
class Rater(RequestParameters, TextTransformer):
    """Rates texts. Output column: `rating`, an integer."""

    model: str = "gpt-5.4-mini"
    key: str | None = None
    org: str | None = None
    question: str = "How content is the customer?"

    def _task(self) -> RatingTask:
        return RatingTask(self.question)

    def _reading(self) -> Reading:
        return Reading(self.model, {"rating": pa.int64()})
