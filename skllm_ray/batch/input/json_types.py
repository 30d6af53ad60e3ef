"""Types of JSON values, learnt block by block, whatever the order and the size of the blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import pyarrow as pa

from skllm_ray.batch.input.exact import converted
from skllm_ray.batch.input.kinds import is_bytes, is_list, is_text

MOST_LEVELS: Final = 20
"""How deep values may nest to have columns of nested types; deeper ones are kept as JSON texts."""
MOST_KEYS: Final = 1000
"""How many different keys the objects of a column may have, in all, for the same."""
_INT64: Final = 2**63
_DOUBLE_WHOLE: Final = 2**53


class _TooMuchError(Exception):
    """Values nest too deep, or have too many keys."""


@dataclass
class _Node:
    kinds: set[type] = field(default_factory=set)
    least: int = 0
    most: int = 0
    items: _Node | None = None
    fields: dict[str, _Node] = field(default_factory=dict)


class JsonType:
    """What one column's values have been so far."""

    def __init__(self) -> None:
        self._root = _Node()
        self._keys = 0
        self._is_text = False

    def learn(self, values: Sequence[Any]) -> None:
        """Take some more values."""
        if self._is_text:
            return
        try:
            self._learn(self._root, values, 1)
        except _TooMuchError:
            self._is_text = True
            self._root = _Node()

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The least and the largest of whole numbers."""
        return (self._root.least, self._root.most) if self._root.kinds == {int} else None

    def arrow(self) -> pa.DataType:
        """Return the type in which every value has an equal: text, where no other does."""
        return pa.string() if self._is_text else _arrow(self._root)

    def _learn(self, node: _Node, values: Sequence[Any], level: int) -> None:
        kinds = set(map(type, values)) - {type(None)}
        node.kinds |= kinds
        if int in kinds:
            numbers = [value for value in values if type(value) is int]
            node.least, node.most = min(node.least, *numbers), max(node.most, *numbers)
        if level > MOST_LEVELS and kinds & {list, dict}:
            raise _TooMuchError
        if list in kinds:
            node.items = node.items or _Node()
            lists = (value for value in values if type(value) is list)
            self._learn(node.items, list(chain.from_iterable(lists)), level + 1)
        if dict in kinds:
            self._learn_objects(node, (value for value in values if type(value) is dict), level)

    def _learn_objects(self, node: _Node, objects: Iterable[dict[str, Any]], level: int) -> None:
        held: dict[str, list[Any]] = {}
        for one in objects:
            for key, value in one.items():
                place = held.get(key)
                if place is None:
                    place = held[key] = []
                    if key not in node.fields:
                        node.fields[key] = _Node()
                        self._keys += 1
                        if self._keys > MOST_KEYS:
                            raise _TooMuchError
                place.append(value)
        for key, values in held.items():
            self._learn(node.fields[key], values, level + 1)


def _arrow(node: _Node) -> pa.DataType:
    kinds = set(node.kinds)
    within = node.least >= -_INT64 and node.most < _INT64
    if kinds == {int, float} and max(-node.least, node.most) <= _DOUBLE_WHOLE:
        return pa.float64()
    if len(kinds) > 1:
        return pa.string()
    if kinds == {int}:
        return pa.int64() if within else pa.string()
    if kinds == {list} and node.items is not None:
        return pa.list_(_arrow(node.items))
    if kinds == {dict} and node.fields:  # an object without fields has no form in Parquet
        return pa.struct([pa.field(name, _arrow(one)) for name, one in node.fields.items()])
    if not kinds:
        return pa.null()
    return pa.bool_() if bool in kinds else pa.float64() if float in kinds else pa.string()


def json_array(values: Iterable[Any], kind: pa.DataType, exact: bool = True) -> pa.Array:
    """Return JSON values as a column of a type that fits them; without `exact`, large whole numbers as floats nearby.

    Raises
    ------
    ValueError
        If one of them has no equal there.
    """
    held = list(values)
    kinds = set(map(type, held)) - {type(None)}
    if pa.types.is_dictionary(kind):
        return converted(json_array(held, kind.value_type, exact), kind)
    if not kinds or kinds == {_PLAIN.get(str(kind))}:
        return pa.array(held, kind)
    if pa.types.is_nested(kind):
        own = JsonType()
        own.learn(held)
        if own.arrow() == kind:
            with suppress(pa.ArrowTypeError):  # values of several types, which are texts
                return pa.array(held, kind)
    most = _DOUBLE_WHOLE if exact else float("inf")
    return pa.array([_fitted(value, kind, most) for value in held], kind)


_PLAIN: Final = {"int64": int, "double": float, "bool": bool, "string": str, "large_string": str}


def _fitted(value: Any, kind: pa.DataType, most: float) -> Any:
    """Return a value in the form that a column of `kind` takes: Arrow itself would cut 2.5 to 2 for one of integers."""
    if value is None:
        return None
    if is_text(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and is_bytes(kind):
        return value.encode()
    if isinstance(value, list) and is_list(kind):
        return [_fitted(one, kind.value_type, most) for one in value]
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return {one.name: _fitted(value.get(one.name), one.type, most) for one in kind}
    found: bool | float | None = None
    if isinstance(value, bool):
        found = value if pa.types.is_boolean(kind) else None
    elif isinstance(value, int):
        whole = pa.types.is_integer(kind) or pa.types.is_decimal(kind)
        found = value if whole else float(value) if pa.types.is_floating(kind) and abs(value) <= most else None
    elif pa.types.is_integer(kind) and isinstance(value, float):
        found = int(value) if value.is_integer() and (value or math.copysign(1, value) > 0) else None
    else:
        found = value if isinstance(value, float) and pa.types.is_floating(kind) else None
    if found is None:
        raise ValueError(f"a JSON {type(value).__name__} has no equal in {kind}")
    return found
