"""Texts to texts: summaries, translations, and prompts of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skllm_ray.prompts import fill_each
from skllm_ray.tasks.answers import unfenced
from skllm_ray.tasks.base import ChatRequest, Message, Reply, Row


@dataclass(frozen=True)
class TextTask:
    r"""Ask for a text about a text.

    Parameters
    ----------
    template : str
        A ``str.format`` string with ``{x}`` and the names in `values`.
    values : mapping of str to str
        What fills the other placeholders.
    system : str, default=""
        The system message; none is sent if it is empty.

    Examples
    --------
    >>> task = TextTask("Rewrite politely:\\n```\\n{x}\\n```")
    >>> task.parse(["Go away"], [Reply(" Please leave. ")])[0].value
    'Please leave.'
    """

    template: str
    values: Mapping[str, str] = field(default_factory=dict)
    system: str = ""

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        prompts = fill_each(self.template, texts, self.values)
        return [ChatRequest(conversation(self.system, prompt)) for prompt in prompts]

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[str]]:  # noqa: ARG002
        """Return one row per reply; an empty answer is not valid."""
        found = [unfenced(reply.text or "") for reply in replies]
        return [Row(text or None, bool(text), reply) for text, reply in zip(found, replies, strict=True)]


def conversation(system: str, user: str) -> tuple[Message, ...]:
    """Return the messages of one request."""
    asked: Message = {"role": "user", "content": user}
    return ({"role": "system", "content": system}, asked) if system else (asked,)
