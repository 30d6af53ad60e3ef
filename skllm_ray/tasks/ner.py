"""Named entities: where they stand in a text, and why they are entities."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape, unescape

from skllm_ray.prompts import fill_each
from skllm_ray.prompts.templates import (
    EXPLAINABLE_NER_DENSE_PROMPT_TEMPLATE,
    EXPLAINABLE_NER_SPARSE_PROMPT_TEMPLATE,
    NER_SYSTEM_MESSAGE_SPARSE,
    NER_SYSTEM_MESSAGE_TEMPLATE,
)
from skllm_ray.tasks.answer_bound import of_marked, with_bounds
from skllm_ray.tasks.answers import final, read_json, unfenced, value_of
from skllm_ray.tasks.base import ChatRequest, Reply, Row
from skllm_ray.tasks.field_confidence import Written, without_tokens
from skllm_ray.tasks.text import conversation

_SEGMENT = re.compile(r"<not_entity>(.*?)</not_entity>|<entity>(.*?)</entity>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """An entity and its place: ``text[start:end]`` is its `value`."""

    start: int
    end: int
    tag: str
    value: str
    reasoning: str = ""
    probability: float | None = field(default=None, compare=False)
    """How likely the model was to name this value and this type; None where that is not known."""

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as a dict; how likely it was stands apart."""
        names = ("start", "end", "tag", "value", "reasoning")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class NERTask:
    """Find the entities of a text. A row's value is a tuple of spans, in the order of the text.

    Parameters
    ----------
    entities : mapping of str to str
        Each type's name and what it means.
    sparse : bool, default=True
        Whether the model lists the entities; else it repeats the text with the entities marked.
    """

    entities: Mapping[str, str]
    sparse: bool = True

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text."""
        lines = [f"- {json.dumps(name, ensure_ascii=False)}: {meaning}" for name, meaning in self.entities.items()]
        names = json.dumps(list(self.entities), ensure_ascii=False)
        template, system, schema = EXPLAINABLE_NER_DENSE_PROMPT_TEMPLATE, NER_SYSTEM_MESSAGE_SPARSE, None
        if self.sparse:
            template, schema = EXPLAINABLE_NER_SPARSE_PROMPT_TEMPLATE, self._schema()
            system = NER_SYSTEM_MESSAGE_TEMPLATE.format(entities=names)
        values = {"entities": "\n".join(lines)}
        prompts = fill_each(template, texts, values)
        asked = [ChatRequest(conversation(system, prompt), json_schema=schema) for prompt in prompts]
        if self.sparse:
            return with_bounds(asked, texts)
        for request, text in zip(asked, texts, strict=True):
            request.answer_bound = of_marked(text, list(self.entities))
        return asked

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[tuple[Span, ...]]]:
        """Return one row per reply. Of an answer counts what stands in the text and is of a known type."""
        return [self._row(text, reply) for text, reply in zip(texts, replies, strict=True)]

    def _row(self, text: str, reply: Reply) -> Row[tuple[Span, ...]]:
        if reply.text is None:
            return Row(None, False, reply)
        probability, found = self._listed(text, reply) if self.sparse else (None, self._marked(text, reply.text))
        if isinstance(found, str):
            return Row(None, False, reply, reason=found)
        return Row(tuple(found), True, without_tokens(reply), probability=probability)

    def _schema(self) -> dict[str, Any]:
        item = {
            "type": "object",
            "properties": {
                "reasoning": {"type": "string"},
                "tag": {"type": "string", "enum": list(self.entities)},
                "value": {"type": "string"},
            },
            "required": ["reasoning", "tag", "value"],
            "additionalProperties": False,
        }
        return {
            "type": "object",
            "properties": {"entities": {"type": "array", "items": item}},
            "required": ["entities"],
            "additionalProperties": False,
        }

    def _listed(self, text: str, reply: Reply) -> tuple[float | None, list[Span] | str]:
        """Return the spans of what a model listed, or why it is no such list; and how likely the list was."""
        answer = reply.text or ""
        start = final(answer).lstrip("`jsonJSON \n\t")
        parsed = read_json(answer, "[") if start.startswith("[") else read_json(answer, field="entities")
        listed = value_of(parsed, "entities") if isinstance(parsed, dict) else parsed
        if not isinstance(listed, list):
            return None, "The answer holds no list of entities."
        if listed and not any(_is_entry(item) for item in listed):
            return None, "The answer's entities have other fields than 'tag' and 'value'."
        whole, each = _probabilities(Written(reply, parsed), len(listed))
        entries = [(self._entry(item), one) for item, one in zip(listed, each, strict=True)]
        known = [(entry, one) for entry, one in entries if entry is not None]
        return whole, locate(text, [entry for entry, _ in known], [one for _, one in known])

    def _entry(self, item: object) -> tuple[str, str, str] | None:
        value, tag = value_of(item, "value"), self._tag(value_of(item, "tag"))
        if not isinstance(value, str) or not value.strip() or tag is None:
            return None
        return value, tag, str(value_of(item, "reasoning") or "")

    def _tag(self, tag: object) -> str | None:
        """Return the type that `tag` names, as a whole: neither a pattern nor the beginning of another's name."""
        if not isinstance(tag, str):
            return None
        if tag in self.entities:
            return tag
        alike = [name for name in self.entities if name.casefold() == tag.strip().casefold()]
        return alike[0] if len(alike) == 1 else None

    def _marked(self, text: str, answer: str) -> list[Span] | str:
        """Return the spans of a text that the model repeated, walking along the original: that alone is trusted."""
        segments = list(_SEGMENT.finditer(unfenced(answer)))
        if not segments:
            return "The answer marks nothing, neither as an entity nor as none."
        named = [_element(segment[2], "tag") for segment in segments if segment[2] is not None]
        if named and not any(named):
            return "The answer's entities have no tags."
        spans, position = [], 0
        for segment in segments:
            inner = segment[2]
            if inner is None:
                there = _find(text, segment[1], position)
                position = there[1] if there else position
                continue
            value = _element(inner, "value") or ""
            tag, there = self._tag(_element(inner, "tag")), _find(text, value, position)
            if not there or not value.strip():
                continue
            position = there[1]
            if tag is not None:
                spans.append(Span(*there, tag, text[slice(*there)], _element(inner, "reasoning") or ""))
        return spans


