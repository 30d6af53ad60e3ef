"""The most tokens that a whole answer can need: derived from its form, and from the text that it is about.

No tokenizer makes more tokens than there are bytes, so bytes are counted. A bound is there to end what a model writes
without end, white space above all; it is generous rather than close, and a task knows it where no server does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from skllm_ray.tasks.base import ChatRequest

FREE_TEXT: Final = 1024
"""What each field of free text may take; more where the text itself is longer."""
IN_LIST: Final = 32
"""What a text in each entry of a list may take, besides what all entries copy from the text."""
_PER_FIELD: Final = 24  # white space, quotes, a comma
_ROOM: Final = 64
_NUMBER: Final = 40
_FEW: Final = 16  # entries that a list with a length of its own may have to count one by one
_MARKS: Final = len("<entity><reasoning></reasoning><tag></tag><value></value></entity><not_entity></not_entity>\n")


@dataclass(frozen=True, slots=True)
class _Size:
    """What a value takes: `fixed`, one text for each `free`, the text itself for each `copies`, `entry` per entry."""

    fixed: int = 0
    free: int = 0
    copies: int = 0
    entry: int = 0

    def __add__(self, other: _Size) -> _Size:
        return _Size(
            self.fixed + other.fixed, self.free + other.free, self.copies + other.copies, self.entry + other.entry
        )


def of_schema(schema: Mapping[str, Any]) -> _Size | None:
    """Return what an answer of a JSON schema takes; None where it may hold itself, and so anything.

    Examples
    --------
    >>> of_schema({"type": "object", "properties": {"n": {"type": "integer"}, "why": {"type": "string"}}})
    _Size(fixed=96, free=1, copies=0, entry=0)
    """
    try:
        return _size(schema, schema.get("$defs", {}), ())
    except RecursionError:
        return None


def tokens(size: _Size | None, text: str) -> int | None:
    """Return the most tokens of an answer about `text`.

    Examples
    --------
    >>> tokens(of_schema({"type": "string", "enum": ["a", "b"]}), "any text")
    67
    """
    if size is None:
        return None
    n_bytes = len(json.dumps(text))
    whole = size.fixed + size.free * max(FREE_TEXT, n_bytes) + size.copies * n_bytes
    return whole + size.entry * _n_entries(n_bytes) + _ROOM


def of_marked(text: str, tags: Sequence[str]) -> int:
    """Return the most tokens of a text that is repeated with its entities marked.

    Examples
    --------
    >>> of_marked("Ann met Bob.", ["PERSON"])
    1262
    """
    n_bytes = len(json.dumps(text))
    per_entity = _MARKS + IN_LIST + max(map(len, tags), default=0)
    return 2 * n_bytes + per_entity * _n_entries(n_bytes) + _ROOM


def with_bounds(requests: Sequence[ChatRequest], texts: Sequence[str]) -> list[ChatRequest]:
    """Note in requests for objects, made of `texts`, how long an answer can be."""
    sizes: dict[int, _Size | None] = {}
    for request, text in zip(requests, texts, strict=True):
        schema = request.json_schema or {}
        if id(schema) not in sizes:  # the same for all rows
            sizes[id(schema)] = of_schema(schema)
        request.answer_bound = tokens(sizes[id(schema)], text)
    return list(requests)


def _n_entries(n_bytes: int) -> int:
    """Return how many entries a list about a text may have: as many as it has words, and some."""
    return 8 + n_bytes // 8


def _size(schema: Any, defined: Mapping[str, Any], inside: tuple[str, ...]) -> _Size:
    if not isinstance(schema, Mapping):
        return _Size(free=1)
    name = schema.get("$ref")
    if name is not None:
        if name in inside:
            raise RecursionError
        return _size(defined.get(str(name).rpartition("/")[2]), defined, (*inside, name))
    closed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if closed is not None:
        return _Size(max((len(json.dumps(value)) for value in closed), default=0))
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return _largest([_size(one, defined, inside) for one in several])
    if schema.get("allOf"):
        return sum((_size(one, defined, inside) for one in schema["allOf"]), _Size())
    return _plain(schema, defined, inside)


def _plain(schema: Mapping[str, Any], defined: Mapping[str, Any], inside: tuple[str, ...]) -> _Size:
    kind = schema.get("type")
    if isinstance(kind, list):
        return _largest([_plain({**schema, "type": one}, defined, inside) for one in kind])
    if kind in {"integer", "number", "boolean", "null"}:
        return _Size(_NUMBER)
    if kind == "array":
        return _list(_size(schema.get("items"), defined, inside), schema.get("maxItems"))
    if kind == "object" and "properties" in schema:
        fields = schema["properties"].items()
        return sum((_Size(len(json.dumps(n)) + _PER_FIELD) + _size(v, defined, inside) for n, v in fields), _Size())
    if kind == "object":
        return _list(_Size(_PER_FIELD, free=1) + _size(schema.get("additionalProperties"), defined, inside), None)
    most = schema.get("maxLength")
    return _Size(6 * most) if isinstance(most, int) and 6 * most < FREE_TEXT else _Size(free=1)


def _list(entry: _Size, most: object) -> _Size:
    if isinstance(most, int) and most <= _FEW:
        return sum([entry] * most, _Size(_PER_FIELD))
    each = entry.fixed + IN_LIST * (entry.free + entry.copies) + entry.entry + _PER_FIELD
    return _Size(_PER_FIELD, copies=entry.free + entry.copies, entry=each)


def _largest(sizes: Sequence[_Size]) -> _Size:
    return _Size(
        max(one.fixed for one in sizes),
        max(one.free for one in sizes),
        max(one.copies for one in sizes),
        max(one.entry for one in sizes),
    )
