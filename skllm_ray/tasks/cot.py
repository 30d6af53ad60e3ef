"""Classification with reasoning: the model explains itself before it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skllm_ray.prompts.templates import COT_CLF_PROMPT_TEMPLATE, COT_MLCLF_PROMPT_TEMPLATE
from skllm_ray.tasks.answer_bound import with_bounds
from skllm_ray.tasks.answers import find_label, find_labels, labels_by_name, read_json, value_of
from skllm_ray.tasks.base import ChatRequest, Reply, Row
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask
from skllm_ray.tasks.field_confidence import Written, without_tokens


@dataclass(frozen=True)
class CoTTask(ZeroShotTask):
    """Explain, then choose one of the labels. A row's value is the label and the explanation."""

    template: str = COT_CLF_PROMPT_TEMPLATE

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        return with_bounds(_explained(super().render(texts)), texts)

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[Any]]:  # noqa: ARG002
        """Return one row per reply."""
        by_name = labels_by_name(self.labels)
        return [_row(reply, lambda answer: find_label(answer, by_name)) for reply in replies]


@dataclass(frozen=True)
class MultiLabelCoTTask(MultiLabelZeroShotTask):
    """Explain, then choose any of the labels. A row's value is the labels and the explanation."""

    template: str = COT_MLCLF_PROMPT_TEMPLATE

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        return with_bounds(_explained(super().render(texts)), texts)

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[Any]]:  # noqa: ARG002
        """Return one row per reply."""
        by_name = labels_by_name(self.labels)
        return [_row(reply, lambda answer: find_labels(answer, by_name, self.max_labels)) for reply in replies]


def _explained(requests: Sequence[ChatRequest]) -> list[ChatRequest]:
    """Ask for an object with an explanation before the label, in place of a label alone."""
    schema: dict[str, Any] = {}
    explained = []
    for request in requests:
        if request.choices is not None and not schema:  # the same for all rows
            label = request.choices.json_schema()["properties"]["label"]
            schema = {
                "type": "object",
                "properties": {"explanation": {"type": "string"}, "label": label},
                "required": ["explanation", "label"],
                "additionalProperties": False,
            }
        explained.append(replace(request, choices=None, json_schema=schema))
    return explained


def _row(reply: Reply, read: Any) -> Row[tuple[Any, str]]:
    answer = read_json(reply.text, field="label")
    found = read(value_of(answer, "label"))
    explanation = str(value_of(answer, "explanation") or "")
    if found is None:
        return Row(None, False, reply)
    written = Written(reply, answer)
    spans = [span for name, span in written.members().items() if name == "label"] if written.is_known else []
    probability = written.probability(spans) if spans else None
    return Row((found, explanation), True, without_tokens(reply), probability=probability)
