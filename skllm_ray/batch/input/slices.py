"""Units of work: an input's files, where their rows are, and the slices that they are cut into."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, Final, overload

import numpy as np
import pyarrow as pa

from skllm_ray.batch.storage import FileInfo

MOST_ROWS: Final = 8192
"""The most rows in a unit."""
INDEX_ROWS: Final = 1024
"""A text file's rows between two positions that are known."""
_LEAST_ROWS: Final = 256
_UNITS: Final = 128  # how many units an input of middling size is cut into
_MOST_BYTES: Final = 64 << 20
_FILE_BITS: Final = 40  # no file has as many rows


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


SCHEMA_KEY: Final = b"skllm_ray"
"""What the metadata of a job's schema are called."""


def is_exact(schema: pa.Schema) -> bool:
    """Return whether a job's types keep every value: outputs that the first release began go on as they were."""
    return SCHEMA_KEY in (schema.metadata or {})


@dataclass(frozen=True)
class Look:
    """What a look at a file told."""

    file: InputFile
    schema: pa.Schema
    """Its columns, as it has them."""
    bounds: Callable[[str], tuple[int, int] | None] | None = None
    """Gives the least and the largest whole number of a column, where that is known."""


@dataclass(frozen=True, slots=True)
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
    def positions(self) -> range:
        """Numbers for its rows that no other row of the input has, whichever files can be read.

        Examples
        --------
        >>> Unit("b.csv", 1, 5, 2).positions == range(2**40 + 5, 2**40 + 7)
        True
        """
        first = (self.number << _FILE_BITS) + self.start
        return range(first, first + self.n_rows)

    @property
    def part_name(self) -> str:
        """The name of its output."""
        return f"part-{self.key}.parquet"


def rows_per_unit(files: Sequence[InputFile]) -> int:
    """Return how many rows a unit has: enough units to share out, none needlessly small, none too large for memory."""
    total = sum(file.n_rows for file in files)
    return min(MOST_ROWS, rows_in_memory(files), max(_LEAST_ROWS, -(-total // _UNITS)))


def rows_in_memory(files: Sequence[InputFile]) -> int:
    """Return how many rows, with all their columns, have room in memory."""
    wide = sum(file.n_bytes for file in files) / max(1, sum(file.n_rows for file in files))
    return max(1, int(_MOST_BYTES / max(1.0, wide)))


class Units(Sequence[Unit]):
    """The units of all files, each made when it is looked at: a plan may have a million.

    Parameters
    ----------
    files : sequence of InputFile
        The input.
    unit_rows : int
        Rows in a unit, at most.
    cuts : sequence of tuple of int, default=()
        (file, row) pairs that no unit crosses.
    """

    def __init__(self, files: Sequence[InputFile], unit_rows: int, cuts: Sequence[tuple[int, int]] = ()) -> None:
        by_file: dict[int, list[int]] = {}
        for number, row in cuts:
            by_file.setdefault(number, []).append(row)
        bounds = [
            np.array([0] if file.error is not None else _bounds(file, unit_rows, by_file.get(number, ())))
            for number, file in enumerate(files)
        ]
        self._files = files
        self._numbers = np.repeat(np.arange(len(files), dtype=np.int32), [len(some) - 1 for some in bounds])
        self._starts = np.concatenate([np.zeros(0, np.int64), *(some[:-1] for some in bounds)])
        self._ends = np.concatenate([np.zeros(0, np.int64), *(some[1:] for some in bounds)])
        self._last: tuple[int, list[int]] = -1, []

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, i: int) -> Unit: ...
    @overload
    def __getitem__(self, i: slice) -> list[Unit]: ...
    def __getitem__(self, i: int | slice) -> Unit | list[Unit]:
        if isinstance(i, slice):
            return [self[one] for one in range(*i.indices(len(self)))]
        number = int(self._numbers[i])
        file = self._files[number]
        if self._last[0] != number:
            self._last = number, _begins(file)
        return _unit(file, number, int(self._starts[i]), int(self._ends[i]), self._last[1])


def cut(files: Sequence[InputFile], unit_rows: int, cuts: Sequence[tuple[int, int]] = ()) -> Iterator[Unit]:
    """Yield the units of all files; none crosses one of `cuts`, which are (file, row) pairs."""
    yield from Units(files, unit_rows, cuts)


def cut_file(file: InputFile, number: int, unit_rows: int, cuts: Sequence[int] = ()) -> Iterator[Unit]:
    """Yield the units of the file of a `number`; none crosses one of the rows in `cuts`."""
    begins = _begins(file)
    for start, end in pairwise(_bounds(file, unit_rows, cuts)):
        yield _unit(file, number, start, end, begins)


# --- inside -------------------------------------------------------------------------------------------------------


def _unit(file: InputFile, number: int, start: int, end: int, begins: Sequence[int]) -> Unit:
    header = file.index[0] if file.index else 0
    span = _span(file, start, end) if file.index else (0, 0, 0)
    told = file.size, file.mtime_ns
    return Unit(file.path, number, start, end - start, told, _pieces(begins, start, end), header, span)


def _begins(file: InputFile) -> list[int]:
    """Return the first rows of the row groups, and the end."""
    return list(accumulate(file.groups, initial=0))


def _bounds(file: InputFile, unit_rows: int, cuts: Sequence[int]) -> list[int]:
    """Return the rows at which units begin, and the end."""
    bounds = {0, file.n_rows, *(row for row in cuts if 0 < row < file.n_rows)}
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


def _pieces(begins: Sequence[int], start: int, end: int) -> tuple[tuple[int, int, int], ...]:
    """Return the pieces of row groups that make up some rows; `begins` are the groups' first rows, and the end."""
    found = []
    for group in range(max(0, bisect_right(begins, start) - 1), len(begins) - 1):
        if begins[group] >= end:
            break
        first, last = max(start, begins[group]), min(end, begins[group + 1])
        if first < last:
            found.append((group, first - begins[group], last - first))
    return tuple(found)


def _span(file: InputFile, start: int, end: int) -> tuple[int, int, int]:
    first, last = start // INDEX_ROWS, -(-end // INDEX_ROWS)
    return file.index[first], file.index[last] if last < len(file.index) else file.size, start % INDEX_ROWS
