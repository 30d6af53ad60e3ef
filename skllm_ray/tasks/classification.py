"""Classification: texts to label questions, answers to labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skllm_ray.prompts import fill_each, format_labels
from skllm_ray.prompts.templates import (
    CLF_SYSTEM_MESSAGE,
    ZERO_SHOT_CLF_PROMPT_TEMPLATE,
    ZERO_SHOT_MLCLF_PROMPT_TEMPLATE,
)
from skllm_ray.tasks.answers import find_label, find_labels, find_plain_label, labels_by_name, read_json, value_of
from skllm_ray.tasks.base import ASKED_IF_SET, ChatRequest, Choices, Message, Reply, Row
from skllm_ray.tasks.prior import LabelPrior


@dataclass(frozen=True)
class ZeroShotTask:
    """Choose one of the labels for a text, from the labels' names alone."""

    labels: tuple[str, ...]
    template: str = ZERO_SHOT_CLF_PROMPT_TEMPLATE
    descriptions: Mapping[str, str] = field(default_factory=dict)
    prior: LabelPrior | None = field(default=None, kw_only=True, metadata=ASKED_IF_SET)
    """The labels' prior, if it is to be taken out of the answers' probabilities."""

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        return _render(texts, self.template, self._values(), self.choices)

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[str]]:  # noqa: ARG002
        """Return one row per reply; an answer that names no label is marked, not raised."""
        by_name = labels_by_name(self.labels)
        labels = {text: _single(text, by_name) for text in {reply.text for reply in replies}}  # few answers, many rows
        named = [labels[reply.text] for reply in replies]
        rows = [Row(label, label is not None, reply) for label, reply in zip(named, replies, strict=True)]
        return rows if self.prior is None else self.prior.take_out(rows, self.labels)

    @property
    def choices(self) -> Choices:
        """The labels that an answer is constrained to."""
        return Choices(self.labels)

    def _values(self) -> dict[str, str]:
        return {"labels": describe(self.labels, self.descriptions)}


@dataclass(frozen=True)
class MultiLabelZeroShotTask:
    """Choose any of the labels for a text, up to `max_labels`."""

    labels: tuple[str, ...]
    max_labels: int = 5
    template: str = ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        return _render(texts, self.template, self._values(), self.choices)

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[tuple[str, ...]]]:  # noqa: ARG002
        """Return one row per reply; an answer that names no label is marked, not raised."""
        by_name = labels_by_name(self.labels)
        return [_multiple(reply, by_name, self.max_labels) for reply in replies]

    @property
    def choices(self) -> Choices:
        """The labels that an answer is constrained to."""
        return Choices(self.labels, multiple=True, max_labels=min(self.max_labels, len(self.labels)))

    def _values(self) -> dict[str, str]:
        return {"labels": describe(self.labels, self.descriptions), "max_cats": str(self.max_labels)}


def _render(texts: Sequence[str], template: str, values: dict[str, str], choices: Choices) -> list[ChatRequest]:
    system: Message = {"role": "system", "content": CLF_SYSTEM_MESSAGE}
    prompts = fill_each(template, texts, values)
    return [ChatRequest((system, {"role": "user", "content": prompt}), choices) for prompt in prompts]


def describe(labels: Sequence[str], descriptions: Mapping[str, str]) -> str:
    """Return the labels, and what is said about them, as a prompt lists them."""
    lines = [
        f"- {json.dumps(label, ensure_ascii=False)}: {descriptions[label]}" for label in labels if label in descriptions
    ]
    return "\n".join([format_labels(labels), *(["What they mean:", *lines] if lines else [])])


def _single(text: str | None, by_name: Mapping[object, str]) -> str | None:
    answer = value_of(read_json(text, field="label"), "label")
    if answer is None:  # a model that ignores the format may still have answered with a label alone
        return find_plain_label(text, by_name)
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    return find_label(answer, by_name)


def _multiple(reply: Reply, by_name: Mapping[object, str], max_labels: int) -> Row[tuple[str, ...]]:
    parsed = read_json(reply.text, field="label")
    answer = value_of(parsed, "label")
    if parsed is None:  # the labels alone, in an array or as one of them
        one = find_plain_label(reply.text, by_name)
        answer = read_json(reply.text, "[") if one is None else [one]
    labels = find_labels(answer, by_name, max_labels)
    return Row(labels, labels is not None, reply)
