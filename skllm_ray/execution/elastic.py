"""How many replicas a model should have, and which of them gets the next rows. Pure: no Ray, and no clock of its own.

::

    demand       rows that are left, as those who ask tell; where nobody knows, the calls that run or wait
    grow to      as many replicas as have rows to do, each for as long as it takes to start one
    keep         those that work, and one more for every few rows that nobody works at yet
    ask          pending actors, which make Ray's autoscaler bring nodes; nothing outlives the job, and other jobs'
                 wishes stay as they are. Where `max_replicas` is not set, only for what there is room, and the first
    give back    a replica that has been idle for some seconds and is not kept; whole nodes first, then the slowest
    hand out     to the replica that would be done first, two blocks to each; a new one gets a few rows first. A block
                 that a slow replica would finish after everything else is done waits for a faster one: one whose
                 speed nobody knows is as fast as its first rows may still show. At the end,
                 and for a single block, the idle replicas share it, each by its speed
    drained      such a node gets no more rows, and its replicas are replaced while they finish what they have
    shared       a model that waits for room gets a replica of one that has far less to do

A replica's speed is what it was seen to do, in rows/s; a new one counts as an ordinary one. Rows are not equally long,
so that speeds follow slowly. `PoolActor` does what is decided here, about twice a second.
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
_BLOCK_ROWS: Final = 256
_FEWEST_ROWS: Final = 32  # that a replica is kept for
_FIRST_ROWS: Final = 16  # of a replica whose speed nobody knows, beside others
_FORGET: Final = 0.8  # of what a replica did before, at each call
_START_S: Final = 60.0  # to start a replica, as long as none has told
_FAR_LESS: Final = 2.0


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
    if not whole and len(idle) > 1 and waiting < _FEWEST_ROWS * (len(idle) - 1):
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


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be done with a model."""

    rows: int | None
    """Rows that are left, those in flight counted; None where nobody knows."""
    rows_in_flight: int = 0
    busy: int = 0
    """Replicas that work."""
    calls: int = 0
    """Calls in flight, and those that wait."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many replicas there should be."""

    grow: int
    """As many are started, where there are fewer."""
    keep: int
    """As many stay, where there are more."""


def wanted(demand: Demand, least: int, most: int, rate: float | None = None, start_s: float | None = None) -> Wanted:
    """Return how many replicas a model should have.

    Parameters
    ----------
    demand : Demand
        What is to be done.
    least, most : int
        The user's bounds.
    rate : float or None, default=None
        What one replica does, in rows per second, where it is known.
    start_s : float or None, default=None
        How long it takes until a new one works, where it is known.

    Examples
    --------
    >>> wanted(Demand(rows=100_000), 1, 4)
    Wanted(grow=4, keep=4)
    >>> wanted(Demand(rows=3_000), 1, 4, rate=10.0, start_s=120.0)  # a third one would have nothing left to do
    Wanted(grow=2, keep=4)
    >>> wanted(Demand(rows=64, rows_in_flight=64, busy=1, calls=1), 1, 4)  # a last block, which one of them works at
    Wanted(grow=1, keep=1)
    """
    if demand.rows is None:
        keep = _within(-(-demand.calls // CALLS_EACH), least, most)
        return Wanted(keep, keep)
    keep = _within(demand.busy + -(-max(0, demand.rows - demand.rows_in_flight) // _FEWEST_ROWS), least, most)
    worth = demand.rows // _BLOCK_ROWS if rate is None else int(demand.rows / (rate * (start_s or _START_S)))
    return Wanted(min(keep, _within(worth, least, most)), keep)


def _within(n: int, least: int, most: int) -> int:
    return max(least, min(n, most))


@dataclass(frozen=True, slots=True)
class Seat:
    """A replica, as one that may leave."""

    number: int
    node: str
    idle_s: float
    """For how long it has had nothing to do; 0 while it works."""
    rate: float | None = None


def to_leave(seats: Sequence[Seat], keep: int, idle_s: float) -> list[int]:
    """Return the replicas that are to end: idle ones beyond `keep`, so that whole nodes become free.

    Examples
    --------
    >>> to_leave([Seat(1, "a", 0.0), Seat(2, "a", 30.0), Seat(3, "b", 30.0)], keep=2, idle_s=10.0)
    [3]
    """
    working = {seat.node for seat in seats if seat.idle_s < idle_s}
    idle = sorted(
        (seat for seat in seats if seat.idle_s >= idle_s),
        key=lambda seat: (seat.node in working, sum(one.node == seat.node for one in seats), seat.node, seat.rate or 0),
    )
    return [seat.number for seat in idle[: max(0, len(seats) - keep)]]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model has of the cluster, and what it would have."""

    key: str
    replicas: int
    least: int
    waits_s: float = 0.0
    """How long it has waited for room; 0 where it does not."""
    work_s: float = 0.0
    """How long one replica would work at what is left."""
    kind: str = "GPU"
    """What its replicas take, and what another must give back so that they find room: GPUs, or CPUs alone."""
    priority: int = 0
    """The highest of those who ask it."""


def giver(claims: Sequence[Claim], patience_s: float) -> str | None:
    """Return the model that is to give back a replica, so that another finds room; None where none has to.

    Nobody is left with less than its least, so that two models never take their last replica from one another.

    Examples
    --------
    >>> giver([Claim("fast", 4, 1, work_s=100.0), Claim("strong", 0, 1, waits_s=9.0, work_s=100.0)], patience_s=5.0)
    'fast'
    """
    takers = [claim for claim in claims if claim.waits_s >= patience_s]
    for taker in sorted(takers, key=lambda claim: (-claim.priority, claim.replicas, -claim.waits_s)):
        others = [claim for claim in claims if _may_give(claim, taker)]
        if others:
            return min(others, key=lambda claim: claim.work_s / claim.replicas).key
    return None


def _may_give(claim: Claim, taker: Claim) -> bool:
    if claim.key == taker.key or claim.kind != taker.kind or claim.replicas <= claim.least:
        return False
    if taker.replicas < taker.least or not taker.replicas:
        return True
    if claim.priority != taker.priority:
        return claim.priority < taker.priority
    return claim.work_s / claim.replicas * _FAR_LESS < taker.work_s / taker.replicas


# --- how small ------------------------------------------------------------------------------------------------------


def block_sizes(rows: int, slots: int, most: int = _BLOCK_ROWS, least: int = _FEWEST_ROWS) -> list[int]:
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
