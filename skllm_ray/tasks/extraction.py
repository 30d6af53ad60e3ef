"""Structured extraction: the fields of a schema, taken from texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skllm_ray.prompts import fill_each
from skllm_ray.prompts.templates import EXTRACTION_PROMPT_TEMPLATE, EXTRACTION_SYSTEM_MESSAGE
from skllm_ray.tasks.answer_bound import with_bounds
from skllm_ray.tasks.answers import read_json
from skllm_ray.tasks.base import ChatRequest, Reply, Row
from skllm_ray.tasks.field_confidence import Written, without_tokens
from skllm_ray.tasks.text import conversation


@dataclass(frozen=True)
class ExtractionTask:
    """Extract an object that follows a JSON schema. A row's value is what `validate` returns.

    Parameters
    ----------
    schema : mapping
        The JSON schema, as :func:`strict` returns it.
    validate : callable
        Takes the parsed answer; returns the row's value, or raises ``ValueError`` where it does not follow the schema.
    template : str
        A ``str.format`` string with ``{x}`` and ``{schema}``.
    """

    schema: Mapping[str, Any]
    validate: Callable[[Any], Mapping[str, Any]]
    template: str = EXTRACTION_PROMPT_TEMPLATE

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        schema, values = dict(self.schema), {"schema": json.dumps(self.schema, ensure_ascii=False)}
        prompts = fill_each(self.template, texts, values)
        asked = [ChatRequest(conversation(EXTRACTION_SYSTEM_MESSAGE, one), json_schema=schema) for one in prompts]
        return with_bounds(asked, texts)

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[Mapping[str, Any]]]:  # noqa: ARG002
        """Return one row per reply; an answer that does not follow the schema is not valid."""
        return [self._row(reply) for reply in replies]

    def _row(self, reply: Reply) -> Row[Mapping[str, Any]]:
        answer = read_json(reply.text)
        if not isinstance(answer, dict):
            return Row(None, False, reply, reason="The answer holds no JSON object.")
        fields, given = set(self.schema.get("properties", answer)), set(answer)
        if not fields & given or (given - fields and fields - given):  # defaults must not pass for what was read
            missing = ", ".join(map(repr, sorted(fields - given)))
            return Row(None, False, reply, reason=f"The answer lacks {missing} and has other fields in place of them.")
        try:
            value = self.validate(answer)
        except (ValueError, TypeError):
            return Row(None, False, reply, reason="The answer does not follow the schema.")
        written, probability, by_field = Written(reply, answer), None, None
        if written.is_known:
            spans = written.members()
            probability = written.probability(list(spans.values()))
            by_field = {name: written.probability([spans[name]]) if name in spans else None for name in sorted(fields)}
        return Row(value, True, without_tokens(reply), probability=probability, field_probabilities=by_field)


def strict(schema: Any) -> Any:
    """Return a JSON schema in the subset that strict structured output takes: all fields required, no others allowed.

    Examples
    --------
    >>> strict({"type": "object", "properties": {"a": {"type": "string", "default": ""}}})
    {'type': 'object', 'properties': {'a': {'type': 'string'}}, 'additionalProperties': False, 'required': ['a']}
    """
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {name: part for name, part in schema.items() if name not in {"default", "title"}}
    found = {
        name: {key: strict(value) for key, value in part.items()} if name in {"properties", "$defs"} else strict(part)
        for name, part in found.items()
    }
    if found.get("type") == "object" and "properties" in found:
        found["additionalProperties"] = False
        found["required"] = list(found["properties"])
    return found
