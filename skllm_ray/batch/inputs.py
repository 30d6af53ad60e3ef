"""What is in the input: its files' rows and columns, the units of work that they are cut into, and how one is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from skllm_ray.batch.storage import FileInfo, Folder, format_of
from skllm_ray.errors import InputError

MOST_ROWS: Final = 8192
"""The most rows in a unit."""
_LEAST_ROWS: Final = 256
_UNITS: Final = 128  # how many units an input of middling size is cut into
_MOST_BYTES: Final = 64 << 20
_INDEX_ROWS: Final = 1024  # a text file's rows between two known positions
_SCAN_BYTES: Final = 8 << 20
_THREADS: Final = 16
_WHOLE_BYTES: Final = 16 << 20  # a row group that is decoded whole for any of its slices


@dataclass(frozen=True)
class InputFile:
    """A file and where its rows are."""

    path: str
    size: int
    mtime_ns: int
    groups: tuple[int, ...] = ()
    """Parquet: rows in each row group."""
    index: tuple[int, ...] = ()
    """CSV and JSON lines: the byte at which every 1,024th row begins."""
    n_rows: int = 0
    n_bytes: int = 0
    """The rows' size in memory, about."""
    error: str | None = None
    """Why it cannot be read, if so."""
    columns: tuple[str, ...] = ()
    """Its columns, while the job is planned."""

    @property
    def info(self) -> FileInfo:
        """What tells whether it has changed."""
        return FileInfo(self.path, self.size, self.mtime_ns)

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> InputFile:
        """Return what `dump` wrote."""
        return cls(**{**told, "groups": tuple(told["groups"]), "index": tuple(told["index"])})

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        told = asdict(self)
        del told["columns"]
        return told


@dataclass(frozen=True)
class Unit:
    """A slice of a file: what one task reads, and one output part."""

    path: str
    number: int
    """The file's position in the input."""
    start: int
    """The first row's position in the file."""
    n_rows: int
    file: tuple[int, int] = (0, 0)
    """The file's size, and when it was written."""
    groups: tuple[tuple[int, int, int], ...] = ()
    """Parquet: (row group, rows to skip, rows) of each piece."""
    header: int = 0
    """CSV: bytes before the first row."""
    span: tuple[int, int, int] = (0, 0, 0)
    """CSV and JSON lines: the bytes to read, from and to, and the rows to skip in them."""

    @property
    def key(self) -> str:
        """Its name, which sorts in the order of the input."""
        return f"{self.number:05d}-{self.start:010d}-{self.n_rows:07d}"

    @property
    def part_name(self) -> str:
        """The name of its output."""
        return f"part-{self.key}.parquet"


@dataclass(frozen=True)
class Scanned:
    """What a look at the input's files told."""

    files: list[InputFile] = field(default_factory=list)
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """All files' columns; of one type each."""


