"""Named entities: where they stand in a text, and why they are entities."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.sax.saxutils import escape, unescape

from skllm_ray.prompts import fill_each
from skllm_ray.prompts.templates import (
    EXPLAINABLE_NER_DENSE_PROMPT_TEMPLATE,
    EXPLAINABLE_NER_SPARSE_PROMPT_TEMPLATE,
    NER_SYSTEM_MESSAGE_SPARSE,
    NER_SYSTEM_MESSAGE_TEMPLATE,
)
from skllm_ray.tasks.answers import final, read_json, unfenced, value_of
from skllm_ray.tasks.base import ChatRequest, Reply, Row
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


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
        return [ChatRequest(conversation(system, prompt), json_schema=schema) for prompt in prompts]

    def parse(self, texts: Sequence[str], replies: Sequence[Reply]) -> list[Row[tuple[Span, ...]]]:
        """Return one row per reply. Of an answer counts what stands in the text and is of a known type."""
        read = self._listed if self.sparse else self._marked
        rows: list[Row[tuple[Span, ...]]] = []
        for text, reply in zip(texts, replies, strict=True):
            found = read(text, reply.text) if reply.text is not None else ""
            if isinstance(found, str):
                rows.append(Row(None, False, reply, reason=found))
            else:
                rows.append(Row(tuple(found), True, reply))
        return rows

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

    def _listed(self, text: str, answer: str) -> list[Span] | str:
        """Return the spans of what a model listed, or why it is no such list."""
        start = final(answer).lstrip("`jsonJSON \n\t")
        parsed = read_json(answer, "[") if start.startswith("[") else read_json(answer, field="entities")
        listed = value_of(parsed, "entities") if isinstance(parsed, dict) else parsed
        if not isinstance(listed, list):
            return "The answer holds no list of entities."
        entries = [entry for item in listed if (entry := self._entry(item)) is not None]
        if listed and not any(_is_entry(item) for item in listed):
            return "The answer's entities have other fields than 'tag' and 'value'."
        return locate(text, entries)

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


def locate(text: str, entries: Sequence[tuple[str, str, str]]) -> list[Span]:
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

    Examples
    --------
    >>> [(span.start, span.end, span.tag) for span in locate("Ann met Ann", [("Ann", "PERSON", "")])]
    [(0, 3, 'PERSON'), (8, 11, 'PERSON')]
    """
    listed: dict[str, list[tuple[str, str]]] = {}
    for value, tag, reasoning in entries:
        listed.setdefault(value, []).append((tag, reasoning))
    places = {value: _places(text, value) for value in listed}
    taken: list[tuple[int, int]] = []
    spans: list[Span] = []
    for value in sorted(places, key=len, reverse=True):
        free = [place for place in places[value] if not any(_overlap(place, other) for other in taken)]
        for number, (start, end) in enumerate(free or places[value]):
            tag, reasoning = listed[value][min(number, len(listed[value]) - 1)]
            span = Span(start, end, tag, text[start:end], reasoning)
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
