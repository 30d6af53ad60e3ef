"""CSV as input. One parser, Python's, decides what a row is: when the file is looked at and when it is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

import pyarrow as pa

from skllm_ray.batch.storage import Folder
from skllm_ray.batch.text_input import BOM, SCAN_BYTES, indexed, stretch, text_start
from skllm_ray.batch.units import INDEX_ROWS, InputFile, Unit

_MOST_FIELD: Final = 64 << 20
_END: Final = "\0end"


def scan_csv(folder: Folder, file: InputFile) -> tuple[InputFile, pa.Schema]:
    """Find where rows begin. All columns are texts, since CSV has no types.

    Raises
    ------
    ValueError
        If a quote is opened and never closed, so that rows would vanish in a field.
    """
    lines = _Lines(folder, file)
    rows = _rows(chain(lines, [_END]))  # in an open quote, the end is part of a field; else it is a row of its own
    header = next(rows)
    index, n_rows, last = [lines.at], 0, header
    while some := list(islice(rows, INDEX_ROWS)):
        n_rows += len(some)
        last = some[-1]
        if len(some) == INDEX_ROWS:
            index.append(lines.at)
    if last != [_END]:
        raise ValueError(f"a quote is opened in row {n_rows:,} and never closed")
    if header is last:
        return indexed(file, [], 0), pa.schema([])
    names = [name.encode("latin-1").decode("utf-8", "replace") for name in header]
    return indexed(file, index, n_rows - 1), pa.schema([(name, pa.string()) for name in names])


def read_csv(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows. An empty field is null, and so are those that a short row lacks."""
    del schema
    with folder.filesystem.open_input_file(unit.path) as source:
        names = next(_rows_in(source.read(unit.header).removeprefix(BOM)))
    skip = unit.span[2]
    rows = list(islice(_rows_in(stretch(folder, unit)), skip, skip + unit.n_rows))
    found: dict[str, pa.Array] = {"": pa.nulls(len(rows))}
    for name in set(columns) & set(names):
        i = names.index(name)
        found[name] = pa.array([row[i] or None if i < len(row) else None for row in rows], pa.string())
    return pa.table(found)


def _rows_in(text: bytes) -> Iterator[list[str]]:
    """Yield the rows in a piece of a file; bytes that are no UTF-8 cost themselves alone."""
    return _rows(io.StringIO(text.decode("utf-8", "replace"), newline=""))


def _rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the rows in some lines, which keep their ends; blank lines are passed over."""
    # Without a limit, a quote that is never closed would take all that follows into memory; the usual one, 128 KiB, is
    # less than a long text.
    csv.field_size_limit(_MOST_FIELD)
    try:
        yield from filter(None, csv.reader(lines))
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from None


class _Lines:
    """A file's lines, and the byte behind the last that was taken."""

    def __init__(self, folder: Folder, file: InputFile) -> None:
        self.at = text_start(folder, file)
        self._stream = folder.filesystem.open_input_stream(file.path, compression=None, buffer_size=SCAN_BYTES)

    def __iter__(self) -> Iterator[str]:
        with self._stream as stream:
            stream.read(self.at)
            # Latin-1 has one character for each byte, so that lengths are bytes; what CSV is made of is ASCII in it as
            # in UTF-8.
            for line in io.TextIOWrapper(stream, "latin-1", newline=""):
                self.at += len(line)
                yield line