def scan(folder: Folder, files: Sequence[FileInfo]) -> Scanned:
    """Look at every file: Parquet's footers alone, the others from end to end.

    What cannot be read is noted, not raised. CSV has no types, so that its columns are texts; columns of JSON lines get
    the type that fits all their values.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda info: _scan(folder, info), files))
    schemas = [schema for file, schema in found if file.error is None and schema is not None]
    together = schemas[0] if schemas else pa.schema([])
    distinct = {str(schema): schema for schema in schemas}
    for schema in distinct.values():
        try:
            together = pa.unify_schemas([together, schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"The input's files have columns of one name and different types: {error}.",
                "Convert them to one type, or run the job on each kind of file by itself.",
            ) from None
    return Scanned([file for file, _ in found], together.remove_metadata())


def rows_per_unit(files: Sequence[InputFile]) -> int:
    """Return how many rows a unit has: enough units to share out, none needlessly small, none too large for memory."""
    total = sum(file.n_rows for file in files)
    wide = sum(file.n_bytes for file in files) / max(1, total)
    by_memory = int(_MOST_BYTES / max(1.0, wide))
    return max(1, min(MOST_ROWS, by_memory, max(_LEAST_ROWS, -(-total // _UNITS))))


def cut(files: Sequence[InputFile], unit_rows: int, cuts: Sequence[tuple[int, int]] = ()) -> Iterator[Unit]:
    """Yield the units of all files; none crosses one of `cuts`, which are (file, row) pairs."""
    for number, file in enumerate(files):
        if file.error is not None:
            continue
        bounds = _bounds(file, unit_rows, [row for which, row in cuts if which == number and 0 < row < file.n_rows])
        for start, end in pairwise(bounds):
            header = file.index[0] if file.index else 0
            span = _span(file, start, end) if file.index else (0, 0, 0)
            told = file.size, file.mtime_ns
            yield Unit(file.path, number, start, end - start, told, _pieces(file, start, end), header, span)


def read(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows, their columns of the types in `schema`; columns that the file lacks are null.

    Raises
    ------
    OSError, pyarrow.ArrowException
        If the file cannot be read there.
    """
    reader = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}[format_of(unit.path) or ""]
    table = reader(folder, unit, columns, schema)
    if table.num_rows != unit.n_rows:
        raise OSError(f"{table.num_rows} rows where {unit.n_rows} were counted; the file was changed or cut")
    arrays = []
    for name in columns:
        kind = schema.field(name).type
        if name in table.column_names:
            column = table.column(name)
            arrays.append(column if column.type == kind else column.cast(kind))
        else:
            arrays.append(pa.nulls(table.num_rows, kind))
    return pa.table(arrays, names=list(columns))


# --- looking at files ---------------------------------------------------------------------------------------------


def _scan(folder: Folder, info: FileInfo) -> tuple[InputFile, pa.Schema | None]:
    plain = InputFile(info.path, info.size, info.mtime_ns)
    scanner = {"parquet": _scan_parquet, "csv": _scan_csv, "jsonl": _scan_jsonl}.get(format_of(info.path) or "")
    try:
        if scanner is None:
            raise ValueError("its ending tells no known format")
        file, schema = scanner(folder, plain)
        return replace(file, columns=tuple(schema.names)), schema
    except (OSError, ValueError, pa.ArrowException) as error:
        return InputFile(info.path, info.size, info.mtime_ns, error=short(error)), None


