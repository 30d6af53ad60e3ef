"""Values of one type as those of another: exactly, or as texts; never changed.

Arrow's own casts change some values without a word (a far date becomes "<value out of range>", minus zero becomes
zero), and know no way from many nested types to others. What cannot be converted exactly raises an error here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skllm_ray.batch.input.extensions import bare, extension_of, plain_type, told_of, unwrapped
from skllm_ray.batch.input.kinds import inner_fields, is_bytes, is_list, is_text


def children(array: pa.Array) -> list[pa.Array]:
    """Return what stands in a nested array: a list's values, a struct's fields, a map's keys and values."""
    if array.null_count:  # Arrow cannot take values of extension types from between nulls
        array = array.cast(bare(array.type))
    if pa.types.is_struct(array.type):
        return list(array.flatten())
    if pa.types.is_map(array.type):
        array = array.drop_null()
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return [array.keys[first:last], array.items[first:last]]
    return [array.flatten()]


def rebuilt(array: pa.Array, inside: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    """Return a nested array of type `kind` with other `inside` in place of `children(array)`."""
    mask = array.is_null()
    if pa.types.is_struct(kind):
        if not inside:
            return pa.array([{}] * len(array), kind, mask=mask.to_numpy(zero_copy_only=False))
        return pa.StructArray.from_arrays(inside, fields=list(kind), mask=mask)
    if pa.types.is_fixed_size_list(kind):
        return _fixed_size_lists(array, inside[0], kind)
    if pa.types.is_map(array.type):
        lengths = pa.array(np.diff(array.offsets.to_numpy(zero_copy_only=False)), pa.int64())
        lengths = pc.if_else(mask, 0, lengths)
    else:
        lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths.to_numpy(zero_copy_only=False)))), pa.int64())
    mask = mask if array.null_count else None
    if pa.types.is_map(kind):
        return pa.MapArray.from_arrays(offsets.cast(pa.int32()), *inside, type=kind, mask=mask)
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(offsets, inside[0], type=kind, mask=mask)
    return pa.ListArray.from_arrays(offsets.cast(pa.int32()), inside[0], type=kind, mask=mask)


def as_field(array: pa.Array, here: pa.Field, wanted: pa.Field) -> pa.Array:
    """Return the values of a column as those of another, whose extension type may be another, too.

    Raises
    ------
    ValueError
        If one of them has no equal there, or means nothing without its extension type.
    """
    if extension_of(here) != extension_of(wanted) or told_of(here) != told_of(wanted):
        array = unwrapped(array, here)
    return converted(array, wanted.type)


