"""A bucket: the pause after a refusal (429), its holders, its leases; and how its concurrency is shared out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from skllm_ray.config import RateLimit
from skllm_ray.llm.rate_limit.adaptive_concurrency import Knee
from skllm_ray.llm.rate_limit.messages import NO_LIMIT, WINDOW_S, Grant, Left, Refusal
from skllm_ray.llm.rate_limit.meter import Meter

TURN_S = 3.0
"""How long a holder keeps a slot of the concurrency that others wait for, in seconds."""
LONGEST_PAUSE_S = 30.0
"""The longest pause that is made unasked, in seconds; a server may ask for a longer one."""

SERVED_LATELY_S = 1.0
"""How long after an answer a server that is not found still counts as there, in seconds."""

_FIRST_PAUSE_S = 1.0
_FIRST_LOOK_S = 0.25
MANY = 64
"""Holders above which not all is done at each report."""
_SORT_S = 0.2
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
    lot: float = field(default_factory=random.random)
    """Who gets what does not divide evenly."""

    @property
    def demand(self) -> int:
        """How many requests it has to send or has in flight."""
        return self.waiting + self.in_flight


@dataclass(slots=True)
class Queue:
    """The holders that ask for something, as they were at some moment."""

    at: float = float("-inf")
    asking: Sequence[Holder] = ()
    """Those with the least demand first."""
    ranks: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Where there are more than slots: whose turn it is, by identity, and how many before have no slot."""


@dataclass(slots=True)
class Totals:
    """Sums over a bucket's holders, kept up to date: there may be a thousand, and each reports twice a second."""

    held: int = 0
    """Slots of the concurrency that are given away or still used."""
    in_flight: int = 0
    unleased_requests: int = 0
    unleased_tokens: int = 0
    wants: int = 0
    """Holders that want permits."""
    unreported: int = 0
    """Holders that may still send without a lease."""
    limits: Counter[RateLimit] = field(default_factory=Counter)

    def add(self, holder: Holder, sign: int = 1) -> None:
        """Count a holder, or with -1 no longer; whoever changes one does both."""
        self.held += sign * max(holder.share, holder.in_flight)
        self.in_flight += sign * holder.in_flight
        self.unleased_requests += sign * holder.unleased[0]
        self.unleased_tokens += sign * holder.unleased[1]
        self.wants += sign * holder.wants
        self.unreported += sign * (holder.unreported > 0)
        if holder.limit is not None:
            self.limits[holder.limit] += sign
            if not self.limits[holder.limit]:
                del self.limits[holder.limit]


@dataclass(slots=True)
class Bucket:
    """What shares a quota: an endpoint, an account and a model."""

    name: str
    born: float
    requests: Meter
    tokens: Meter
    holders: dict[str, Holder] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    """Of the holders, without the one whose report is being taken."""
    looked_at: float = float("-inf")
    """When the silent holders were last looked for."""
    queue: Queue = field(default_factory=Queue)
    limit: RateLimit = NO_LIMIT
    inherited: RateLimit = NO_LIMIT
    inherited_until: float = float("-inf")
    """Until when the limit of a lost `Quotas` holds, so that all who declared it can say so again."""
    served_at: float = float("-inf")
    knee: Knee = field(default_factory=Knee)
    adapted_at: float = 0.0
    best_latency_s: float = float("inf")
    paused_until: float = 0.0
    paused_at: float = float("-inf")
    in_a_row: int = 0
    refusals: int = 0
    is_absent: bool = False
    """Whether the server was there and is not now: one request at a time looks for it, until one is served."""
    short_at: dict[str, float] = field(default_factory=dict)
    """When each quota last kept a request waiting: "requests", "tokens"."""


def concurrency_of(bucket: Bucket) -> int:
    """Return how many requests may be in flight: as declared, else as adapted; one where the server is not there."""
    if bucket.is_absent:
        return 1
    declared = bucket.limit.max_concurrency
    return int(bucket.knee.level) if declared is None else declared


