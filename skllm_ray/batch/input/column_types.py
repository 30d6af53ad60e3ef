"""The one type of a column in all files of a job: decided by the types alone where that is enough, else by the values.

Every value keeps its meaning: the type is one that has an equal for each of them, or text. Which types are tried, in
this order:

- whole numbers: the smallest type that has room for both types; 64 bits with a sign, 64 bits without, a decimal;
- whole numbers and floats: double, 64-bit integers (where all floats are whole), text;
- decimals, also with whole numbers: a decimal of at most 38 digits, text; with floats: text;
- times: the finest unit of them, then coarser ones, text; dates among them are midnights. Times with different zones
  are told in UTC; with and without a zone: text;
- texts and bytes: text where all bytes are UTF-8, else bytes;
- lists, structs and maps: by what is inside; anything else: text (JSON for nested values).

What looking costs: nothing where all files agree. Else, for that column alone: the footer of each Parquet file once
more where the bounds of whole numbers decide; one pass over the column where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import pyarrow as pa

from skllm_ray.batch.input.exact import children, converted
from skllm_ray.batch.input.extensions import extension_of, plain_type, unwrapped
from skllm_ray.batch.input.kinds import inner_fields, is_bytes, is_list, is_text

Bounds = tuple[int, int]
_THREADS: Final = 16
_UNITS: Final = ("s", "ms", "us", "ns")
_DIGITS: Final = 38
"""Of a decimal, at most: what all readers of Parquet know."""
_DOUBLE_WHOLE: Final = 2**53


@dataclass(frozen=True)
class Column:
    """A column of a file.

    Attributes
    ----------
    field : pyarrow.Field
        Its type, and its extension type's name, if it has one.
    chunks : callable
        Gives the values, piece by piece; called where types alone do not decide.
    bounds : callable
        Gives the least and the largest whole number, where that is known without the values.
    """

    field: pa.Field
    chunks: Callable[[], Iterator[pa.Array]]
    bounds: Callable[[], Bounds | None] = lambda: None

    @property
    def type(self) -> pa.DataType:
        """The values' type."""
        return self.field.type

    def inside(self, at: int = 0) -> Column:
        """Return the column of a list's values, of a struct's field, of a map's keys (0) or values (1)."""
        return Column(inner_fields(self.type)[at], lambda: (children(chunk)[at] for chunk in self.chunks()))

    def plain(self) -> Column:
        """Return it without an extension type or a dictionary."""
        if extension_of(self.field):
            return Column(
                pa.field("", plain_type(self.field)), lambda: (unwrapped(one, self.field) for one in self.chunks())
            )
        if pa.types.is_dictionary(self.type):
            kind = self.type.value_type
            return Column(pa.field("", kind), lambda: (converted(chunk, kind) for chunk in self.chunks()))
        return replace(self, field=pa.field("", self.type))


def common_field(columns: Sequence[Column]) -> pa.Field:
    """Return a column, without a name, whose type has an equal for every value of all `columns`.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> columns = [Column(pa.field("", a.type), lambda a=a: iter([a])) for a in (pa.array([1]), pa.array([0.5]))]
    >>> common_field(columns).type
    DataType(double)
    """
    first = columns[0].field
    if all(one.field.with_name("").equals(first.with_name(""), check_metadata=True) for one in columns):
        return pa.field("", first.type, metadata=first.metadata)
    held = [one for one in (column.plain() for column in columns) if not pa.types.is_null(one.type)]
    types = list(dict.fromkeys(one.type for one in held))
    if not types:
        return pa.field("", pa.null())
    if len(types) == 1 and not pa.types.is_nested(types[0]):  # nested ones may differ in extension types
        return pa.field("", types[0])
    nested = _nested(held, types)
    if nested is not None:
        return pa.field("", nested)
    for kind in _candidates(types):
        if _all_fit(held, kind):
            return pa.field("", kind)
    raise ValueError(f"types {', '.join(map(str, types))} have no form in common that keeps every value")


