"""Where rows stand in the cache, so that each is computed as it would be alone.

A CPU adds attention up in groups of `LANES` cells. A row that begins elsewhere within a group than it would alone is
added up in another order; the last bits of its floats differ, and where they tip the rounding of an activation to 8
bits, its log-probabilities differ visibly. llama.cpp gives a token the first cell that is free. So every row gets some
whole groups, its *place*: first a copy of the tokens with which the shared beginning enters an unfinished group, then
the row's tokens and room for those of its continuations, and up to the end tokens that nobody looks at. A place keeps
its first and last part for the next row, which then decodes nothing but its own tokens if it is about as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.sequences import SharedTokens

LANES = 16
"""Floats that a CPU adds up at once: with AVX-512, and fewer elsewhere."""
KERNEL = 8
"""Tokens that a CPU's kernels for 4-bit to 6-bit weights take at once, twice: what is left over at a decode's end is
computed by others, which round otherwise. Exact scores decode multiples."""
_STEP = 256  # cells: llama.cpp's attention looks at multiples
_FEWEST = 8  # places, where the cache has room for them


@dataclass(slots=True)
class Tokens:
    """Some of a row's tokens, of shape (n,) each, in the order of their cells."""

    offsets: NDArray[np.int64]
    """Their cells, counted from the row's first one."""
    tokens: NDArray[np.int32]
    positions: NDArray[np.int64]
    firsts: NDArray[np.int64]
    """The first of the sequences that each belongs to, counted from the row's first one."""
    counts: NDArray[np.int64]
    wanted: NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class Place:
    """The cells of one row."""

    first: int
    """The first of its sequences; the last one is that of the fillers."""
    size: int
    """How many cells they are, whole groups."""
    taken: set[int] = field(default_factory=set)
    """The cells with tokens of the row and of the shared beginning, counted from the place's first one."""
    fillers: dict[int, int] = field(default_factory=dict)
    """The cells with tokens that nobody looks at, and these tokens' positions."""


class Places:
    """Places behind the beginning that the rows of a run share.

    Parameters
    ----------
    engine : Engine
        The model; its shared beginning ends with a group.
    tail : sequence of int
        The tokens behind it that the rows share as well, fewer than a group.
    n_sequences : int
        Sequences that a row takes at most.
    """

    def __init__(self, engine: Engine, tail: Sequence[int], n_sequences: int) -> None:
        if not isinstance(engine.sequences, SharedTokens):
            raise TypeError("States that are copied have no cells.")
        self._engine, self._sequences = engine, engine.sequences
        self._tail, self._n_sequences = list(tail), n_sequences
        self._begin = engine.n_prefix
        self._size = 0
        self._most_cells = 0
        self.all: list[Place] = []
        """In the order of their cells."""

    def start(self, needs: Sequence[int]) -> None:
        """Give up all places, and choose the size of those to come by the cells that the next rows need, ascending."""
        self._engine.release()
        self.all.clear()
        at_once = max(_FEWEST, self._room // self._whole(needs[0]))
        self._size = self._whole(needs[at_once - 1]) if len(needs) > at_once else 0  # else each row has its own
        cells = max(self._room, _FEWEST * self.size(needs[0]))
        self._most_cells = min(cells, self._engine.room - KERNEL)

    def holds(self, place: Place, need: int) -> bool:
        """Return whether a place is large enough for a row of so many cells."""
        return len(self._tail) + need <= place.size

    def size(self, need: int) -> int:
        """Return the cells of a new place for a row of so many cells."""
        return max(self._size, self._whole(need))

    def open(self, need: int) -> Place | None:
        """Return a new place behind the others, or None where there is no room for it."""
        each, size = self._n_sequences + 1, self.size(need)
        first, cells = 1 + len(self.all) * each, sum(place.size for place in self.all)
        if self.all and (cells + size > self._most_cells or first + each > self._engine.n_sequences):
            return None
        self.all.append(Place(first, size))
        return self.all[-1]

    @property
    def completes(self) -> bool:
        """Whether the cache has room for what makes a decode a multiple of `KERNEL`."""
        return sum(place.size for place in self.all) + KERNEL <= self._engine.room

    def n_added(self, place: Place, row: Tokens, *, is_new: bool) -> int:
        """Return how many tokens :meth:`put` adds at most."""
        kept = place.fillers.keys() | (place.taken & set(range(len(self._tail))) if is_new else place.taken)
        return place.size - len(kept) + len(place.fillers.keys() & set((row.offsets + len(self._tail)).tolist()))

    def put(self, batch: Batch, place: Place, row: Tokens, *, is_new: bool) -> None:
        """Add tokens of the row of a place to a decode, and what keeps them where they are; places in their order.

        Parameters
        ----------
        batch : Batch
            The decode.
        place : Place
            Where the row stands.
        row : Tokens
            Its tokens.
        is_new : bool
            Whether the row takes the place of another one.
        """
        for before in self.all:
            if before is place:
                break
            self._fill(batch, before, range(before.size))
        n_tail = len(self._tail)
        if is_new:
            self._remove_row(place)
        if n_tail and 0 not in place.taken:
            batch.add(self._tail, self._begin, place.first, self._n_sequences)
            place.taken.update(range(n_tail))
        offsets = (row.offsets + n_tail).tolist()
        self._free(place, offsets)
        place.taken.update(offsets)
        parts = np.flatnonzero(np.diff(row.offsets) > 1) + 1
        for part in np.split(np.arange(len(offsets)), parts):
            self._fill(batch, place, range(offsets[part[0]]))
            batch.add(
                row.tokens[part],
                row.positions[part].astype(np.int32),
                (place.first + row.firsts[part]).astype(np.int32),
                row.counts[part].astype(np.int32),
                wanted=row.wanted[part],
            )

    def decoded(self) -> None:
        """Take note that the decode is done: what completed it makes room."""
        self._engine.release(0)

    @property
    def _room(self) -> int:
        """Cells that attention looks at anyway, where a decode is not short."""
        return -(-(self._begin + _STEP * 3 // 4) // _STEP) * _STEP - self._begin

    def _whole(self, need: int) -> int:
        return -(-(len(self._tail) + need) // LANES) * LANES

    def _remove_row(self, place: Place) -> None:
        n_tail = len(self._tail)
        if len(place.taken) > n_tail:
            for sequence in range(place.first, place.first + self._n_sequences):
                self._sequences.remove(sequence, self._begin + n_tail)
        place.taken.intersection_update(range(n_tail))

    def _free(self, place: Place, offsets: Sequence[int]) -> None:
        """Remove the fillers of some cells."""
        positions = sorted(place.fillers.pop(offset) for offset in offsets if offset in place.fillers)
        for part in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1) if positions else ():
            self._sequences.remove(place.first + self._n_sequences, int(part[0]), int(part[-1]) + 1)

    def _fill(self, batch: Batch, place: Place, cells: range) -> None:
        """Fill cells that are free with tokens that nobody looks at."""
        free = [cell for cell in cells if cell not in place.taken and cell not in place.fillers]
        if free:
            position = max(place.fillers.values(), default=self._begin - 1) + 1
            batch.fill(len(free), position, place.first + self._n_sequences)
            place.fillers.update(zip(free, range(position, position + len(free)), strict=True))