def share_of(bucket: Bucket, holder: Holder, now: float) -> int:
    """Return a holder's part of the concurrency: by need, evenly, and never what another one still uses."""
    if holder.demand == 0:
        return 0
    cap = concurrency_of(bucket)
    free = max(0, cap - bucket.totals.held)
    queue = _queue(bucket, now)
    share = min(free, _even_part(queue.asking, holder, cap))
    if len(queue.asking) > cap:
        rank, n_without = queue.ranks.get(id(holder), (len(queue.asking), 0))
        share = int(rank < cap and free > n_without)
    if share and not _in_turn(holder, now):
        holder.turn = now
    return share


def _queue(bucket: Bucket, now: float) -> Queue:
    """Return the holders that ask for something; of very many, as they were a moment ago.

    It decides what is fair alone: what is free is always exact.
    """
    if len(bucket.holders) <= MANY or now - bucket.queue.at >= _SORT_S:
        asking = sorted((one for one in bucket.holders.values() if one.demand), key=lambda other: other.demand)
        ranks, n_without = dict[int, tuple[int, int]](), 0
        if len(asking) > concurrency_of(bucket):
            order = sorted(asking, key=lambda other: (not _in_turn(other, now), other.turn))
            for rank, one in enumerate(order):
                ranks[id(one)] = rank, n_without
                n_without += max(one.share, one.in_flight) == 0
        bucket.queue = Queue(now, asking, ranks)
    return bucket.queue


def _even_part(asking: Sequence[Holder], holder: Holder, left: int) -> int:
    if len(asking) > MANY:
        return _level_part(asking, holder, left)
    part = 0
    for index, other in enumerate(asking):
        given = min(other.demand, left // (len(asking) - index))
        left -= given
        part = given if other is holder else part
    return part + left  # spare room goes to whoever asks, so that new rows need no report before they are sent


def _level_part(asking: Sequence[Holder], holder: Holder, left: int) -> int:
    """Return the same of very many, without a walk to the holder: what does not divide evenly goes by lot."""
    n = len(asking)
    for satisfied, other in enumerate(asking):
        each = left // (n - satisfied)
        if other.demand > each:
            return min(holder.demand, each + (holder.lot < left / (n - satisfied) - each))
        left -= other.demand
    return holder.demand + left


def _in_turn(holder: Holder, now: float) -> bool:
    return holder.share > 0 and now < holder.turn + TURN_S


def forget(bucket: Bucket, name: str, now: float) -> None:
    """Forget a holder; what it sent without a lease, nobody else will report."""
    holder = bucket.holders.pop(name)
    bucket.totals.add(holder, -1)
    unleased, tokens = holder.unleased
    bucket.requests.add(unleased, now)
    bucket.tokens.add(tokens, now)


def limit_of(bucket: Bucket, holder: Holder, now: float) -> RateLimit:
    """Return the lowest of what `holder` and the other living ones declare, and of what a lost `Quotas` knew."""
    own = [] if holder.limit is None else [holder.limit]
    inherited = [bucket.inherited] if now < bucket.inherited_until else []
    return lowest([*inherited, *own, *bucket.totals.limits])


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
        bucket.knee.halve()
        first_s = _FIRST_PAUSE_S if refusal.retry_after_s is None else _FIRST_EXTRA_S
        most_s = min(LONGEST_PAUSE_S, first_s * 2.0 ** min(bucket.in_a_row, 30))
        pause_s = max(pause_s, random.uniform(0.5, 1.0) * most_s)
        bucket.in_a_row += 1
    bucket.paused_until = max(bucket.paused_until, now + pause_s)


def look_for(bucket: Bucket, sent_age_s: float, longest_s: float, now: float) -> None:
    """Let one request at a time look for a server that was there, with pauses, and nobody else ask it.

    Not where it served anyone a moment ago: then it is a row that finds it absent. One that was never there is not
    waited for.
    """
    sent_at = now - sent_age_s
    if bucket.served_at == float("-inf") or bucket.served_at > sent_at - SERVED_LATELY_S:
        return
    bucket.is_absent = True
    if sent_at > bucket.paused_at:
        bucket.paused_at = now
        most_s = min(longest_s, _FIRST_LOOK_S * 2.0 ** min(bucket.in_a_row, 30))
        bucket.paused_until = max(bucket.paused_until, now + random.uniform(0.5, 1.0) * most_s)
        bucket.in_a_row += 1
