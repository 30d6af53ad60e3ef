"""JSON lines as input: an object in each line, and columns of the types that fit all their values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import pyarrow as pa

from skllm_ray.batch.column_types import common_type
from skllm_ray.batch.storage import Folder
from skllm_ray.batch.text_input import chunks, indexed, stretch, text_start
from skllm_ray.batch.units import INDEX_ROWS, InputFile, Unit

_LONE: Final = re.compile("[\ud800-\udfff]")


def scan_jsonl(folder: Folder, file: InputFile) -> tuple[InputFile, pa.Schema]:
    """Find where rows begin, and the types of what they hold.

    Raises
    ------
    ValueError
        If there are lines, and none is an object.
    """
    at = text_start(folder, file)
    index, kinds, n_rows, n_objects, rest = list[int](), dict[str, pa.DataType](), 0, 0, b""
    for chunk in chain(chunks(folder, file, at), [b"\n"]):
        *lines, rest = (rest + chunk).split(b"\n")
        records = []
        for line in lines:
            if line.strip():
                if n_rows % INDEX_ROWS == 0:
                    index.append(at)
                n_rows += 1
                record = _record(line)
                if record is not None:
                    records.append(record)
            at += len(line) + 1
        n_objects += len(records)
        _learn_types(kinds, records)
    if n_rows and not n_objects:
        raise ValueError("it holds no JSON object")
    return indexed(file, index, n_rows), pa.schema(list(kinds.items()))


def read_jsonl(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows. A line that is no object has no columns, and so a missing text."""
    skip = unit.span[2]
    lines = [line for line in stretch(folder, unit).split(b"\n") if line.strip()]
    records = [_record(line) or {} for line in lines[skip : skip + unit.n_rows]]
    found: dict[str, pa.Array] = {"": pa.nulls(len(records))}
    for name in columns:
        found[name] = _array([record.get(name) for record in records], schema.field(name).type)
    return pa.table(found)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a line's object; None where it is none."""
    try:
        found = json.loads(line.decode("utf-8", "replace"))
        if b"\\u" in line:  # it may spell half of a character, which no file and no server takes
            found = json.loads(_LONE.sub("\ufffd", json.dumps(found, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _learn_types(kinds: dict[str, pa.DataType], records: Sequence[dict[str, Any]]) -> None:
    """Widen the columns' types by what some lines hold; values that have no type in common are kept as texts."""
    for name in dict.fromkeys(name for record in records for name in record):
        found = _type_of([record.get(name) for record in records])
        kinds[name] = common_type(kinds.get(name, found), found)


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        found = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()
    return pa.string() if _has_no_fields(found) else found


def _has_no_fields(kind: pa.DataType) -> bool:
    """Return whether there is an empty object in a type: Parquet has no column for it."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_no_fields(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_no_fields(kind.value_type)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([_fitted(value, kind) for value in values], kind)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """Return a value in the form that a column of `kind` takes."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_list(kind):
        return [_fitted(one, kind.value_type) for one in value]
    if pa.types.is_struct(kind):
        return {field.name: _fitted(value.get(field.name), field.type) for field in kind}
    return value
