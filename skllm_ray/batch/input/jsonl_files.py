"""JSON lines as input: an object in each line, and columns of the types that fit all their values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

import pyarrow as pa

from skllm_ray.batch.input.json_types import JsonType, json_array
from skllm_ray.batch.input.slices import INDEX_ROWS, InputFile, Look, Unit, is_exact
from skllm_ray.batch.input.text_files import MOST_BYTES, Utf8Check, chunks, indexed, stretch, text_start
from skllm_ray.batch.storage import Folder

MOST_COLUMNS: Final = 2000
"""The most different keys of a file's rows; each is a column."""
_MOST_DEPTH: Final = 500
_LONE: Final = re.compile("[\ud800-\udfff]")


class _TwiceError(ValueError):
    """An object has two values for a key."""


def scan_jsonl(folder: Folder, file: InputFile) -> Look:
    """Find where rows begin, and the types of what they hold.

    Raises
    ------
    ValueError
        If most lines are no objects, a line is too long, a key has two values, there are too many keys, or the file
        is no UTF-8.
    """
    start = text_start(folder, file)
    index, types, n_rows, n_objects, utf8 = list[int](), dict[str, JsonType](), 0, 0, Utf8Check()
    other = ""
    for lines in _blocks(folder, file, start):
        records = []
        for at, number, line in lines:
            utf8.line(line)
            if not line.strip():
                continue
            if n_rows % INDEX_ROWS == 0:
                index.append(at)
            n_rows += 1
            record = _numbered(line, number)
            if record is None:
                other = other or _described(line, number)
            else:
                records.append(record)
        n_objects += len(records)
        _learn(types, records, lines[-1][1])
    utf8.check()
    if n_rows > 4 * n_objects:
        raise ValueError(_no_objects(n_rows, n_objects, other))
    schema = pa.schema([(name, one.arrow()) for name, one in types.items()])
    return Look(indexed(file, index, n_rows), schema, lambda name: types[name].bounds)


def read_jsonl(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows. A line that is no object has no columns, and so a missing text."""
    skip = unit.span[2]
    lines = [line for line in stretch(folder, unit).split(b"\n") if line.strip()]
    records = [_record(line) or {} for line in lines[skip : skip + unit.n_rows]]
    found: dict[str, pa.Array] = {"": pa.nulls(len(records))}
    exact = is_exact(schema)
    for name in columns:
        if any(name in record for record in records):
            found[name] = json_array((record.get(name) for record in records), schema.field(name).type, exact)
    return pa.table(found)


# --- inside -------------------------------------------------------------------------------------------------------


def _blocks(folder: Folder, file: InputFile, start: int) -> Iterator[list[tuple[int, int, bytes]]]:
    """Yield lines, each with the byte at which it begins and its number."""
    at, number, rest = start, 0, b""
    for chunk in chain(chunks(folder, file, start), [b"\n"]):
        *lines, rest = (rest + chunk).split(b"\n")
        found = []
        for line in lines:
            number += 1
            found.append((at, number, line))
            at += len(line) + 1
        if len(rest) > MOST_BYTES:
            raise ValueError(
                f"line {number + 1:,} is longer than {MOST_BYTES:,} bytes; an object belongs into each line"
            )
        if found:
            yield found


def _numbered(line: bytes, number: int) -> dict[str, Any] | None:
    """Return a line's object; None where it is none."""
    try:
        return _record(line, _once)
    except _TwiceError as error:
        raise ValueError(f"line {number:,} has two different values for the key {error}; give each key once") from None


def _record(line: bytes, hook: Any = None) -> dict[str, Any] | None:
    """Return a line's object; None where it is none, or one that nests deeper than anything could use."""
    try:
        found = json.loads(line.decode("utf-8", "replace"), object_pairs_hook=hook)
        if b"\\u" in line:  # it may spell half of a character, which no file and no server takes
            found = json.loads(_LONE.sub("\ufffd", json.dumps(found, ensure_ascii=False)))
    except _TwiceError:
        raise
    except (ValueError, RecursionError):
        return None
    if _may_be_deep(line) and _depth(found) > _MOST_DEPTH:
        return None
    return found if isinstance(found, dict) else None


def _may_be_deep(line: bytes) -> bool:
    return line.count(b"[") + line.count(b"{") > _MOST_DEPTH


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise _TwiceError(repr(name[:80]))
    return found


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
        level = list(chain.from_iterable(inside))
    return depth


def _learn(types: dict[str, JsonType], records: Sequence[dict[str, Any]], number: int) -> None:
    """Learn the columns' types from some rows, which end at a line."""
    held: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            held.setdefault(name, []).append(value)
    for name, values in held.items():
        if name not in types:
            types[name] = JsonType()
        types[name].learn(values)
    if len(types) > MOST_COLUMNS:
        raise ValueError(
            f"by line {number:,} its rows have more than {MOST_COLUMNS:,} different keys, each of which would be a "
            "column; put data that is used as keys into one nested object, which is kept as a text"
        )


def _described(line: bytes, number: int) -> str:
    """Return what is wrong with a line that gives no row."""
    if _may_be_deep(line):
        return f"line {number:,} nests deeper than {_MOST_DEPTH} levels"
    return f"line {number:,} holds none"


def _no_objects(n_rows: int, n_objects: int, other: str) -> str:
    if not n_objects:
        told = f"it holds no JSON object in any of its {n_rows:,} lines ({other})"
        return f"{told}; each line must hold one, from {{ to }}, that nests no deeper than {_MOST_DEPTH} levels"
    return (
        f"only {n_objects:,} of its {n_rows:,} lines hold a JSON object, and {other}; "
        "write an object into each line, without brackets around and commas between them"
    )