def locate(
    text: str, entries: Sequence[tuple[str, str, str]], probabilities: Sequence[float | None] = ()
) -> list[Span]:
    """Return where the values of `entries` stand in `text`, in its order.

    Parameters
    ----------
    text : str
        The text.
    entries : sequence of (value, tag, reasoning)
        What a model listed. A value that is listed once counts wherever it stands; one that is listed several times
        counts place by place, the last entry for all places that are left. Whole words come first: ``Ann`` is looked
        for inside ``Annual`` only where it stands nowhere alone. A value that stands only inside a longer one
        keeps its place there; where it also stands alone, the places inside others do not count.
    probabilities : sequence of float or None, default=()
        How likely each entry was, where that is known.

    Examples
    --------
    >>> [(span.start, span.end, span.tag) for span in locate("Ann met Ann", [("Ann", "PERSON", "")])]
    [(0, 3, 'PERSON'), (8, 11, 'PERSON')]
    """
    listed: dict[str, list[tuple[str, str, float | None]]] = {}
    for (value, tag, reasoning), probability in zip(entries, probabilities or [None] * len(entries), strict=True):
        listed.setdefault(value, []).append((tag, reasoning, probability))
    places = {value: _places(text, value) for value in listed}
    taken: list[tuple[int, int]] = []
    spans: list[Span] = []
    for value in sorted(places, key=len, reverse=True):
        free = [place for place in places[value] if not any(_overlap(place, other) for other in taken)]
        for number, (start, end) in enumerate(free or places[value]):
            tag, reasoning, probability = listed[value][min(number, len(listed[value]) - 1)]
            span = Span(start, end, tag, text[start:end], reasoning, probability)
            if span not in spans:
                spans.append(span)
        taken += free
    return sorted(spans, key=lambda span: (span.start, -span.end))


