"""Types of columns: the one that fits what several files hold, and values brought into it."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the type that fits both; text, where no other does.

    Examples
    --------
    >>> common_type(pa.int64(), pa.float64()), common_type(pa.int64(), pa.list_(pa.int64()))
    (DataType(double), DataType(string))
    """
    if first == second:
        return first
    if pa.types.is_dictionary(first) or pa.types.is_dictionary(second):  # a way to store values, not a type of its own
        return common_type(_plain(first), _plain(second))
    try:
        schemas = [pa.schema([("", kind)]) for kind in (first, second)]
        return pa.unify_schemas(schemas, promote_options="permissive").types[0]
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return pa.string()


def fitted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column's values as those of a type that `common_type` told."""
    if column.type == kind:
        return column
    if pa.types.is_string(kind) and pa.types.is_nested(column.type):
        texts = [None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, kind)])
    return column.cast(options=pc.CastOptions(kind, allow_float_truncate=True))  # large whole numbers as floats


def readable(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column is read: views, which few readers know, as plain texts and bytes."""
    return {"string_view": pa.string(), "binary_view": pa.binary()}.get(str(kind), kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
