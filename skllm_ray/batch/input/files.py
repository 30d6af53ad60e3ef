"""What is in the input: a look at its files, and the rows of a unit. The formats have a file each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Final

import pyarrow as pa

from skllm_ray.batch.input.column_types import Column, common_field
from skllm_ray.batch.input.csv_files import read_csv, scan_csv
from skllm_ray.batch.input.exact import as_field, converted
from skllm_ray.batch.input.extensions import stored
from skllm_ray.batch.input.first_release import fitted_as_before
from skllm_ray.batch.input.folder_columns import check_folder, folder_array, folder_values
from skllm_ray.batch.input.jsonl_files import read_jsonl, scan_jsonl
from skllm_ray.batch.input.parquet_files import read_parquet, scan_parquet
from skllm_ray.batch.input.slices import (
    MOST_ROWS,
    SCHEMA_KEY,
    InputFile,
    Look,
    Unit,
    Units,
    cut,
    cut_file,
    rows_in_memory,
    rows_per_unit,
)
from skllm_ray.batch.storage import FileInfo, Folder, format_of
from skllm_ray.errors import InputError

__all__ = [
    "MOST_ROWS", "InputFile", "Scanned", "Unit", "Units", "cut", "cut_file", "read", "rows_per_unit", "scan", "short",
]  # fmt: skip

_THREADS: Final = 16
_SCAN: Final = {"parquet": scan_parquet, "csv": scan_csv, "jsonl": scan_jsonl}
_READ: Final = {"parquet": read_parquet, "csv": read_csv, "jsonl": read_jsonl}


@dataclass(frozen=True)
class Scanned:
    """What a look at the input's files told."""

    files: list[InputFile] = field(default_factory=list)
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """All files' columns; of one type each. Its metadata tell `read` where they come from."""
    clashes: Mapping[str, str] = field(default_factory=dict)
    """Columns that have no type in common, and why; `schema` has them without values."""


@dataclass(frozen=True)
class _Places:
    """What the metadata of a job's schema tell besides: jobs that the first release began have none of it."""

    filename_column: str | None = None
    """The column that names a row's file, if any."""
    scheme: str = ""
    """What stands before a file's path, such as ``s3://``."""

    def write(self, fields: Sequence[pa.Field]) -> pa.Schema:
        return pa.schema(fields, {SCHEMA_KEY: json.dumps(vars(self))})

    @classmethod
    def of(cls, schema: pa.Schema) -> _Places | None:
        told = (schema.metadata or {}).get(SCHEMA_KEY)
        return None if told is None else cls(**json.loads(told))


def scan(folder: Folder, files: Sequence[FileInfo], filename_column: str | None = None, scheme: str = "") -> Scanned:
    """Look at every file: Parquet's footers alone, the others from end to end.

    What cannot be read is noted, not raised. A column gets the type in which all files' values have an equal
    (`skllm_ray.batch.input.column_types`): text, where no other does. Folders such as ``country=DE`` are columns, too.

    Raises
    ------
    InputError
        If a file has a column of the name `filename_column`.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = list(pool.map(lambda info: _scan(folder, info), files))
    columns: dict[str, list[Column]] = {}
    for look in sorted(looks, key=lambda look: look.file.n_rows == 0):  # files without rows have columns, but no say
        for at, name in enumerate(look.schema.names):
            if look.file.n_rows or name not in columns:
                columns.setdefault(name, []).append(_column(folder, look, at))
    fields, clashes = [], {}
    for name, held in columns.items():
        try:
            fields.append(common_field(held).with_name(name))
        except (ValueError, pa.ArrowException) as error:
            clashes[name] = short(error)
            fields.append(pa.field(name, pa.null()))
    if filename_column is not None:
        if filename_column in columns:
            raise InputError(
                f"filename_column={filename_column!r}: the input has a column of this name.", "Give another name."
            )
        fields.append(pa.field(filename_column, pa.string()))
    return Scanned([look.file for look in looks], _Places(filename_column, scheme).write(fields), clashes)


def read(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows, their columns of the types in `schema`; columns that the file lacks are null.

    Raises
    ------
    OSError, ValueError, pyarrow.ArrowException
        If the file cannot be read there, was changed since the job was planned, or holds a value that the column's
        type has not.
    """
    places = _Places.of(schema)
    try:
        table = _READ[format_of(unit.path) or ""](folder, unit, columns, schema)
    finally:  # whatever went wrong: a file that was changed is the reason
        _check_unchanged(folder, unit)
    if table.num_rows != unit.n_rows:
        raise OSError(f"{table.num_rows} rows where {unit.n_rows} were counted; the file was changed or cut")
    told = folder_values(unit.path) if places else {}
    fields, arrays = [], []
    for name in columns:
        wanted = stored(schema.field(name))
        if places and name == places.filename_column:
            found, here = pa.chunked_array([pa.repeat(places.scheme + unit.path, unit.n_rows)]), wanted
        elif name in table.column_names:
            found, here = table.column(name), table.schema.field(name)
        else:
            found = pa.chunked_array([folder_array(told.get(name), unit.n_rows)])
            here = pa.field(name, found.type)
        fields.append(wanted)
        arrays.append(_fitted(found, here, wanted) if places else fitted_as_before(found, wanted.type))
    return pa.table(arrays, schema=pa.schema(fields))