def short(error: BaseException) -> str:
    """Return an error's first line, cut to a length that fits a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _scan_parquet(folder: Folder, file: InputFile) -> tuple[InputFile, pa.Schema]:
    with folder.filesystem.open_input_file(file.path) as source:
        parquet = pq.ParquetFile(source)
        told = parquet.metadata
        groups = [told.row_group(i) for i in range(told.num_row_groups)]
        n_bytes = sum(group.total_byte_size for group in groups)
        rows = tuple(group.num_rows for group in groups)
        schema = parquet.schema_arrow
    return InputFile(file.path, file.size, file.mtime_ns, rows, (), sum(rows), n_bytes), schema


def _scan_csv(folder: Folder, file: InputFile) -> tuple[InputFile, pa.Schema]:
    records = _Records(quoted=True)
    for chunk in _chunks(folder, file):
        records.add(chunk)
    starts = records.starts()
    with folder.filesystem.open_input_file(file.path) as source:
        names = _header(source.read(starts[1] if len(starts) > 1 else file.size))
    if not names:
        raise ValueError("it is empty")
    if len(set(names)) < len(names):
        raise ValueError("two of its columns have one name")
    return _indexed(file, starts[1:], len(starts) - 1), pa.schema([(name, pa.string()) for name in names])


def _scan_jsonl(folder: Folder, file: InputFile) -> tuple[InputFile, pa.Schema]:
    records, kinds = _Records(quoted=False), dict[str, pa.DataType]()
    rest = b""
    for chunk in _chunks(folder, file):
        records.add(chunk)
        whole, _, rest = (rest + chunk).rpartition(b"\n")
        _learn_types(kinds, whole)
    _learn_types(kinds, rest)
    starts = records.starts()
    if not kinds:
        raise ValueError("it holds no JSON object")
    return _indexed(file, starts, len(starts)), pa.schema(list(kinds.items()))


def _indexed(file: InputFile, starts: Sequence[int], n_rows: int) -> InputFile:
    index = tuple(starts[::_INDEX_ROWS])
    return InputFile(file.path, file.size, file.mtime_ns, (), index, n_rows, file.size)


class _Records:
    """Finds where records begin: after every newline that stands in no quotes, blank lines passed over."""

    def __init__(self, *, quoted: bool) -> None:
        self._quoted = quoted
        self._odd = False
        self._at = 0
        self._last = b""
        self._ends: list[np.ndarray[Any, Any]] = []
        self._returns: list[np.ndarray[Any, Any]] = []

    def add(self, chunk: bytes) -> None:
        found = np.frombuffer(self._last + chunk, np.uint8)
        shift = len(self._last)
        newlines = np.flatnonzero(found == 10)
        newlines = newlines[newlines >= shift]
        if self._quoted:
            quotes = np.flatnonzero(found[shift:] == 34) + shift
            inside = (np.searchsorted(quotes, newlines) + self._odd) % 2 == 1
            newlines = newlines[~inside]
            self._odd = (len(quotes) + self._odd) % 2 == 1
        self._returns.append((newlines > 0) & (found[np.maximum(newlines - 1, 0)] == 13))
        self._ends.append(newlines - shift + self._at)
        self._at += len(chunk)
        self._last = chunk[-1:]

    def starts(self) -> list[int]:
        ends = np.concatenate([*self._ends, [self._at]]).astype(np.int64)
        returns = np.concatenate([*self._returns, [self._last == b"\r"]]).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1])
        return [int(start) for start in starts[ends - returns > starts]]


def _chunks(folder: Folder, file: InputFile) -> Iterator[bytes]:
    with folder.filesystem.open_input_stream(file.path, compression=None) as stream:
        while chunk := stream.read(_SCAN_BYTES):
            yield bytes(chunk)


# --- units --------------------------------------------------------------------------------------------------------


def _bounds(file: InputFile, unit_rows: int, cuts: Sequence[int]) -> list[int]:
    """Return the rows at which units begin, and the end."""
    bounds = {0, file.n_rows, *cuts}
    groups = file.groups or (file.n_rows,)
    for start, rows in zip(np.cumsum((0, *groups[:-1])).tolist(), groups, strict=True):
        if rows >= unit_rows or len(groups) == 1:
            n_units = max(1, -(-rows // unit_rows))
            bounds.update(start + rows * i // n_units for i in range(n_units))
    if len(groups) > 1 and min(groups) < unit_rows:  # many small row groups: several make a unit
        bounds |= _gathered(groups, unit_rows)
    return sorted(bounds)


def _gathered(groups: Sequence[int], unit_rows: int) -> set[int]:
    found, start, filled = set(), 0, 0
    for rows in groups:
        if filled and filled + rows > unit_rows:
            found.add(start)
            filled = 0
        start += rows
        filled += rows
    return found


def _pieces(file: InputFile, start: int, end: int) -> tuple[tuple[int, int, int], ...]:
    found, at = [], 0
    for group, rows in enumerate(file.groups):
        first, last = max(start, at), min(end, at + rows)
        if first < last:
            found.append((group, first - at, last - first))
        at += rows
        if at >= end:
            break
    return tuple(found)


# --- reading ------------------------------------------------------------------------------------------------------


def _read_parquet(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    del schema
    with folder.filesystem.open_input_file(unit.path) as source:
        parquet = pq.ParquetFile(source)
        held = [name for name in columns if name in parquet.schema_arrow.names]
        parts = [
            _of_group(parquet, (unit.path, unit.file), group, skip, rows, held) for group, skip, rows in unit.groups
        ]
    return pa.concat_tables(parts)


_decoded: dict[Any, pa.Table] = {}
"""The row group that this process decoded last."""


def _of_group(
    parquet: pq.ParquetFile, identity: tuple[Any, ...], group: int, skip: int, rows: int, columns: Sequence[str]
) -> pa.Table:
    """Return rows of a row group; decoding ends with the last that is wanted."""
    if not columns:
        return pa.table({"": pa.nulls(rows)})
    told = parquet.metadata.row_group(group)
    if rows == told.num_rows or told.total_byte_size <= _WHOLE_BYTES:
        key = (identity, group, tuple(columns))
        if key not in _decoded:  # the next unit is often of the same row group
            _decoded.clear()
            _decoded[key] = parquet.read_row_group(group, list(columns), use_threads=False)
        return _decoded[key].slice(skip, rows)
    found, at = [], 0
    for batch in parquet.iter_batches(MOST_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
        first, last = max(skip, at), min(skip + rows, at + batch.num_rows)
        if first < last:
            found.append(batch.slice(first - at, last - first))
        at += batch.num_rows
        if at >= skip + rows:
            break
    return pa.Table.from_batches(found)


def _read_csv(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    del columns, schema
    with folder.filesystem.open_input_file(unit.path) as source:
        names = _header(source.read(unit.header))
    return _csv(_text_of(folder, unit), names).slice(unit.span[2], unit.n_rows)


def _header(text: bytes) -> list[str]:
    return next(csv.reader(io.StringIO(text.decode("utf-8-sig"), newline="")), [])


def _csv(text: bytes, names: list[str]) -> pa.Table:
    """Parse CSV without its header; all columns are texts, and an empty field is null."""
    try:
        return pacsv.read_csv(
            io.BytesIO(text),
            pacsv.ReadOptions(column_names=names, use_threads=False, block_size=max(1 << 20, len(text) + 1)),
            pacsv.ParseOptions(newlines_in_values=True),
            pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:  # a row has too few fields or too many: it must not cost the others
        rows = [row for row in csv.reader(io.StringIO(text.decode(), newline="")) if row]
        columns = [[row[i] if i < len(row) and row[i] else None for row in rows] for i in range(len(names))]
        return pa.table([pa.array(column, pa.string()) for column in columns], names=names)


def _read_jsonl(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    lines = [line for line in _text_of(folder, unit).split(b"\n") if line.strip(b"\r")]
    records = [_record(line) for line in lines[unit.span[2] :][: unit.n_rows]]
    arrays = [_array([record.get(name) for record in records], schema.field(name).type) for name in columns]
    return pa.table(arrays, names=list(columns)) if columns else pa.table({"": pa.nulls(len(records))})


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(values, kind)


def _record(line: bytes) -> dict[str, Any]:
    """Return a line's object; a line that is none has no columns, and so a missing text."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _learn_types(kinds: dict[str, pa.DataType], text: bytes) -> None:
    """Widen the columns' types by what some lines hold; values that have no type in common are kept as texts."""
    records = [_record(line) for line in text.split(b"\n") if line.strip()]
    for name in dict.fromkeys(name for record in records for name in record):
        values = [record.get(name) for record in records]
        try:
            found = pa.array(values).type
            kinds[name] = pa.unify_schemas(
                [pa.schema([(name, kinds.get(name, found))]), pa.schema([(name, found)])], promote_options="permissive"
            ).types[0]
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kinds[name] = pa.string()


def _span(file: InputFile, start: int, end: int) -> tuple[int, int, int]:
    first, last = start // _INDEX_ROWS, -(-end // _INDEX_ROWS)
    return file.index[first], file.index[last] if last < len(file.index) else file.size, start % _INDEX_ROWS


def _text_of(folder: Folder, unit: Unit) -> bytes:
    """Return the bytes of the indexed stretch that holds a unit."""
    first, last, _ = unit.span
    with folder.filesystem.open_input_file(unit.path) as source:
        source.seek(first)
        return bytes(source.read(last - first))
