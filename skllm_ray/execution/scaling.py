"""How many replicas a model should have. Pure: no Ray, and no clock of its own.

::

    demand       rows that are left, as those who ask tell; where nobody knows, the calls that run or wait
    grow to      as many replicas as have rows to do, each for as long as it takes to start one
    keep         those that work, and one more for every few rows that nobody works at yet
    ask          pending actors, which make Ray's autoscaler bring nodes; nothing outlives the job, and other jobs'
                 wishes stay as they are. Where `max_replicas` is not set, only for what there is room, and the first
    give back    a replica that has been idle for some seconds and is not kept; whole nodes first, then the slowest
    drained      a node that is to go: its replicas are replaced while they finish what they have
    shared       a model that waits for room gets a replica of one that has far less to do

`PoolActor` does what is decided here, about twice a second. Which replica gets the next rows is decided in
:mod:`skllm_ray.execution.assignment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from skllm_ray.execution.assignment import BLOCK_ROWS, CALLS_EACH, FEWEST_ROWS

_START_S: Final = 60.0  # to start a replica, as long as none has told
_FAR_LESS: Final = 2.0


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
    keep = _within(demand.busy + -(-max(0, demand.rows - demand.rows_in_flight) // FEWEST_ROWS), least, most)
    worth = demand.rows // BLOCK_ROWS if rate is None else int(demand.rows / (rate * (start_s or _START_S)))
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
