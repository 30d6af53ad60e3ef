"""What the pool actor knows of each model: its replicas, those on their way, who asks, and what went wrong."""

from __future__ import annotations

import statistics
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from skllm_ray.errors import ClusterError
from skllm_ray.execution.arrivals import Arrival
from skllm_ray.execution.assignment import Load, Speed
from skllm_ray.execution.last_words import NOWHERE, Place
from skllm_ray.execution.model_actor import ReplicaInfo
from skllm_ray.execution.placement import Share, waits_for_room
from skllm_ray.execution.scaling import Demand, Seat
from skllm_ray.execution.weights import source_of
from skllm_ray.llm.base import StatefulSpec

_GROW_AGAIN_S: Final = 60.0  # after a failure, doubled each time
_WAITS_S: Final = 2.0  # for which a caller counts as waiting after it asked in vain
_LONGEST_WAIT_S: Final = 60.0  # for which a call gives way to others of a higher priority
_TOLD_S: Final = 600.0  # for which what a caller told of its work counts
_ENOUGH_ROWS: Final = 256  # to see which share of its rows a call asks a later model about
_EVENTS: Final = 500
_TELL_S: Final = 2.0  # for which replicas wait before that is told


@dataclass(slots=True)
class Replica:
    """An actor that holds a model, and what it works at."""

    handle: Any
    info: ReplicaInfo
    place: Place = NOWHERE
    load: Load = field(default_factory=Load)
    speed: Speed = field(default_factory=Speed)
    beside: bool = False
    """Whether it works on CPUs, beside replicas with GPUs."""
    touched: float = 0.0
    """When it was last given something, or done with it."""

    def load_at(self, now: float) -> Load:
        """Return what it works at, with what its first rows have shown by now."""
        self.load.at_most = self.speed.at_most(self.load.rows, now)
        return self.load

    def begin(self, rows: int, now: float) -> None:
        """Count a call over some rows."""
        self.speed.begin(now, idle=not self.load.calls)
        self.load.rows += rows
        self.load.calls += 1
        self.touched = now

    def end(self, rows: int, now: float, *, answered: bool) -> None:
        """Count a call as done."""
        if answered:
            self.speed.end(rows, now)
            self.load.rate = self.speed.rate
        self.load.rows = max(0, self.load.rows - rows)
        self.load.calls = max(0, self.load.calls - 1)
        self.touched = now

    def forget(self, calls: int) -> None:
        """Count `calls` only: callers have died and will not tell that theirs are done."""
        self.load.rows = self.load.rows * calls // max(1, self.load.calls)
        self.load.calls = calls


@dataclass(slots=True)
class Told:
    """What a caller told of its work."""

    left: int
    """Rows that are not done yet."""
    done: int
    at: float
    partial: bool
    """Whether only some of the rows come to this model: those of which an earlier one was unsure."""
    asked_before: int = 0
    """Rows that the model had been asked about when the caller began."""
    priority: int = 0


@dataclass(slots=True)
class Waiting:
    """A call that found no replica with room."""

    priority: int
    since: float
    asked_at: float
    """When it last asked."""


