"""What a script makes a fake server answer, and what the server saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class StatusFault:
    """An HTTP error with a JSON body in the API's own form."""

    status: int
    message: str = "scripted fault"
    code: str | None = None
    """The server's error code, such as ``insufficient_quota``."""
    param: str | None = None
    """The parameter that the server complains about."""
    headers: tuple[tuple[str, str], ...] = ()
    """Extra headers, such as ``(("retry-after-ms", "5"),)``."""


class WireFault(Enum):
    """What a broken server or network does."""

    DROP = "closes the connection without an answer"
    HALF = "closes the connection in the middle of the answer"
    HTML = "a web page with status 200"
    MALFORMED_JSON = "broken JSON with status 200"
    NO_CHOICES = "an answer without choices"
    CONTENT_FILTER = "an answer that a content filter stopped"
    SILENCE = "never answers"


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer of any form, sent as it stands.

    Examples
    --------
    >>> RawAnswer({"error": {"message": "No credit.", "code": 402}}).status
    200
    """

    body: Any = b""
    """Bytes; a str or what JSON can hold, which is written as such; or a function without parameters that returns an
    iterator of bytes, which may be without end."""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    """All headers, but for the length."""


@dataclass(frozen=True, slots=True)
class LabelAnswer:
    """The likeliest label, and for who asks for log probabilities those of the 20 likeliest.

    Examples
    --------
    >>> LabelAnswer({"billing": 0.1, "delivery": 0.9}).text
    '{"label": "delivery"}'
    """

    probabilities: Mapping[str, float]
    """Of each label, more than 0."""

    @property
    def text(self) -> str:
        """The answer in words."""
        return json.dumps({"label": max(self.probabilities, key=lambda label: self.probabilities[label])})


Answer: TypeAlias = Callable[[dict[str, Any]], "str | LabelAnswer | StatusFault | WireFault | RawAnswer"]


@dataclass(frozen=True, slots=True)
class Received:
    """A request that a `ChatServer` saw. Of a credential it keeps only the header's name."""

    path: str
    body: dict[str, Any]
    auth: str | None
    """``authorization``, ``api-key`` or None."""


def prompt_of(body: dict[str, Any]) -> str:
    """Return all the text of a request: of a chat or an embedding, in OpenAI's form or Vertex AI's."""
    if "messages" in body:
        return "\n".join(str(message["content"]) for message in body["messages"])
    if "input" in body:
        return body["input"] if isinstance(body["input"], str) else "\n".join(map(str, body["input"]))
    if "instances" in body:
        return "\n".join(str(item["content"]) for item in body["instances"])
    turns = [body.get("systemInstruction") or {}, body.get("content") or {}, *body.get("contents", [])]
    return "\n".join(part.get("text", "") for turn in turns for part in turn.get("parts", []))
