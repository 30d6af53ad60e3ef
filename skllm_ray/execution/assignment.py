"""Which replica of a model gets the next rows. Pure: no Ray, and no clock of its own.

::

    hand out     to the replica that would be done first, two blocks to each; a new one gets a few rows first. A block
                 that a slow replica would finish after everything else is done waits for a faster one: one whose
                 speed nobody knows is as fast as its first rows may still show. At the end,
                 and for a single block, the idle replicas share it, each by its speed
    drained      a replica on a node that is to go gets no more rows

A replica's speed is what it was seen to do, in rows/s; a new one counts as an ordinary one. Rows are not equally long,
so that speeds follow slowly. How many replicas there should be is decided in :mod:`skllm_ray.execution.scaling`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

CALLS_EACH: Final = 2
"""Calls that a replica has at once: one that it works at, and one that waits for it."""
LEAST_SLICE: Final = 16
"""Rows below which a block is not shared out any further."""
FEWEST_ROWS: Final = 32
"""Rows that a replica is kept for."""
BLOCK_ROWS: Final = 256
_FIRST_ROWS: Final = 16  # of a replica whose speed nobody knows, beside others
_FORGET: Final = 0.8  # of what a replica did before, at each call


@dataclass(slots=True)
class Speed:
    """How fast a replica is, learnt from the calls that it finishes."""

    rows: float = 0.0
    seconds: float = 0.0
    since: float = 0.0
    """When it began what it works at now."""

    @property
    def rate(self) -> float | None:
        """Rows per second; None while nothing is known."""
        return self.rows / self.seconds if self.seconds > 0 and self.rows > 0 else None

    def begin(self, now: float, *, idle: bool) -> None:
        """Note that a call begins; `idle` tells that there was none."""
        self.since = now if idle else self.since

    def at_most(self, rows: int, now: float) -> float | None:
        """Return what the rate may be where nothing else is known of it than that `rows` are not done yet."""
        return rows / max(1e-6, now - self.since) if rows and self.rate is None else None

    def end(self, rows: int, now: float) -> None:
        """Note that a call over some rows is done."""
        self.rows = self.rows * _FORGET + rows
        self.seconds = self.seconds * _FORGET + max(1e-6, now - self.since)
        self.since = now


@dataclass(slots=True)
class Load:
    """What a replica works at."""

    rows: int = 0
    calls: int = 0
    rate: float | None = None
    """Rows per second; None while nothing is known."""
    at_most: float | None = None
    """What its first rows, which it works at, may still show its rate to be; None where there are none."""
    leaving: bool = False
    """Whether its node goes away."""


def assign(loads: Mapping[int, Load], rows: int, left: int | None, *, whole: bool = False) -> list[tuple[int, int]]:
    """Return which replicas get a block now, and how many rows of it each; nothing where it is better to wait.

    Parameters
    ----------
    loads : mapping of int to Load
        The replicas, by number.
    rows : int
        The block's.
    left : int or None
        Rows that are not done yet, in all, as far as known.
    whole : bool, default=False
        Whether the block must go to one replica.

    Examples
    --------
    >>> assign({1: Load(rate=100.0), 2: Load(rate=50.0)}, 150, left=150)
    [(1, 100), (2, 50)]
    >>> assign({1: Load(256, 2, 100.0), 2: Load(0, 0, 10.0)}, 256, left=512)  # the slow one would be the last to finish
    []
    """
    usable = {number: load for number, load in loads.items() if not load.leaving}
    if not usable:
        return []
    rates = _rates(usable)
    waiting = 0 if left is None else left - rows - sum(load.rows for load in loads.values())
    idle = [number for number, load in usable.items() if not load.calls]
    new = [number for number in idle if usable[number].rate is None]
    if not whole and len(new) > 1:
        idle, waiting = new, 0  # each shows on a part how fast it is
    if not whole and len(idle) > 1 and waiting < FEWEST_ROWS * (len(idle) - 1):
        together_s = rows / sum(rates[number] for number in idle)
        shares = _shares({number: rates[number] for number in idle}, rows)
        if len(shares) > 1 and (new or together_s <= min((load.rows + rows) / rates[n] for n, load in usable.items())):
            return shares
    chosen = _choose(usable, rates, rows, left)
    if chosen is None:
        return []
    rest = rows - _FIRST_ROWS
    if whole or usable[chosen].rate is not None or rest < LEAST_SLICE or len(usable) == 1:
        return [(chosen, rows)]
    others = {number: load for number, load in usable.items() if number != chosen}
    best = min(others, key=lambda number: (others[number].rows + rest) / rates[number])
    return [(chosen, _FIRST_ROWS), (best, rest)]


def _choose(usable: Mapping[int, Load], rates: Mapping[int, float], rows: int, left: int | None) -> int | None:
    """Return the replica that should work at a block; None where one that has no room now will be done sooner."""
    done = {number: (load.rows + rows) / rates[number] for number, load in usable.items()}
    if rows <= LEAST_SLICE:
        return min(done, key=lambda number: done[number])
    free = [
        number for number, load in usable.items() if load.calls < (CALLS_EACH if load.rate or len(usable) == 1 else 1)
    ]
    if not free:
        return None
    best = min(free, key=lambda number: done[number])
    if left is None:
        return best
    in_flight = sum(load.rows for load in usable.values())
    hoped = {number: load.at_most or rates[number] for number, load in usable.items()}
    everything_s = max(left, in_flight + rows) / sum(hoped.values())
    soonest_s = min((load.rows + rows) / hoped[number] for number, load in usable.items())
    return best if done[best] <= max(everything_s, soonest_s) else None


def _rates(usable: Mapping[int, Load]) -> dict[int, float]:
    known = [load.rate for load in usable.values() if load.rate]
    ordinary = statistics.median(known) if known else 1.0
    return {number: load.rate or ordinary for number, load in usable.items()}


def _shares(rates: Mapping[int, float], rows: int) -> list[tuple[int, int]]:
    """Share rows out by speed; who would get few gets none."""
    fast = sorted(rates, key=lambda number: -rates[number])
    while len(fast) > 1 and rows * rates[fast[-1]] / sum(rates[number] for number in fast) < LEAST_SLICE:
        fast.pop()
    total, found, begun = sum(rates[number] for number in fast), list[tuple[int, int]](), 0
    until = 0.0
    for number in fast:
        until += rates[number]
        end = round(rows * until / total)
        found.append((number, end - begun))
        begun = end
    return found


# --- how many ------------------------------------------------------------------------------------------------------


def block_sizes(rows: int, slots: int, most: int = BLOCK_ROWS, least: int = FEWEST_ROWS) -> list[int]:
    """Return the sizes of a call's blocks: small ones at the end, so that all slots end together.

    So is the first, which replicas share whose speeds nobody knows.

    Examples
    --------
    >>> block_sizes(1000, 4)
    [32, 121, 105, 92, 81, 71, 62, 54, 47, 41, 36, 32, 32, 32, 32, 32, 32, 32, 32, 2]
    """
    found = [min(rows, most, max(least, LEAST_SLICE * (slots // CALLS_EACH)))] if rows else []
    left = rows - sum(found)
    while left:
        found.append(min(left, most, max(least, left // (2 * slots))))
        left -= found[-1]
    return found


def pieces(sizes: Sequence[int], slots: int, least: int = 64) -> list[int]:
    """Return into how many pieces each of the units that wait is to be cut, so that no slot has a long one at the end.

    Examples
    --------
    >>> pieces([8192] * 3, slots=8), set(pieces([8192] * 100, slots=8)), pieces([64, 64], slots=8)
    ([6, 6, 6], {1}, [1, 1])
    """
    size = max(least, sum(sizes) // (2 * slots))
    return [max(1, -(-n // size)) if n >= 2 * size else 1 for n in sizes]