def converted(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return an array's values as those of `kind`.

    Raises
    ------
    ValueError
        If one of them has no equal there (`pyarrow.ArrowInvalid` is one).
    """
    here = array.type
    if here == kind:
        return array
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(here, pa.BaseExtensionType):
            raise ValueError(f"{here} has no equal in {kind}")
        return kind.wrap_array(converted(array, kind.storage_type))
    if isinstance(here, pa.BaseExtensionType):
        return converted(array.storage, kind)
    if pa.types.is_null(here):
        return pa.nulls(len(array), kind)
    if pa.types.is_dictionary(here):
        return _from_dictionary(array, kind)
    if pa.types.is_dictionary(kind):
        return converted(array, kind.value_type).dictionary_encode().cast(kind)
    if is_text(kind):
        return array.cast(kind) if is_text(here) else texts(array).cast(kind)
    if pa.types.is_nested(here):
        return _nested(array, kind)
    return _scalars(array, kind)


def texts(array: pa.Array) -> pa.Array:
    """Return values as texts that tell them exactly; nested ones as JSON.

    Times with a zone are told in UTC, durations with their unit.

    Raises
    ------
    ValueError
        If there are bytes that are no UTF-8.
    """
    kind = array.type
    if pa.types.is_nested(kind):
        plain = converted(array, _json_field(pa.field("", kind)).type).to_pylist()
        return pa.array([None if v is None else json.dumps(v, ensure_ascii=False) for v in plain], pa.string())
    if pa.types.is_duration(kind):
        return pc.binary_join_element_wise(array.cast(pa.int64()).cast(pa.string()), kind.unit, " ")
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        array = array.cast(pa.timestamp(kind.unit, "UTC"))
    if pa.types.is_fixed_size_binary(kind):
        array = array.cast(pa.binary())
    found = array.cast(pa.string())
    if pa.types.is_temporal(kind) and pc.any(pc.starts_with(found, "<")).as_py():
        return _far_texts(array)
    return found


# --- inside -------------------------------------------------------------------------------------------------------


def _from_dictionary(array: pa.DictionaryArray, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(kind):
        return converted(array.dictionary_decode(), kind)
    indices = array.indices.cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(indices, converted(array.dictionary, kind.value_type), ordered=kind.ordered)


def _nested(array: pa.Array, kind: pa.DataType) -> pa.Array:
    here, inside = array.type, children(array)
    if pa.types.is_struct(here) and pa.types.is_struct(kind):
        held = {field.name: (one, field) for field, one in zip(here, inside, strict=True)}
        if len(held) < here.num_fields or set(held) - {field.name for field in kind}:
            raise ValueError(f"fields of {here} have no place in {kind}")
        nothing = pa.nulls(len(array)), pa.field("", pa.null())
        return rebuilt(array, [as_field(*held.get(field.name, nothing), field) for field in kind], kind)
    if (pa.types.is_map(here) and pa.types.is_map(kind)) or (is_list(here) and is_list(kind)):
        fields = zip(inside, inner_fields(here), inner_fields(kind), strict=True)
        return rebuilt(array, [as_field(*one) for one in fields], kind)
    raise ValueError(f"{here} has no equal in {kind}")


def _fixed_size_lists(array: pa.Array, values: pa.Array, kind: pa.FixedSizeListType) -> pa.Array:
    lengths = pc.list_value_length(array)
    if pc.any(pc.not_equal(lengths, kind.list_size)).as_py():
        raise ValueError(f"a list is of another length than {kind.list_size}")
    if not array.null_count:
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    held = pa.FixedSizeListArray.from_arrays(values, type=kind)
    place = np.cumsum(array.is_valid().to_numpy(zero_copy_only=False)) - 1
    return held.take(pa.array(place, pa.int64(), mask=array.is_null().to_numpy(zero_copy_only=False)))


def _scalars(array: pa.Array, kind: pa.DataType) -> pa.Array:
    here = array.type
    if pa.types.is_floating(here) and pa.types.is_integer(kind):
        values = array.drop_null().to_numpy(zero_copy_only=False)
        if bool(np.any(np.signbit(values) & (values == 0))):
            raise ValueError("minus zero is no whole number")
    if pa.types.is_integer(here) and pa.types.is_decimal(kind):  # Arrow takes room for the largest that there may be
        array = array.cast(pa.decimal128(20, 0))
    if is_bytes(here) and pa.types.is_fixed_size_binary(here):
        array = array.cast(pa.binary())
    zones = {pa.types.is_timestamp(one) and bool(one.tz) for one in (here, kind)}
    if len(zones) > 1 or not any(_any(here, sources) and _any(kind, targets) for sources, targets in _WAYS):
        raise ValueError(f"{here} has no equal in {kind}")  # Arrow would parse texts, and take numbers for times
    return array.cast(kind)


def _any(kind: pa.DataType, checks: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(check(kind) for check in checks)


_WAYS: Final = (
    ((pa.types.is_integer,), (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)),
    ((pa.types.is_decimal,), (pa.types.is_decimal,)),
    ((pa.types.is_floating,), (pa.types.is_floating, pa.types.is_integer)),
    ((is_bytes, is_text), (is_bytes,)),
    ((pa.types.is_date,), (pa.types.is_date, pa.types.is_timestamp)),
    *(((check,), (check,)) for check in (pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration)),
)
"""Which types have values with equals in which others."""


def _far_texts(array: pa.Array) -> pa.Array:
    """Return dates and times beyond the years that Arrow can write."""
    kind = array.type
    days = pa.types.is_date32(kind)
    unit: Any = "D" if days else "ms" if pa.types.is_date64(kind) else kind.unit
    numbers = array.view(pa.int32() if days else pa.int64())
    end = "Z" if pa.types.is_timestamp(kind) and kind.tz else ""
    return pa.array(
        [None if n is None else str(np.datetime64(n, unit)).replace("T", " ", 1) + end for n in numbers.to_pylist()],
        pa.string(),
    )


def _json_field(field: pa.Field) -> pa.Field:
    """Return a column as JSON has it: what it knows no form for as texts."""
    kind = plain_type(field)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        kind = pa.struct([_json_field(one) for one in kind])
    elif pa.types.is_map(kind):
        kind = pa.map_(*(_json_field(one).type for one in inner_fields(kind)))
    elif is_list(kind):
        kind = pa.large_list(_json_field(kind.value_field))
    elif not _any(kind, (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)):
        kind = pa.string()
    return pa.field(field.name, kind)
