"""The lines of a batch: how many a file takes, and what came of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skllm_ray.tasks.base import ChatRequest, Choices, Embedding, Reply


@dataclass(frozen=True, slots=True)
class FileLimits:
    """How much a file of requests may hold."""

    max_lines: int = 50_000
    max_bytes: int = 200_000_000


@dataclass(frozen=True, slots=True)
class Form:
    """What must be known of a request to read its answer: its text is not at hand any more.

    Examples
    --------
    >>> form = Form.of(ChatRequest((), Choices(("bad", "good"))))
    >>> form.request.choices.labels
    ('bad', 'good')
    """

    choices: Choices | None = None
    has_schema: bool = False
    embeds: bool = False

    @classmethod
    def of(cls, asked: ChatRequest | str) -> Form:
        """Return the form of a request, or of a text that is embedded."""
        if isinstance(asked, str):
            return cls(embeds=True)
        return cls(asked.choices, asked.json_schema is not None)

    @property
    def request(self) -> ChatRequest:
        """A request without its messages."""
        return ChatRequest((), self.choices, {} if self.has_schema else None)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Form:
        """Return what ``asdict`` made, after JSON."""
        choices = told.get("choices")
        if choices is not None:
            choices = Choices(**{**choices, "labels": tuple(choices["labels"])})
        return cls(choices, bool(told.get("has_schema")), bool(told.get("embeds")))


@dataclass(frozen=True, slots=True)
class LineResult:
    """What came of a line."""

    name: str
    """The line's; empty where the result names none."""
    answer: Reply | Embedding
    """With an error where there is none."""
    unrun: bool = False
    """Whether the service says that it did not do the line, so that nothing is to be paid for it."""