@dataclass(slots=True)
class Callers:
    """Who asks a model, and for how much."""

    told: dict[str, Told] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    asked: int = 0
    """Rows that the model was asked about."""

    def tell(self, caller: str, left: int, done: int, now: float, *, partial: bool, priority: int = 0) -> None:
        """Note what a caller has left to do; nothing left forgets it."""
        before = self.told.pop(caller, None)
        if left > 0:
            asked_before = self.asked if before is None else before.asked_before
            self.told[caller] = Told(left, done, now, partial, asked_before, priority)

    def wait(self, caller: str, priority: int, now: float) -> None:
        """Note that a call waits for a replica."""
        self.waiting.setdefault(caller, Waiting(priority, now, now)).asked_at = now

    def is_outranked(self, caller: str, priority: int, now: float) -> bool:
        """Return whether a call of a higher priority waits; who has waited for long is served all the same."""
        own = self.waiting.get(caller)
        if own is not None and now - own.since > _LONGEST_WAIT_S:
            return False
        return any(one.priority > priority and now - one.asked_at < _WAITS_S for one in self.waiting.values())

    def priority(self, now: float) -> int:
        """Return the highest of those who have rows left."""
        return max((told.priority for told in self.told.values() if now - told.at < _TOLD_S), default=0)

    def rows_left(self, now: float) -> int | None:
        """Return the rows that are left in all; None where nobody knows."""
        fresh = [told for told in self.told.values() if now - told.at < _TOLD_S]
        counts = [self._left(told) for told in fresh]
        known = [count for count in counts if count is not None]
        return sum(known) if known and len(known) == len(counts) else None

    def n_waiting(self, now: float) -> int:
        """Return how many calls wait for a replica."""
        self.waiting = {caller: told for caller, told in self.waiting.items() if now - told.asked_at < _WAITS_S}
        return len(self.waiting)

    def _left(self, told: Told) -> int | None:
        if not told.partial:
            return told.left
        if told.done < _ENOUGH_ROWS:
            return None
        return round(told.left * min(1.0, (self.asked - told.asked_before) / told.done))


@dataclass(slots=True)
class Model:
    """A model that somebody opened: its actors, and those that are on their way."""

    spec: StatefulSpec
    share: Share
    number: int
    callers: Callers = field(default_factory=Callers)
    replicas: dict[int, Replica] = field(default_factory=dict)
    loads: list[Future[None]] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    """Replicas that wait for room, or load."""
    is_ready: bool = False
    """Whether as many replicas as must have loaded."""
    has_answered: bool = False
    closed: bool = False
    given_up: ClusterError | None = None
    deaths: int = 0
    """Since the last answer."""
    words: str = ""
    """What the process that died last wrote at its end, where that tells why."""
    lost: set[int] = field(default_factory=set)
    """The replicas that were lost with their nodes."""
    used_at: float = 0.0
    """When a call last looked for it."""
    short_since: float | None = None
    """Since when it has had fewer replicas than it needs, for want of room; None where it has enough."""
    grow_at: float = 0.0
    beside_at: float = 0.0
    """When replicas on CPUs may be asked for again."""
    grow_pause_s: float = _GROW_AGAIN_S
    start_s: float | None = None
    """How long the latest replica took, from being asked for to being loaded."""
    events: deque[tuple[float, float, str]] = field(default_factory=lambda: deque(maxlen=_EVENTS))
    """What became of its replicas: when that was noted, and when it was, in seconds since 1970-01-01 UTC."""

    @property
    def is_loading(self) -> bool:
        """Whether replicas are on their way."""
        return any(not load.done() for load in self.loads)

    @property
    def failure(self) -> BaseException | None:
        """Why there is no replica and none on its way; None where there is one."""
        if self.given_up is not None or self.replicas or self.is_loading:
            return self.given_up
        return next((error for load in reversed(self.loads) if (error := load.exception()) is not None), None)

    @property
    def staying(self) -> dict[int, Replica]:
        """The replicas that are not about to leave; not those on CPUs beside others."""
        return {number: one for number, one in self.replicas.items() if not (one.load.leaving or one.beside)}

    @property
    def beside(self) -> list[Replica]:
        """Those on CPUs beside others that are not about to leave."""
        return [one for one in self.replicas.values() if one.beside and not one.load.leaving]

    @property
    def n_coming(self) -> int:
        """How many replicas are on their way, likewise."""
        return sum(not (arrival.withdrawn or arrival.beside) for arrival in self.arrivals)

    @property
    def waiting(self) -> list[Arrival]:
        """What was asked for and has found no room yet, likewise."""
        return [arrival for arrival in self.arrivals if arrival.is_waiting and not arrival.beside]

    @property
    def rate(self) -> float | None:
        """What an ordinary replica does, in rows/s."""
        known = [one.load.rate for one in self.replicas.values() if one.load.rate and not one.beside]
        return statistics.median(known) if known else None

    def unused_s(self, now: float) -> float:
        """Return for how long nobody has used the model; 0 while it loads, or somebody uses it or is about to."""
        told = any(now - one.at < _TOLD_S for one in self.callers.told.values())
        works = any(one.load.calls for one in self.replicas.values()) or self.callers.n_waiting(now) > 0
        if told or works or not (self.is_ready and self.replicas):
            return 0.0
        return now - max([self.used_at, *(one.touched for one in self.replicas.values())])

    def source_for(self, arrival: Arrival) -> Any:
        """Return the actor of another node from which a new one copies the model's files; None where there is none.

        Only those that found room before it are asked: two that came together would wait for one another.
        """
        before = [one for one in self.arrivals if one.placed_at is not None and one is not arrival]
        held = [(one.handle, one.place) for one in self.replicas.values()]
        held += [(one.actor, one.place) for one in before if (one.placed_at or 0.0) < (arrival.placed_at or 0.0)]
        others = [actor for actor, place in held if place.node != arrival.place.node]
        return source_of([*others, None], len(others))

    def note(self, event: str, times: int = 1, since_s: float = 0.0) -> None:
        """Note what became of replicas, now or some seconds ago."""
        now = time.time()
        self.events.extend([(now, now - since_s, event)] * times)

    def clear(self) -> list[Any]:
        """Forget the replicas; return their actors, for the caller to end."""
        found = [replica.handle for replica in self.replicas.values()]
        self.replicas.clear()
        return found

    def demand(self, now: float) -> Demand:
        """Return what is to be done."""
        held = self.replicas.values()
        calls = sum(replica.load.calls for replica in held)
        waiting = self.callers.n_waiting(now)
        rows = self.callers.rows_left(now)
        if rows is None and not calls and not waiting and not self.callers.told:
            rows = 0
        busy = sum(replica.load.calls > 0 for replica in held)
        return Demand(rows, sum(replica.load.rows for replica in held), busy, calls + waiting)

    def seats(self, now: float) -> list[Seat]:
        """Return the replicas that stay, as those that may leave."""
        return [
            Seat(number, one.place.node, 0.0 if one.load.calls else now - one.touched, one.load.rate)
            for number, one in self.staying.items()
        ]


