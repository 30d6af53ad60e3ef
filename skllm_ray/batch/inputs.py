"""What is in the input: a look at its files, and the rows of a unit. The formats have a file each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from skllm_ray.batch.column_types import common_type, fitted, readable
from skllm_ray.batch.csv_input import read_csv, scan_csv
from skllm_ray.batch.jsonl_input import read_jsonl, scan_jsonl
from skllm_ray.batch.parquet_input import read_parquet, scan_parquet
from skllm_ray.batch.storage import FileInfo, Folder, format_of
from skllm_ray.batch.units import MOST_ROWS, InputFile, Unit, cut, rows_per_unit

__all__ = ["MOST_ROWS", "InputFile", "Scanned", "Unit", "cut", "read", "rows_per_unit", "scan", "short"]

_THREADS: Final = 16
_SCAN: Final = {"parquet": scan_parquet, "csv": scan_csv, "jsonl": scan_jsonl}
_READ: Final = {"parquet": read_parquet, "csv": read_csv, "jsonl": read_jsonl}


@dataclass(frozen=True)
class Scanned:
    """What a look at the input's files told."""

    files: list[InputFile] = field(default_factory=list)
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """All files' columns; of one type each."""


def scan(folder: Folder, files: Sequence[FileInfo]) -> Scanned:
    """Look at every file: Parquet's footers alone, the others from end to end.

    What cannot be read is noted, not raised. A column gets the type that fits all files' values: text, where no other
    does.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda info: _scan(folder, info), files))
    kinds: dict[str, pa.DataType] = {}
    for schema in {str(schema): schema for file, schema in found if file.n_rows}.values():
        for name, kind in zip(schema.names, map(readable, schema.types), strict=True):
            kinds[name] = common_type(kinds.get(name, kind), kind)
    for _, schema in found:  # files without rows have columns, but no say in their types
        for name, kind in zip(schema.names, map(readable, schema.types), strict=True):
            kinds.setdefault(name, kind)
    return Scanned([file for file, _ in found], pa.schema(list(kinds.items())))


def read(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows, their columns of the types in `schema`; columns that the file lacks are null.

    Raises
    ------
    OSError, ValueError, pyarrow.ArrowException
        If the file cannot be read there.
    """
    table = _READ[format_of(unit.path) or ""](folder, unit, columns, schema)
    if table.num_rows != unit.n_rows:
        raise OSError(f"{table.num_rows} rows where {unit.n_rows} were counted; the file was changed or cut")
    arrays = []
    for name in columns:
        kind = schema.field(name).type
        held = name in table.column_names
        arrays.append(fitted(table.column(name), kind) if held else pa.nulls(table.num_rows, kind))
    return pa.table(arrays, names=list(columns))


def short(error: BaseException) -> str:
    """Return an error's first line, cut to a length that fits a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _scan(folder: Folder, info: FileInfo) -> tuple[InputFile, pa.Schema]:
    plain = InputFile(info.path, info.size, info.mtime_ns)
    try:
        look = _SCAN.get(format_of(info.path) or "")
        if look is None:
            raise ValueError("its ending tells no known format")
        file, schema = look(folder, plain)
        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        if twice:
            raise ValueError(f"two of its columns are called {twice[0]!r}")
        return replace(file, columns=tuple(schema.names)), schema
    except (OSError, ValueError, pa.ArrowException) as error:
        return replace(plain, error=short(error)), pa.schema([])
