"""What the holders of a shared limit and the limit itself say to each other. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from skllm_ray.config import RateLimit
from skllm_ray.tasks.base import RowError

WINDOW_S = 60.0
"""The window of the servers' quotas, in seconds."""
PERMIT_S = 3.0
"""How long a granted permit may be used, in seconds from before it was asked for."""
LATE_S = 1.0
"""The longest a request travels before the server counts it, in seconds."""
SHARE_S = 5.0
"""How long a share of the concurrency holds without being renewed, in seconds."""
HEARTBEAT_S = 0.5
"""How often a busy holder reports, in seconds."""
LARGEST_LEASE = 32
"""Permits in one grant."""

NO_LIMIT = RateLimit()


@dataclass(frozen=True, slots=True)
class Released:
    """What became of permits of one lease."""

    lease: int
    """The grant that they came from; 0 where it is not known any more."""
    requests: int
    """How many requests were sent with them; 0 if they were not used."""
    reserved: int
    """The tokens that were set aside for them."""
    used: int
    """The tokens that they cost."""
    age_s: float
    """Seconds since the latest moment at which the server can have counted them."""
    permits: int
    """How many permits these were."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A 429 answer."""

    age_s: float
    """Seconds since its request was sent."""
    retry_after_s: float | None = None
    """How long the server asked to wait."""


@dataclass(frozen=True, slots=True)
class Left:
    """What the server's headers say of one quota."""

    amount: int
    """What is left."""
    reset_s: float | None = None
    """When all of it is back, in seconds, where the server says so."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a holder tells, and what it wants."""

    bucket: str
    holder: str
    number: int
    """Counts a holder's reports, so that one that is sent twice counts once."""
    limit: RateLimit | None = None
    waiting: int = 0
    in_flight: int = 0
    wanted: tuple[int, ...] = ()
    """The tokens of each request that could be sent now."""
    hold_s: float = 600.0
    """The longest a request of this holder may be in flight."""
    released: tuple[Released, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    done: int = 0
    """Requests answered since the last report."""
    latency_s: float | None = None
    """Their mean duration."""
    served: bool = False
    """Whether a request was answered for good since the last report, and not with a failure that may pass."""
    unleased: tuple[int, int] = (0, 0)
    """Requests in flight that had no lease, and their tokens."""
    external: tuple[Left | None, Left | None] = (None, None)
    """What the server says is left of the requests and of the tokens, where it says so."""
    calls: tuple[str, ...] = ()
    """The calls that the holder works for."""
    ended: tuple[tuple[str, RowError], ...] = ()
    """Calls that must end everywhere, and why."""
    epoch: str = ""
    """Which `Quotas` the holder spoke to last."""
    past: tuple[Released, ...] = ()
    """To a new `Quotas`: all that was used in the last window, and all that is out."""
    known: RateLimit | None = None
    """To a new `Quotas`: the limit that was in force."""
    first: int = 32
    """Requests at once to begin with, where nobody declares how many there may be."""
    trouble: str = ""
    """Why this holder waits for the server, where it does and says so."""
    absent: tuple[float, float] | None = None
    """Where the server was not there: seconds since the latest such request was sent, and the longest time between two
    looks for it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a holder may do."""

    epoch: str
    """Which `Quotas` speaks; another one than before knows nothing of the past and must be told."""
    lease: int = 0
    permits: int = 0
    """How many of the wanted requests may be sent, the first ones."""
    concurrency: int = 0
    """The most requests in flight from now on."""
    paused_s: float = 0.0
    """How long to send nothing."""
    wait_s: float = HEARTBEAT_S
    """When asking again may bring more, in seconds."""
    look_s: float = HEARTBEAT_S
    """How soon to report again, where there is nothing to ask for, in seconds."""
    limit: RateLimit = NO_LIMIT
    """The limit in force, whoever declared it; with a quota in it, nothing may be sent without a lease."""
    served_s: float = float("inf")
    """Seconds since the server last answered anyone for good."""
    ended: tuple[tuple[str, RowError], ...] = ()
    """Those of the holder's calls that have ended, and why."""


@dataclass(frozen=True, slots=True)
class BucketInfo:
    """What ``skllm-ray limits`` shows of a bucket."""

    bucket: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrency: int | None
    concurrency: int
    """The concurrency in force: the declared or the adapted one."""
    requests_used: int
    """Requests of the last 60 s, with those that are out on lease."""
    tokens_used: int
    in_flight: int
    waiting: int
    holders: int
    refusals: int
    """429 answers so far."""
    paused_s: float
    trouble: str = ""
    """Why a holder waits for the server, in its words; empty where none does."""
    paced_by: tuple[str, ...] = ()
    """The quotas that kept a request waiting a moment ago: "requests", "tokens"."""


class Limiter(Protocol):
    """Shares a quota among all who ask: within a process, or, implemented by the execution layer, in a cluster."""

    async def exchange(self, report: Report) -> Grant:
        """Take a holder's report and return what it may do. It waits rather than fail."""
        ...