def absent_column(parameter: str, column: str, names: Sequence[str]) -> InputError:
    """Return the error of an input that has no column of a name.

    Examples
    --------
    >>> print(absent_column("text_column", "bodi", ["id", "body"]))
    text_column: the input has no column 'bodi'. Did you mean 'body'? Columns: id, body.
    """
    if not any(names):
        return InputError(f"{parameter}: the input has no column {column!r}: it is empty.", "Name files with rows.")
    near = get_close_matches(column, names, 1)
    return InputError(
        f"{parameter}: the input has no column {column!r}.",
        (f"Did you mean {near[0]!r}? " if near else "") + f"Columns: {', '.join(names)}.",
    )


def short(error: BaseException) -> str:
    """Return an error's first line, cut to a length that fits a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


# --- inside -------------------------------------------------------------------------------------------------------


def _scan(folder: Folder, info: FileInfo) -> Look:
    plain = InputFile(info.path, info.size, info.mtime_ns)
    try:
        scanner = _SCAN.get(format_of(info.path) or "")
        if scanner is None:
            raise ValueError("its ending tells no known format")
        look = scanner(folder, plain)
        twice = [name for name, count in Counter(look.schema.names).items() if count > 1]
        if twice:
            raise ValueError(f"two of its columns are called {twice[0]!r}")
        fields = [stored(one) for one in look.schema]
        look = replace(look, schema=pa.schema(fields))
        for name, text in folder_values(info.path).items():
            if name in look.schema.names:
                check_folder(name, text, _column(folder, look, look.schema.get_field_index(name)).chunks())
            else:
                fields.append(pa.field(name, folder_array(text, 1).type))
        names = tuple(one.name for one in fields)
        return replace(look, file=replace(look.file, columns=names), schema=pa.schema(fields))
    except Exception as error:  # noqa: BLE001  whatever a foreign file makes its reader raise costs that file alone
        return Look(replace(plain, error=short(error)), pa.schema([]))


def _column(folder: Folder, look: Look, at: int) -> Column:
    one, bounds = look.schema.field(at), look.bounds
    values = partial(_values, folder, look, one)
    return Column(one, values, partial(bounds, one.name)) if bounds else Column(one, values)


def _values(folder: Folder, look: Look, one: pa.Field) -> Iterator[pa.Array]:
    """Yield a column's values, as many rows at once as have room; what cannot be read is passed over."""
    own = _Places().write([one])
    for unit in cut([look.file], rows_in_memory([look.file])):
        try:
            table = read(folder, unit, [one.name], own)
        except (OSError, pa.ArrowException):  # told when the unit is to be asked
            continue
        yield from table.column(0).chunks


def _fitted(column: pa.ChunkedArray, here: pa.Field, wanted: pa.Field) -> pa.ChunkedArray:
    """Return a column's values as those of the job's column."""
    here = stored(here)
    try:
        chunks = [as_field(converted(chunk, here.type), here, wanted) for chunk in column.chunks]
        return pa.chunked_array(chunks, wanted.type)
    except (ValueError, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"column {here.name!r} of type {here.type} holds a value that has no equal in {wanted.type}, its type in "
            f"this job: {error}"
        ) from None


def _check_unchanged(folder: Folder, unit: Unit) -> None:
    now = folder.filesystem.get_file_info(unit.path)
    size, mtime_ns = unit.file
    if now.size != size or (mtime_ns and now.mtime_ns != mtime_ns):  # not every filesystem tells when
        raise OSError("the file was changed since the job was planned")
