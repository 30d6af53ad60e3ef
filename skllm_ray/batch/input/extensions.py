"""Extension types: what a column of one is where the other files' columns are not of the same."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skllm_ray.batch.input.kinds import inner_fields, is_list

NAME: Final = b"ARROW:extension:name"
TOLD: Final = b"ARROW:extension:metadata"
_RAY_TENSORS: Final = frozenset({"ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"})


def stored(field: pa.Field) -> pa.Field:
    """Return a column as it is stored, whatever this process knows of extension types.

    A foreign extension type, such as pandas' periods, is known in processes that imported its package. So that the
    driver and all workers see the same, it is kept as its storage with the extension's name beside it. Types that
    begin with ``arrow.`` are known everywhere. Views, which few readers know, are plain texts and bytes, and
    dictionaries have 32-bit indices: one that is joined from several outgrows 8 bits.
    """
    told = {key: value for key, value in (field.metadata or {}).items() if key in {NAME, TOLD}}
    kind = field.type
    while isinstance(kind, pa.BaseExtensionType) and not kind.extension_name.startswith("arrow."):
        told = {NAME: kind.extension_name.encode(), TOLD: kind.__arrow_ext_serialize__()}
        kind = kind.storage_type
    return pa.field(field.name, _plain(kind), metadata=told or None)


def extension_of(field: pa.Field) -> str:
    """Return the name of a column's extension type; empty where it has none."""
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    return str((field.metadata or {}).get(NAME, b""), "utf-8", "replace")


def bare(kind: pa.DataType) -> pa.DataType:
    """Return a type with the storage of the extension types in it; the very same where there are none."""
    if isinstance(kind, pa.BaseExtensionType):
        return bare(kind.storage_type)
    fields = [field.with_type(bare(field.type)) for field in inner_fields(kind)]
    if [field.type for field in fields] == [field.type for field in inner_fields(kind)]:
        return kind
    if pa.types.is_struct(kind):
        return pa.struct(fields)
    if pa.types.is_map(kind):
        return pa.map_(fields[0], fields[1])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    return pa.large_list(fields[0]) if pa.types.is_large_list(kind) else pa.list_(fields[0])


def told_of(field: pa.Field) -> bytes | None:
    """Return what a foreign extension type tells besides its name, such as the unit of periods."""
    if isinstance(field.type, pa.ExtensionType):  # those of other packages; Arrow's own are equal, or are not
        return field.type.__arrow_ext_serialize__() or None
    return (field.metadata or {}).get(TOLD) or None


def plain_type(field: pa.Field) -> pa.DataType:
    """Return the type of a column's values without their extension type.

    Raises
    ------
    ValueError
        If the extension is not known.
    """
    return unwrapped(pa.array([], field.type), field).type if extension_of(field) else field.type


def unwrapped(array: pa.Array, field: pa.Field) -> pa.Array:
    """Return values of an extension type in a form that needs none: texts, or lists in lists for tensors.

    Raises
    ------
    ValueError
        If the extension is not known.
    """
    name = extension_of(field)
    if not name:
        return array
    known = _KNOWN.get(name)
    if known is None:
        raise ValueError(f"values of the extension type {name} mean nothing without it")
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    try:
        return known(array, field)
    except (KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ValueError(f"what the extension type {name} tells is damaged ({type(error).__name__})") from None


# --- inside -------------------------------------------------------------------------------------------------------


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without views and small dictionaries, at any depth; the very same where there are none."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), _plain(kind.value_type), kind.ordered)
    if pa.types.is_struct(kind):
        fields = [stored(field) for field in kind]
        return kind if [field.type for field in fields] == [field.type for field in kind] else pa.struct(fields)
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), stored(kind.item_field))
    if not is_list(kind):
        return kind
    inside = stored(kind.value_field)
    if pa.types.is_list_view(kind):
        return pa.list_(inside)
    if pa.types.is_large_list_view(kind):
        return pa.large_list(inside)
    if inside.type == kind.value_type:
        return kind
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inside, kind.list_size)
    return pa.large_list(inside) if pa.types.is_large_list(kind) else pa.list_(inside)


def _told(field: pa.Field) -> Mapping[str, Any]:
    kind = field.type
    text = kind.__arrow_ext_serialize__() if isinstance(kind, pa.BaseExtensionType) else field.metadata.get(TOLD, b"")
    found = json.loads(text or b"{}")
    return found if isinstance(found, dict) else {"shape": found}


def _uuids(array: pa.Array, field: pa.Field) -> pa.Array:
    del field
    return pa.array([None if v is None else str(uuid.UUID(bytes=v)) for v in array.to_pylist()], pa.string())


def _periods(array: pa.Array, field: pa.Field) -> pa.Array:
    import pandas as pd

    freq = _told(field)["freq"]
    pd.Period(ordinal=0, freq=freq)  # raises, for a column without rows, too
    found = [None if n is None else str(pd.Period(ordinal=n, freq=freq)) for n in array.to_pylist()]
    return pa.array(found, pa.string())


def _intervals(array: pa.Array, field: pa.Field) -> pa.Array:
    closed = _told(field)["closed"]
    left, right = (one.cast(pa.string()) for one in array.flatten())
    opening, closing = "[" if closed in {"left", "both"} else "(", "]" if closed in {"right", "both"} else ")"
    return pc.binary_join_element_wise(opening, left, ", ", right, closing, "")


def _tensors(array: pa.Array, field: pa.Field) -> pa.Array:
    kind = field.type
    own = isinstance(kind, pa.FixedShapeTensorType)
    shape = kind.shape if own else _told(field)["shape"]
    if own and kind.permutation and list(kind.permutation) != list(range(len(shape))):
        raise ValueError("a tensor's axes stand in another order than its values")
    values = array.flatten()
    for size in reversed(shape[1:]):
        offsets = pa.array(np.arange(0, len(values) + 1, size), pa.int32())
        values = pa.ListArray.from_arrays(offsets, values)
    lengths = pc.if_else(array.is_null(), 0, shape[0]).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=array.is_null() if array.null_count else None)


_KNOWN: Final = {
    "arrow.uuid": _uuids,
    "arrow.json": lambda array, _: array.cast(pa.string()),
    "arrow.bool8": lambda array, _: pc.not_equal(array, 0),
    "arrow.fixed_shape_tensor": _tensors,
    "pandas.period": _periods,
    "pandas.interval": _intervals,
    **dict.fromkeys(_RAY_TENSORS, _tensors),
}