@dataclass(frozen=True, slots=True)
class Opened:
    """How far a model is."""

    number: int
    """Which loading of the model this is; to be given when asking again."""
    spec: StatefulSpec
    """With the settings of its first use."""
    n_replicas: int
    """0 while it loads."""
    arriving: tuple[Any, ...] = ()
    """The actors that load."""
    waiting: str = ""
    """What it waits for, in words; empty where it does not."""


def opened(model: Model) -> Opened:
    """Return how far `model` is."""
    loading = tuple(arrival.actor for arrival in model.arrivals if arrival.placed_at is not None)
    waits = model.waiting and not loading and time.monotonic() - model.waiting[0].asked_at > _TELL_S
    waiting = waits_for_room(model.share, len(model.waiting)) if waits else ""
    return Opened(model.number, model.spec, len(model.replicas) if model.is_ready else 0, loading, waiting)


@dataclass(frozen=True, slots=True)
class Standing:
    """How many replicas a model has now, and what becomes of them."""

    replicas: int = 0
    nodes: int = 0
    waiting: int = 0
    """Asked for, without room so far."""
    loading: int = 0
    leaving: int = 0
    events: tuple[tuple[float, str], ...] = ()
    """What happened since the caller last asked, and when."""


def standing(model: Model, since: float) -> Standing:
    """Return how `model` stands, with what happened after `since`."""
    held = model.replicas.values()
    waiting = len(model.waiting)
    return Standing(
        replicas=len(model.replicas) if model.is_ready else 0,
        nodes=len({one.info.node if one.place is NOWHERE else one.place.node for one in held}),
        waiting=waiting,
        loading=len(model.arrivals) - waiting,
        leaving=sum(one.load.leaving for one in held),
        events=tuple((at, what) for noted, at, what in model.events if noted > since),
    )