# --- inside -------------------------------------------------------------------------------------------------------


def _nested(columns: Sequence[Column], types: Sequence[pa.DataType]) -> pa.DataType | None:
    """Return the common type of nested columns of one kind; None where they are not."""
    if all(map(is_list, types)):
        item = common_field([one.inside() for one in columns])
        sizes = {kind.list_size if pa.types.is_fixed_size_list(kind) else None for kind in types}
        size = sizes.pop() if len(sizes) == 1 else None
        if size is not None:
            return pa.list_(item.with_name("element"), size)
        return pa.list_(item.with_name("element"))
    if all(map(pa.types.is_map, types)):
        keys, values = (common_field([one.inside(at) for one in columns]) for at in (0, 1))
        return pa.map_(keys.type, values.type)
    if not all(map(pa.types.is_struct, types)):
        return None
    places: dict[str, list[Column]] = {}
    for one in columns:
        if len({field.name for field in one.type}) < one.type.num_fields:
            raise ValueError(f"two fields of {one.type} have one name")
        for at, field in enumerate(one.type):
            places.setdefault(field.name, []).append(one.inside(at))
    return pa.struct([common_field(some).with_name(name) for name, some in places.items()])


def _candidates(types: Sequence[pa.DataType]) -> list[pa.DataType]:
    """Return types to try, the best first."""
    has = [any(map(check, types)) for check in _FAMILIES]
    families = {name for name, there in zip(_FAMILY_NAMES, has, strict=True) if there}
    known = sum(any(check(kind) for check in _FAMILIES) for kind in types) == len(types)
    if not known:
        return [pa.string()]
    if families == {"text", "bytes"} or families == {"text"} or families == {"bytes"}:
        return _texts_and_bytes(types, families)
    if families <= {"int", "float", "decimal"}:
        return [*_numbers(types, families), pa.string()]
    if families <= {"date", "timestamp"}:
        return [*_times(types), pa.string()]
    if families == {"time"}:
        return [pa.time64("ns" if pa.time64("ns") in types else "us") if _has_64(types) else pa.time32("ms")]
    if families == {"duration"}:
        return [*(pa.duration(unit) for unit in _units(types)), pa.string()]
    return [pa.string()]


_FAMILY_NAMES: Final = ("text", "bytes", "int", "float", "decimal", "date", "timestamp", "time", "duration")
_FAMILIES: Final[tuple[Callable[[pa.DataType], bool], ...]] = (
    is_text, is_bytes, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_date,
    pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration,
)  # fmt: skip


def _texts_and_bytes(types: Sequence[pa.DataType], families: set[str]) -> list[pa.DataType]:
    large = any(pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) for kind in types)
    text, plain = (pa.large_string(), pa.large_binary()) if large else (pa.string(), pa.binary())
    return [text] if families == {"text"} else [plain] if families == {"bytes"} else [text, plain]


def _has_64(types: Sequence[pa.DataType]) -> bool:
    return any(map(pa.types.is_time64, types))


def _units(types: Sequence[pa.DataType]) -> list[str]:
    """Return the units of times, the finest first."""
    held = {kind.unit for kind in types if not pa.types.is_date(kind)}
    return [unit for unit in reversed(_UNITS) if unit in held]


def _times(types: Sequence[pa.DataType]) -> list[pa.DataType]:
    if all(map(pa.types.is_date, types)):
        return [pa.date32(), pa.timestamp("ms")]
    zones = {None if pa.types.is_date(kind) else kind.tz for kind in types}
    if None in zones and len(zones) > 1:
        return []
    zone = zones.pop() if len(zones) == 1 else "UTC"
    return [pa.timestamp(unit, zone) for unit in _units(types)]


