"""What a gate keeps: who waits, what may be sent, and what it has to report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from skllm_ray.llm.rate_limit.messages import Left, Released
from skllm_ray.tasks.base import RowError


class NotLetThroughError(Exception):
    """A request will not be sent, for the reason in `error`."""

    def __init__(self, error: RowError) -> None:
        super().__init__(error)
        self.error = error


@dataclass(slots=True)
class Permit:
    """The right to send one request, and what came of it."""

    lease: int
    tokens: int
    """What is set aside for the request."""
    sent_at: float = 0.0
    left: tuple[Left | None, Left | None] = (None, None)
    """What the server's headers say is left of the requests and of the tokens."""
    refusal_s: float | None = None
    """With a 429, how long the server asked to wait; -1 where it did not say."""


@dataclass(slots=True, eq=False)
class Run:
    """A block's requests, which end together."""

    call: str | None
    """The call that the block belongs to; None for one that stands alone."""
    stop: asyncio.Future[RowError]
    """Done when nothing more is to be sent, with the reason."""
    guard: Callable[[], RowError | None] | None = None
    """Asked right before each request is sent: why it may not be, or None."""


@dataclass(slots=True)
class Waiter:
    """A request that waits for its permit."""

    ready: asyncio.Future[Permit]
    tokens: int
    owner: Run | None


@dataclass(slots=True)
class Unused:
    """A permit that was granted and not used yet."""

    permit: Permit
    ends: float


@dataclass(slots=True)
class News:
    """What happened since the last report."""

    released: list[tuple[float, Released]] = field(default_factory=list)
    refusals: list[tuple[float, float | None]] = field(default_factory=list)
    left: tuple[Left | None, Left | None] = (None, None)
    ended: list[tuple[str, RowError]] = field(default_factory=list)
    done: int = 0
    served: bool = False
    seconds: float = 0.0
    absent_at: float | None = None
    """When the latest request was sent that found no server."""


def grouped(items: list[tuple[float, Released]], now: float) -> tuple[Released, ...]:
    """Sum up what belongs to the same lease and the same kind, dated as the latest of them."""
    sums: dict[tuple[int, bool], Released] = {}
    for date, item in items:
        key = (item.lease, item.requests > 0)
        other = sums.get(key)
        age = max(0.0, now - date)
        if other is None:
            sums[key] = replace(item, age_s=age)
        else:
            sums[key] = Released(
                item.lease,
                other.requests + item.requests,
                other.reserved + item.reserved,
                other.used + item.used,
                min(other.age_s, age),
                other.permits + item.permits,
            )
    return tuple(sums.values())
