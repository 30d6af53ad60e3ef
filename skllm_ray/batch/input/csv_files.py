"""CSV as input. One parser, Python's, decides what a row is: when the file is looked at and when it is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

import pyarrow as pa

from skllm_ray.batch.input.slices import INDEX_ROWS, InputFile, Look, Unit, is_exact
from skllm_ray.batch.input.text_files import BOM, MOST_BYTES, SCAN_BYTES, Utf8Check, indexed, stretch, text_start
from skllm_ray.batch.storage import Folder

_END: Final = "\0end"
_SEPARATORS: Final = ",;\t|"
_MOST_HEADER: Final = 1 << 20


def scan_csv(folder: Folder, file: InputFile) -> Look:
    """Find where rows begin. All columns are texts, since CSV has no types.

    Raises
    ------
    ValueError
        If a quote is opened and never closed, so that rows would vanish in a field; if a row has more fields than the
        header; if the file is no UTF-8.
    """
    lines = _Lines(folder, file)
    separator = separator_of(_head(folder, file, lines.at))
    rows = _rows(chain(lines, [_END]), separator)  # in an open quote, the end is part of a field; else it is a row
    header = next(rows)
    if header[0].lower().startswith("sep="):
        raise ValueError("it begins with the line 'sep=', which spreadsheets alone know; take that line out")
    index, n_rows, last, width, long = [lines.at], 0, header, len(header), ""
    while some := list(islice(rows, INDEX_ROWS)):
        if not long and max(map(len, some)) > width:
            wide = ((i, row) for i, row in enumerate(some, n_rows + 1) if len(row) > width and any(row[width:]))
            long = next((f"row {i:,} has {len(row):,} fields, and the header {width:,}" for i, row in wide), "")
        n_rows += len(some)
        last = some[-1]
        if len(some) == INDEX_ROWS:
            index.append(lines.at)
    if last != [_END]:
        raise ValueError(f"a quote is opened in row {n_rows:,} and never closed")
    if long:
        raise ValueError(f"{long}; fields that hold {separator!r} must stand in quotes")
    lines.utf8.check()
    if header is last:
        return Look(indexed(file, [], 0), pa.schema([]))
    names = [name.encode("latin-1").decode("utf-8", "replace") for name in header]
    return Look(indexed(file, index, n_rows - 1), pa.schema([(name, pa.string()) for name in names]))


def read_csv(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows. An empty field is null, and so are those that a short row lacks."""
    with folder.filesystem.open_input_file(unit.path) as source:
        head = source.read(unit.header).removeprefix(BOM).decode("utf-8", "replace")
    separator = separator_of(head) if is_exact(schema) else ","
    names = next(_rows_in(head, separator))
    skip = unit.span[2]
    text = stretch(folder, unit).decode("utf-8", "replace")  # bytes that are no UTF-8 cost themselves alone
    rows = list(islice(_rows_in(text, separator), skip, skip + unit.n_rows))
    found: dict[str, pa.Array] = {"": pa.nulls(len(rows))}
    for name in set(columns) & set(names):
        i = names.index(name)
        found[name] = pa.array([row[i] or None if i < len(row) else None for row in rows], pa.string())
    return pa.table(found)


def separator_of(head: str) -> str:
    r"""Return what separates the fields of a file that begins with `head`: a comma, unless the header has none.

    Examples
    --------
    >>> [separator_of(head) for head in ("id,text", "id;text", '"id"\t"text"', "text")]
    [',', ';', '\t', ',']
    """
    line = next(filter(str.strip, io.StringIO(head, newline=None)), "")
    counts = {one: len(next(_rows([line], one), [])) for one in _SEPARATORS}
    if counts[","] > 1:
        return ","
    return max(counts, key=lambda one: counts[one])


def _head(folder: Folder, file: InputFile, start: int) -> str:
    """Return a file's beginning, byte for letter."""
    with folder.filesystem.open_input_stream(file.path, compression=None) as stream:
        return bytes(stream.read(_MOST_HEADER))[start:].decode("latin-1")


def _rows_in(text: str, separator: str) -> Iterator[list[str]]:
    return _rows(io.StringIO(text, newline=""), separator)


def _rows(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """Yield the rows in some lines, which keep their ends; blank lines are passed over."""
    # Without a limit, a quote that is never closed would take all that follows into memory; the usual one, 128 KiB, is
    # less than a long text.
    csv.field_size_limit(MOST_BYTES)
    reader = csv.reader(lines, delimiter=separator)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}, in line {reader.line_num:,}") from None


class _Lines:
    """A file's lines, and the byte behind the last that was taken."""

    def __init__(self, folder: Folder, file: InputFile) -> None:
        self.at = text_start(folder, file)
        self.utf8 = Utf8Check()
        self._stream = folder.filesystem.open_input_stream(file.path, compression=None, buffer_size=SCAN_BYTES)

    def __iter__(self) -> Iterator[str]:
        with self._stream as stream:
            stream.read(self.at)
            # Latin-1 has one character for each byte, so that lengths are bytes; what CSV is made of is ASCII in it as
            # in UTF-8.
            for line in io.TextIOWrapper(stream, "latin-1", newline=""):
                self.at += len(line)
                self.utf8.line(line)
                yield line