def _numbers(types: Sequence[pa.DataType], families: set[str]) -> list[pa.DataType]:
    if families == {"float"}:
        return [pa.float64() if pa.float64() in types else pa.float32()]
    if families == {"int", "float"}:
        return [pa.float64(), pa.int64()]
    if families != {"int"}:
        return _decimals(types) if "float" not in families else []
    signed = [kind for kind in types if pa.types.is_signed_integer(kind)]
    if not signed:
        return [max(types, key=lambda kind: kind.bit_width)]
    if pa.uint64() in types:
        return [pa.int64(), pa.uint64(), pa.decimal128(20, 0)]
    needed = max(kind.bit_width * (1 if kind in signed else 2) for kind in types)
    return [{8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[needed]]


def _decimals(types: Sequence[pa.DataType]) -> list[pa.DataType]:
    decimals = [kind for kind in types if pa.types.is_decimal(kind)]
    scale = max(0, *(kind.scale for kind in decimals))
    before = max(_whole_digits(kind) for kind in types)
    return [pa.decimal128(min(_DIGITS, before + scale), scale)] if scale <= _DIGITS else []


def _whole_digits(kind: pa.DataType) -> int:
    return kind.precision - kind.scale if pa.types.is_decimal(kind) else len(str(_bounds_of(kind)[1]))


def _all_fit(columns: Sequence[Column], kind: pa.DataType) -> bool:
    rest = iter([one for one in columns if not _certain(one.type, kind)])
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(islice(rest, _THREADS)):
            if not all(pool.map(lambda one: _fits(one, kind), some)):
                return False
    return True


def _certain(here: pa.DataType, kind: pa.DataType) -> bool:
    """Return whether every value of a type has an equal in another."""
    if here == kind or (is_text(kind) and not _may_hold_bytes(here)) or (is_text(here) and is_bytes(kind)):
        return True
    if pa.types.is_timestamp(here) and pa.types.is_timestamp(kind):  # the same instants, told in UTC
        return bool(here.unit == kind.unit and here.tz and kind.tz)
    if pa.types.is_floating(here):
        return bool(pa.types.is_floating(kind))
    if pa.types.is_decimal(here) and pa.types.is_decimal(kind):
        return bool(kind.scale >= here.scale and kind.precision - kind.scale >= here.precision - here.scale)
    if not pa.types.is_integer(here):
        return bool(pa.types.is_time(here) or (is_bytes(here) and is_bytes(kind)))
    return _within(_bounds_of(here), kind)


def _fits(column: Column, kind: pa.DataType) -> bool:
    """Return whether every value of a column has an equal in a type."""
    if pa.types.is_integer(column.type):
        bounds = column.bounds()
        if bounds is not None and not is_text(kind):
            return _within(bounds, kind)
    try:
        for chunk in column.chunks():
            converted(chunk, kind)
    except (ValueError, pa.ArrowNotImplementedError):
        return False
    return True


def _within(bounds: Bounds, kind: pa.DataType) -> bool:
    """Return whether all whole numbers between two have an equal in a type of numbers."""
    if pa.types.is_decimal(kind):
        return bool(max(map(abs, bounds)) < 10 ** (kind.precision - kind.scale))
    if pa.types.is_integer(kind):
        least, most = _bounds_of(kind)
        return bool(least <= bounds[0] and bounds[1] <= most)
    return bool(kind == pa.float64() and max(map(abs, bounds)) <= _DOUBLE_WHOLE)


def _bounds_of(kind: pa.DataType) -> Bounds:
    signed = pa.types.is_signed_integer(kind)
    bits = kind.bit_width - signed
    return (-(2**bits) if signed else 0), 2**bits - 1


def _may_hold_bytes(kind: pa.DataType) -> bool:
    if is_bytes(kind):
        return True
    if pa.types.is_dictionary(kind):
        return _may_hold_bytes(kind.value_type)
    return any(extension_of(one) or _may_hold_bytes(one.type) for one in inner_fields(kind))
