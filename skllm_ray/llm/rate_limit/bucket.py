"""What is known of a bucket: its holders, its leases, its pause; and how its concurrency is shared out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from skllm_ray.config import RateLimit
from skllm_ray.llm.rate_limit.messages import NO_LIMIT, WINDOW_S, Grant, Left, Refusal
from skllm_ray.llm.rate_limit.meter import Meter

TURN_S = 3.0
"""How long a holder keeps a slot of the concurrency that others wait for, in seconds."""
LONGEST_PAUSE_S = 30.0
"""The longest pause that is made unasked, in seconds; a server may ask for a longer one."""

_FIRST_CONCURRENCY = 32
_FIRST_PAUSE_S = 1.0
_FIRST_EXTRA_S = 0.05  # what the server itself asked for has proved too short before


@dataclass(slots=True)
class Lease:
    """Permits of one grant that nobody has reported on yet."""

    holder: str
    permits: int
    tokens: int
    ratio: float
    ends: float


@dataclass(slots=True)
class Holder:
    """A process that asks, as it was at its last report."""

    number: int = -1
    grant: Grant | None = None
    limit: RateLimit | None = None
    heard: float = 0.0
    waiting: int = 0
    in_flight: int = 0
    share: int = 0
    turn: float = float("-inf")
    """When it last got a slot that others waited for."""
    unleased: tuple[int, int] = (0, 0)
    unreported: int = 0
    """Above 0 while it may still send without a lease: it takes two reports until what it sent so is known."""
    hold_s: float = 600.0
    wants: bool = False
    trouble: str = ""

    @property
    def demand(self) -> int:
        """How many requests it has to send or has in flight."""
        return self.waiting + self.in_flight


@dataclass(slots=True)
class Bucket:
    """What shares a quota: an endpoint, an account and a model."""

    name: str
    born: float
    requests: Meter
    tokens: Meter
    holders: dict[str, Holder] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)
    limit: RateLimit = NO_LIMIT
    inherited: RateLimit = NO_LIMIT
    inherited_until: float = float("-inf")
    """Until when the limit of a lost `Quotas` holds, so that all who declared it can say so again."""
    served_at: float = float("-inf")
    adapted: float = _FIRST_CONCURRENCY
    slow_start: bool = True
    adapted_at: float = 0.0
    best_latency_s: float = float("inf")
    paused_until: float = 0.0
    paused_at: float = float("-inf")
    in_a_row: int = 0
    refusals: int = 0


def concurrency_of(bucket: Bucket) -> int:
    """Return how many requests may be in flight: as declared, else as adapted."""
    declared = bucket.limit.max_concurrency
    return int(bucket.adapted) if declared is None else declared


def share_of(bucket: Bucket, holder: Holder, now: float) -> int:
    """Return a holder's part of the concurrency: by need, evenly, and never what another one still uses."""
    if holder.demand == 0:
        return 0
    cap, asking = concurrency_of(bucket), [other for other in bucket.holders.values() if other.demand]
    free = max(0, cap - sum(max(o.share, o.in_flight) for o in bucket.holders.values() if o is not holder))
    share = min(free, _even_part(asking, holder, cap))
    if len(asking) > cap:
        order = sorted(asking, key=lambda other: (not _in_turn(other, now), other.turn))
        before = order[: next(rank for rank, other in enumerate(order) if other is holder)]
        share = int(len(before) < cap and free > sum(max(o.share, o.in_flight) == 0 for o in before))
    if share and not _in_turn(holder, now):
        holder.turn = now
    return share


def _even_part(asking: Sequence[Holder], holder: Holder, left: int) -> int:
    part = 0
    for index, other in enumerate(sorted(asking, key=lambda other: other.demand)):
        given = min(other.demand, left // (len(asking) - index))
        left -= given
        part = given if other is holder else part
    return part + left  # spare room goes to whoever asks, so that new rows need no report before they are sent


def _in_turn(holder: Holder, now: float) -> bool:
    return holder.share > 0 and now < holder.turn + TURN_S


def forget(bucket: Bucket, name: str, now: float) -> None:
    """Forget a holder; what it sent without a lease, nobody else will report."""
    unleased, tokens = bucket.holders.pop(name).unleased
    bucket.requests.add(unleased, now)
    bucket.tokens.add(tokens, now)


def limit_of(bucket: Bucket, now: float) -> RateLimit:
    """Return the lowest of what the living holders declare, and of what a lost `Quotas` knew."""
    inherited = [bucket.inherited] if now < bucket.inherited_until else []
    return lowest([*inherited, *(one.limit for one in bucket.holders.values() if one.limit is not None)])


def lowest(limits: Sequence[RateLimit]) -> RateLimit:
    """Return the least of each number that any of `limits` declares."""

    def least(name: str) -> int | None:
        values = [value for limit in limits if (value := getattr(limit, name)) is not None]
        return min(values) if values else None

    return RateLimit(least("requests_per_minute"), least("tokens_per_minute"), least("max_concurrency"))


def token_burst(bucket: Bucket, need: int) -> float:
    """Return the tokens that may be granted at once: a second's worth, or what one request of `need` takes."""
    return max((bucket.tokens.limit or 0) / WINDOW_S, float(min(need, bucket.tokens.limit or need)), 1.0)


def lower(meter: Meter, left: Left | None, now: float) -> None:
    """Count what others used of the quota, where the server says that less is left than we think.

    It counts until the server has all of its quota back. Where that is not told, half a window is a good guess.
    """
    if left is None or meter.limit is None:
        return
    elsewhere = meter.limit - left.amount - meter.used(now)
    gone_s = WINDOW_S / 2 if left.reset_s is None else min(left.reset_s, WINDOW_S)
    if elsewhere > 0 and gone_s > 0:
        meter.add(elsewhere, now + gone_s - WINDOW_S)


def pause(bucket: Bucket, refusal: Refusal, now: float) -> None:
    """Stop the bucket for all, once for all refusals of what was sent before it stopped."""
    bucket.refusals += 1
    again = now - refusal.age_s > bucket.paused_at
    pause_s = refusal.retry_after_s or 0.0
    if again:
        bucket.paused_at = now
        bucket.adapted = max(1.0, bucket.adapted / 2)
        bucket.slow_start = False
        first_s = _FIRST_PAUSE_S if refusal.retry_after_s is None else _FIRST_EXTRA_S
        most_s = min(LONGEST_PAUSE_S, first_s * 2.0 ** min(bucket.in_a_row, 30))
        pause_s = max(pause_s, random.uniform(0.5, 1.0) * most_s)
        bucket.in_a_row += 1
    bucket.paused_until = max(bucket.paused_until, now + pause_s)