def tagged(text: str, spans: Sequence[Span]) -> str:
    """Return `text` with its entities marked, as scikit-llm writes them.

    Characters that mean something in XML are escaped, so that :func:`untagged` always gives the text back. Of spans
    that overlap, the longest is marked.

    Examples
    --------
    >>> tagged("I < Ann", [Span(4, 7, "PERSON", "Ann", "why")])
    '<not_entity>I &lt; </not_entity><entity><reasoning>why</reasoning><tag>PERSON</tag><value>Ann</value></entity>'
    """
    parts, position = [], 0
    for span in flat(spans):
        if span.start > position:
            parts.append(f"<not_entity>{escape(text[position : span.start])}</not_entity>")
        inner = {"reasoning": span.reasoning, "tag": span.tag, "value": text[span.start : span.end]}
        parts.append(f"<entity>{''.join(f'<{name}>{escape(told)}</{name}>' for name, told in inner.items())}</entity>")
        position = span.end
    if position < len(text) or not parts:
        parts.append(f"<not_entity>{escape(text[position:])}</not_entity>")
    return "".join(parts)


def untagged(marked: str) -> str:
    """Return the text that :func:`tagged` marked.

    Examples
    --------
    >>> untagged(tagged("Ann < Bob", [Span(0, 3, "PERSON", "Ann", "a name")]))
    'Ann < Bob'
    """
    pieces = (
        found[1] if found[1] is not None else _element(found[2], "value") or "" for found in _SEGMENT.finditer(marked)
    )
    return "".join(unescape(piece) for piece in pieces)


def flat(spans: Sequence[Span]) -> list[Span]:
    """Return the spans that do not overlap: of those that do, the longest, then the first."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start)):
        if not any(_overlap((span.start, span.end), (other.start, other.end)) for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def _probabilities(written: Written, n_entries: int) -> tuple[float | None, list[float | None]]:
    """Return how likely a list of entities was, and each of them; where it is empty, that of its end."""
    top = written.members() if written.is_known else {}
    place = top.get("entities")
    if place is None and not (top or n_entries == 0):
        return None, [None] * n_entries
    items = written.members(place[0]) if place is not None else top
    if not written.is_known or len(items) != n_entries:
        return None, [None] * n_entries
    if place is not None and not items:
        return written.probability([place]), []
    members = [written.members(start) for start, _ in items.values()]
    told = [[span for name, span in one.items() if name in {"tag", "value"}] for one in members]
    return written.probability([span for spans in told for span in spans]), [written.probability(one) for one in told]


def _is_entry(item: object) -> bool:
    """Return whether a model listed an entity in the form asked for, be it of a type that was not."""
    return isinstance(value_of(item, "value"), str) and isinstance(value_of(item, "tag"), str)


def _places(text: str, value: str) -> list[tuple[int, int]]:
    """Return all places of `value`: as whole words, else inside words, else in another case or with other spaces."""
    literal = re.escape(value)
    loose = r"\s+".join(map(re.escape, value.split()))
    for pattern, flags in ((rf"(?<!\w){literal}(?!\w)", 0), (literal, 0), (loose, re.IGNORECASE)):
        found = [match.span() for match in re.finditer(pattern, text, flags)]
        if found:
            return found
    return []


def _find(text: str, part: str, position: int) -> tuple[int, int] | None:
    """Return the next place of `part`, be it repeated as it is, escaped, or with other white space."""
    for form in dict.fromkeys((part, unescape(part))):
        start = text.find(form, position)
        if start >= 0 and form:
            return start, start + len(form)
    words = unescape(part).split()
    match = re.compile(r"\s+".join(map(re.escape, words))).search(text, position) if words else None
    return match.span() if match else None


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _element(inner: str, name: str) -> str | None:
    found = re.search(rf"<{name}>(.*?)</{name}>", inner, re.DOTALL)
    return found[1] if found else None
