"""Classification: texts to label questions, answers to labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skllm_ray.prompts import fill, format_labels
from skllm_ray.prompts.templates import (
    CLF_SYSTEM_MESSAGE,
    ZERO_SHOT_CLF_PROMPT_TEMPLATE,
    ZERO_SHOT_MLCLF_PROMPT_TEMPLATE,
)
from skllm_ray.tasks.base import ChatRequest, Choices, Message, Reply, Row

_JSON_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


@dataclass(frozen=True)
class ZeroShotTask:
    """Choose one of the labels for a text, from the labels' names alone."""

    labels: tuple[str, ...]
    template: str = ZERO_SHOT_CLF_PROMPT_TEMPLATE
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def render(self, texts: Sequence[str], vectors: NDArray[np.float32] | None = None) -> list[ChatRequest]:  # noqa: ARG002
        """Return one request per text."""
        return _render(texts, self.template, self._values(), self.choices)

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[str]]:  # noqa: ARG002
        """Return one row per reply; an answer that names no label is marked, not raised."""
        by_name = _names(self.labels)
        return [_single(reply, by_name) for reply in replies]

    @property
    def choices(self) -> Choices:
        """The labels that an answer is constrained to."""
        return Choices(self.labels)

    def _values(self) -> dict[str, str]:
        return {"labels": _describe(self.labels, self.descriptions)}


@dataclass(frozen=True)
class MultiLabelZeroShotTask:
    """Choose any of the labels for a text, up to `max_labels`."""

    labels: tuple[str, ...]
    max_labels: int = 5
    template: str = ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def render(self, texts: Sequence[str], vectors: NDArray[np.float32] | None = None) -> list[ChatRequest]:  # noqa: ARG002
        """Return one request per text."""
        values = {"labels": _describe(self.labels, self.descriptions), "max_cats": str(self.max_labels)}
        return _render(texts, self.template, values, self.choices)

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[tuple[str, ...]]]:  # noqa: ARG002
        """Return one row per reply; an answer that names no label is marked, not raised."""
        by_name = _names(self.labels)
        return [_multiple(reply, by_name, self.max_labels) for reply in replies]

    @property
    def choices(self) -> Choices:
        """The labels that an answer is constrained to."""
        return Choices(self.labels, multiple=True, max_labels=min(self.max_labels, len(self.labels)))


def _render(texts: Sequence[str], template: str, values: dict[str, str], choices: Choices) -> list[ChatRequest]:
    system: Message = {"role": "system", "content": CLF_SYSTEM_MESSAGE}
    return [ChatRequest((system, {"role": "user", "content": fill(template, text, values)}), choices) for text in texts]


def _describe(labels: Sequence[str], descriptions: Mapping[str, str]) -> str:
    lines = [
        f"- {json.dumps(label, ensure_ascii=False)}: {descriptions[label]}" for label in labels if label in descriptions
    ]
    return "\n".join([format_labels(labels), *(["What they mean:", *lines] if lines else [])])


def _names(labels: Sequence[str]) -> dict[object, str]:
    """Map what a model may write to the label it means: the label itself, or, as ``(form,)``, its own normal form."""
    normal: dict[str, list[str]] = {}
    for label in labels:
        normal.setdefault(_normalise(label), []).append(label)
    return {(name,): found[0] for name, found in normal.items() if len(found) == 1} | {label: label for label in labels}


def _normalise(label: str) -> str:
    return " ".join(label.split()).casefold()


def _lookup(answer: object, by_name: Mapping[object, str]) -> str | None:
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)  # integer labels are asked for by their digits
    if not isinstance(answer, str):
        return None
    return by_name.get(answer) or by_name.get((_normalise(answer),))


def _answer(reply: Reply) -> object:
    """Return the value of the answer's ``label`` key, or None where the text holds no such JSON."""
    match = _JSON_OBJECT.search(reply.text or "")
    if match is None:
        return None
    try:
        parsed = json.loads(match.group(), strict=False)
    except ValueError:
        return None
    return parsed.get("label") if isinstance(parsed, dict) else None


def _single(reply: Reply, by_name: Mapping[object, str]) -> Row[str]:
    answer = _answer(reply)
    if answer is None:  # a model that ignores the format may still have answered with a label alone
        text = (reply.text or "").strip()
        answer = _lookup(text, by_name) or text.strip("\"'`.").strip()
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    label = _lookup(answer, by_name)
    return Row(label, label is not None, reply)


def _multiple(reply: Reply, by_name: Mapping[object, str], max_labels: int) -> Row[tuple[str, ...]]:
    answer = _answer(reply)
    names = [answer] if isinstance(answer, str) else answer
    if not isinstance(names, list):
        return Row(None, False, reply)
    found = dict.fromkeys(label for name in names if (label := _lookup(name, by_name)) is not None)
    valid = bool(found) or not names
    return Row(tuple(found)[:max_labels] if valid else None, valid, reply)
