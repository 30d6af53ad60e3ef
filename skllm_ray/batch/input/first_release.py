"""How the first release brought a column's values into the job's type: outputs that it began go on so."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from skllm_ray.batch.input.exact import converted


def fitted_as_before(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column's values as those of a type that the first release chose.

    Nested values became JSON with Python's texts in it, and whole numbers beyond 2**53 floats nearby. All else is
    exact, as it is for new jobs; what is not, raises.
    """
    if column.type == kind:
        return column
    if pa.types.is_string(kind) and pa.types.is_nested(column.type):
        texts = [None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, kind)])
    if pa.types.is_integer(column.type) and pa.types.is_floating(kind):
        return column.cast(options=pc.CastOptions(kind, allow_float_truncate=True))
    return pa.chunked_array([converted(chunk, kind) for chunk in column.chunks], kind)
