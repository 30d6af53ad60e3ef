"""Which form a request can have: what refusals say of it, and a conversation without a system message."""

from __future__ import annotations

import re
from typing import Final

from skllm_ray.llm.model_facts import AnswerForm
from skllm_ray.tasks.base import Message

FORMS: Final[tuple[AnswerForm, ...]] = ("json_schema", "json_object", "plain")

REFUSAL = re.compile(
    r"unsupported|not[ _]support|unrecogni[sz]ed|unknown|unexpected|not (permitted|allowed|enabled)"
    r"|extra (inputs|fields)|only the default|deprecated|not available|cannot find field",
    re.IGNORECASE,
)
"""How servers say that they do not take something at all."""
_NOT = (
    r"(?:(?:not|n't|un)[ _-]?(?:support|allow|permit|accept|enabl|recogni|one of|available)|invalid|unknown|unexpected)"
)
_ABOUT_SYSTEM = re.compile(
    rf"{_NOT}.{{0,60}}\bsystem\b|\b(?:system|developer)\b.{{0,80}}{_NOT}"
    r"|roles must alternate|\bonly\b.{0,60}\broles?\b",
    re.IGNORECASE | re.DOTALL,
)


def form_of(best: AnswerForm, left_out: set[str]) -> AnswerForm:
    """Return the strictest form of an answer that is not refused."""
    return next((form for form in FORMS[FORMS.index(best) :] if form not in left_out), "plain")


def is_about_system(message: str) -> bool:
    """Return whether a refusal is about the system message."""
    return _ABOUT_SYSTEM.search(message) is not None


def folded(messages: tuple[Message, ...]) -> list[Message]:
    """Return a conversation without system messages; what they say stands at the head of the user's first one."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    if not system or not others:
        return others
    first: Message = {"role": others[0]["role"], "content": "\n\n".join([*system, others[0]["content"]])}
    return [first, *others[1:]]
