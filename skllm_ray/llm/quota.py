"""Who may ask a server, how often, and how many at once: the rules of the shared limit. No Ray, no clock of its own.

Every process that asks has a :class:`~skllm_ray.llm.gate.Gate`, and all gates of a cluster exchange reports for grants
with one :class:`Quotas`. A *bucket* is what shares a quota: an endpoint, an account and a model. Its rules:

- Requests and tokens are *leased*: a grant counts in full until its holder reports what became of it, then the actual
  use counts for 60 s from the latest moment at which the server can have seen it. What was granted therefore bounds
  what the server counts, in every window of 60 s, whoever dies in between.
- A small token bucket paces the grants. After a restart it starts empty, and its rate alone keeps the window's bound.
- Concurrency is a share that each holder renews with every report.
- A refusal (429) stops the whole bucket once; where no concurrency is declared, it halves, and grows again slowly.
"""

from __future__ import annotations

import heapq
import random
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from skllm_ray.config import RateLimit

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

_SLACK_S = 0.6  # the pacer's own margin for requests that travel longer than others
_HOLDER_S = 10.0  # a holder that is silent for so long asks no more
_FIRST_CONCURRENCY = 32
_LARGEST_CONCURRENCY = 512
_LONGEST_PAUSE_S = 30.0
_NO_LIMIT = RateLimit()


@dataclass(frozen=True, slots=True)
class Settled:
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
    settled: tuple[Settled, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    done: int = 0
    """Requests answered since the last report."""
    latency_s: float | None = None
    """Their mean duration."""
    external: tuple[int | None, int | None] = (None, None)
    """Requests and tokens that the server says are left, where it says so."""
    epoch: str = ""
    """Which `Quotas` the holder spoke to last."""
    past: tuple[Settled, ...] = ()
    """To a new `Quotas`: all that was used in the last window, and all that is out."""


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


class _Meter:
    """One quota: what was used in the last window, what is out on lease, how fast more may follow."""

    def __init__(self, now: float) -> None:
        self.limit: int | None = None
        self.out = 0
        self.ratio = 1.0
        """What is used of what is set aside, as far as known; the pacer counts on it, the window does not."""
        self._dated: list[tuple[float, int]] = []
        self._used = 0
        self._balance = 0.0
        self._then = now

    def used(self, now: float) -> int:
        """Return what counts now."""
        while self._dated and self._dated[0][0] <= now:
            self._used -= heapq.heappop(self._dated)[1]
        return self._used + self.out

    def add(self, amount: int, date: float) -> None:
        """Count `amount`, used at `date`, for a window."""
        if amount > 0:
            heapq.heappush(self._dated, (date + WINDOW_S, amount))
            self._used += amount

    @property
    def burst(self) -> float:
        """Return what may be granted at once after a silence: a second's worth."""
        return max(1.0, min(LARGEST_LEASE, (self.limit or 0) / WINDOW_S))

    def refill(self, now: float, burst: float) -> float:
        """Return what the pacer would grant."""
        if self.limit is None:
            return float("inf")
        rate = max(self.limit - burst + 1, self.limit / 2) / (WINDOW_S + _SLACK_S)
        self._balance = min(burst, self._balance + rate * (now - self._then))
        self._then = now
        return self._balance

    def take(self, amount: int) -> None:
        """Set `amount` aside."""
        self.out += amount
        self._balance -= amount * self.ratio

    def give_back(self, reserved: int, ratio: float, used: int, burst: float) -> None:
        """Take back what was set aside, at the `ratio` of then, for what was used."""
        self.out -= reserved
        self._balance = min(burst, self._balance + reserved * ratio - used)
        if reserved and used:
            self.ratio += 0.1 * (min(1.0, used / reserved) - self.ratio)

    def wait_s(self, now: float, need: float, burst: float) -> float:
        """Return when `need` may be there."""
        if self.limit is None:
            return 0.0
        rate = max(self.limit - burst + 1, self.limit / 2) / (WINDOW_S + _SLACK_S)
        paced = (min(need * self.ratio, burst) - self._balance) / rate
        full = self.used(now) + need > self.limit
        freed = self._dated[0][0] - now if full and self._dated else 0.0
        return max(paced, min(freed, HEARTBEAT_S), 0.0)


@dataclass(slots=True)
class _Lease:
    holder: str
    permits: int
    tokens: int
    ratio: float
    ends: float


@dataclass(slots=True)
class _Holder:
    number: int = -1
    grant: Grant | None = None
    limit: RateLimit | None = None
    heard: float = 0.0
    waiting: int = 0
    in_flight: int = 0
    share: int = 0
    hold_s: float = 600.0
    wants: bool = False

    @property
    def demand(self) -> int:
        return self.waiting + self.in_flight


@dataclass(slots=True)
class _Bucket:
    name: str
    born: float
    requests: _Meter
    tokens: _Meter
    holders: dict[str, _Holder] = field(default_factory=dict)
    leases: dict[int, _Lease] = field(default_factory=dict)
    limit: RateLimit = _NO_LIMIT
    adapted: float = _FIRST_CONCURRENCY
    slow_start: bool = True
    adapted_at: float = 0.0
    best_latency_s: float = float("inf")
    paused_until: float = 0.0
    paused_at: float = float("-inf")
    in_a_row: int = 0
    refusals: int = 0


class Quotas:
    """The buckets of a process or a cluster.

    Parameters
    ----------
    clock : callable, optional
        Returns seconds; it never goes back.
    epoch : str or None, default=None
        Tells this object from the one that it replaced.

    Examples
    --------
    >>> quotas = Quotas(clock=lambda: 0.0)
    >>> quotas.exchange(Report("bucket", "me", 1, RateLimit(max_concurrency=3), waiting=9)).concurrency
    3
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, epoch: str | None = None) -> None:
        self._clock = clock
        self._epoch = epoch or uuid.uuid4().hex
        self._buckets: dict[str, _Bucket] = {}
        self._leases = 0

    def exchange(self, report: Report) -> Grant:
        """Take a holder's report and return what it may do."""
        now = self._clock()
        bucket = self._buckets.get(report.bucket)
        if bucket is None:
            bucket = _Bucket(report.bucket, now, _Meter(now), _Meter(now))
            self._buckets[report.bucket] = bucket
        holder = bucket.holders.setdefault(report.holder, _Holder())
        if report.number == holder.number and holder.grant is not None:
            return holder.grant
        if report.epoch not in {"", self._epoch} and not report.past:
            return Grant(self._epoch, wait_s=0.0)
        self._note(bucket, holder, report, now)
        self._adapt(bucket, report, now)
        holder.grant = self._grant(bucket, holder, report, now)
        return holder.grant

    def show(self) -> list[BucketInfo]:
        """Return every bucket as it is now."""
        now = self._clock()
        for bucket in self._buckets.values():
            self._expire(bucket, now)
        return [
            BucketInfo(
                bucket=bucket.name,
                requests_per_minute=bucket.limit.requests_per_minute,
                tokens_per_minute=bucket.limit.tokens_per_minute,
                max_concurrency=bucket.limit.max_concurrency,
                concurrency=_cap(bucket),
                requests_used=bucket.requests.used(now),
                tokens_used=bucket.tokens.used(now),
                in_flight=sum(holder.in_flight for holder in bucket.holders.values()),
                waiting=sum(holder.waiting for holder in bucket.holders.values()),
                holders=len(bucket.holders),
                refusals=bucket.refusals,
                paused_s=max(0.0, bucket.paused_until - now),
            )
            for bucket in self._buckets.values()
        ]

    # --- taking a report ------------------------------------------------------------------------------------------

    def _note(self, bucket: _Bucket, holder: _Holder, report: Report, now: float) -> None:
        holder.number, holder.heard, holder.hold_s = report.number, now, report.hold_s
        holder.waiting, holder.in_flight, holder.limit = report.waiting, report.in_flight, report.limit
        holder.wants = bool(report.wanted)
        self._expire(bucket, now)
        bucket.limit = _lowest(bucket)
        bucket.requests.limit, bucket.tokens.limit = bucket.limit.requests_per_minute, bucket.limit.tokens_per_minute
        for item in report.past:
            bucket.requests.add(item.requests, now - item.age_s)
            bucket.tokens.add(item.used, now - item.age_s)
        for item in report.settled:
            self._settle(bucket, item, now)
        left_requests, left_tokens = report.external
        _lower(bucket.requests, left_requests, now)
        _lower(bucket.tokens, left_tokens, now)
        for refusal in report.refusals:
            _pause(bucket, refusal, now)
        if report.done and not report.refusals and now >= bucket.paused_until:
            bucket.in_a_row = 0

    def _settle(self, bucket: _Bucket, item: Settled, now: float) -> None:
        lease = bucket.leases.get(item.lease)
        if lease is not None:
            lease.permits -= item.permits
            lease.tokens -= item.reserved
            bucket.requests.give_back(item.permits, 1.0, item.requests, bucket.requests.burst)
            bucket.tokens.give_back(item.reserved, lease.ratio, item.used, _token_burst(bucket, 0))
            if lease.permits <= 0:
                bucket.tokens.out -= lease.tokens
                del bucket.leases[item.lease]
        bucket.requests.add(item.requests, now - item.age_s)
        bucket.tokens.add(item.used, now - item.age_s)

    def _expire(self, bucket: _Bucket, now: float) -> None:
        """Forget leases that nobody settled, a window after the last moment they could be used; and silent holders."""
        for number in [number for number, lease in bucket.leases.items() if lease.ends <= now]:
            lease = bucket.leases.pop(number)
            bucket.requests.out -= lease.permits
            bucket.tokens.out -= lease.tokens
        for name, holder in list(bucket.holders.items()):
            silent_s = now - holder.heard
            if silent_s > _HOLDER_S:
                holder.in_flight, holder.waiting = max(holder.in_flight, holder.share), 0
                holder.share = 0
            # where the concurrency is declared, what a lost holder sent may be in flight until its own deadline
            hold_s = holder.hold_s if bucket.limit.max_concurrency is not None else 0.0
            if silent_s > _HOLDER_S and (holder.in_flight == 0 or silent_s > _HOLDER_S + hold_s):
                del bucket.holders[name]

    def silent(self, seconds: float) -> set[str]:
        """Return the holders that still count and have not been heard of for so long."""
        now = self._clock()
        buckets = self._buckets.values()
        return {name for b in buckets for name, holder in b.holders.items() if now - holder.heard > seconds}

    def bury(self, names: Iterable[str]) -> None:
        """Forget holders whose processes are known to be dead: with them, their connections have ended."""
        for bucket in self._buckets.values():
            for name in names:
                bucket.holders.pop(name, None)

    # --- granting -------------------------------------------------------------------------------------------------

    def _grant(self, bucket: _Bucket, holder: _Holder, report: Report, now: float) -> Grant:
        holder.share = _share(bucket, holder)
        paused_s = bucket.paused_until - now
        if paused_s > 0:
            return Grant(self._epoch, concurrency=holder.share, paused_s=paused_s, wait_s=min(paused_s, HEARTBEAT_S))
        metered = bucket.requests.limit is not None or bucket.tokens.limit is not None
        if not metered or not report.wanted:
            starved = holder.share == 0 and holder.demand > 0
            return Grant(self._epoch, concurrency=holder.share, wait_s=0.1 if starved else HEARTBEAT_S)
        n, tokens, wait_s = self._affordable(bucket, report.wanted, now)
        if n == 0:
            return Grant(self._epoch, concurrency=holder.share, wait_s=wait_s)
        self._leases += 1
        bucket.leases[self._leases] = _Lease(
            report.holder, n, tokens, bucket.tokens.ratio, now + PERMIT_S + LATE_S + WINDOW_S
        )
        bucket.requests.take(n)
        bucket.tokens.take(tokens)
        return Grant(self._epoch, self._leases, n, holder.share, wait_s=wait_s)

    def _affordable(self, bucket: _Bucket, wanted: tuple[int, ...], now: float) -> tuple[int, int, float]:
        """Return how many of `wanted` may go now, their tokens, and when asking again makes sense."""
        requests, tokens = bucket.requests, bucket.tokens
        rivals = max(1, sum(other.wants and now - other.heard < SHARE_S for other in bucket.holders.values()))
        most = max(
            1, min(len(wanted), LARGEST_LEASE, int(requests.burst) // rivals if requests.limit else LARGEST_LEASE)
        )
        burst = _token_burst(bucket, max(wanted[:most]))
        paced, token_balance = requests.refill(now, requests.burst), tokens.refill(now, burst)
        n = cost = 0
        room = float("inf") if requests.limit is None else requests.limit - requests.used(now)
        token_room = float("inf") if tokens.limit is None else tokens.limit - tokens.used(now)
        for wish in wanted[:most]:
            need = wish if tokens.limit is None else min(wish, tokens.limit)
            if (
                n + 1 > min(paced, room)
                or cost + need > token_room
                or token_balance - cost * tokens.ratio < min(need * tokens.ratio, burst)
            ):
                break
            n, cost = n + 1, cost + need
        soon = max(1.0, min(len(wanted) - n, requests.burst / 3))
        ahead = max(requests.wait_s(now, soon, requests.burst), tokens.wait_s(now, wanted[min(n, most - 1)], burst))
        return n, cost, min(max(ahead, 0.01), 2 * HEARTBEAT_S)

    def _adapt(self, bucket: _Bucket, report: Report, now: float) -> None:
        """Grow the concurrency that nobody declared, while it is all used and answers take no longer than before."""
        if report.latency_s is not None and report.done:
            bucket.best_latency_s = min(bucket.best_latency_s, report.latency_s)
        if bucket.limit.max_concurrency is not None or now < bucket.paused_until:
            return
        if now - bucket.adapted_at < HEARTBEAT_S or report.latency_s is None:
            return
        bucket.adapted_at = now
        saturated = sum(holder.in_flight for holder in bucket.holders.values()) >= 0.8 * bucket.adapted
        if saturated and report.waiting and report.latency_s < 2 * bucket.best_latency_s + 0.05:
            grown = bucket.adapted * 2 if bucket.slow_start else bucket.adapted + 2
            bucket.adapted = min(_LARGEST_CONCURRENCY, grown)


def _cap(bucket: _Bucket) -> int:
    declared = bucket.limit.max_concurrency
    return int(bucket.adapted) if declared is None else declared


def _share(bucket: _Bucket, holder: _Holder) -> int:
    """Return a holder's part of the concurrency: by need, evenly, and never what another one still uses."""
    cap = _cap(bucket)
    if holder.demand == 0:
        return 0
    left, fair = cap, 0
    asking = sorted((other for other in bucket.holders.values() if other.demand), key=lambda other: other.demand)
    for index, other in enumerate(asking):
        fair = -(-left // (len(asking) - index)) if other is holder else left // (len(asking) - index)
        given = min(other.demand, max(1, fair))
        if other is holder:
            # spare room goes to whoever asks, so that new rows need no report before they are sent
            fair = max(given, fair)
            break
        left = max(0, left - given)
    committed = sum(max(o.share, o.in_flight) for o in bucket.holders.values() if o is not holder)
    return max(0, min(fair, cap - committed))


def _lowest(bucket: _Bucket) -> RateLimit:
    """Return the lowest of what the living holders declare."""
    limits = [holder.limit for holder in bucket.holders.values() if holder.limit is not None]

    def least(name: str) -> int | None:
        values = [value for limit in limits if (value := getattr(limit, name)) is not None]
        return min(values) if values else None

    return RateLimit(least("requests_per_minute"), least("tokens_per_minute"), least("max_concurrency"))


def _token_burst(bucket: _Bucket, need: int) -> float:
    return max((bucket.tokens.limit or 0) / WINDOW_S, float(min(need, bucket.tokens.limit or need)), 1.0)


def _lower(meter: _Meter, left: int | None, now: float) -> None:
    """Count what others used of the quota, where the server says that less is left than we think."""
    if left is None or meter.limit is None:
        return
    elsewhere = meter.limit - left - meter.used(now)
    if elsewhere > 0:
        meter.add(elsewhere, now - WINDOW_S / 2)


def _pause(bucket: _Bucket, refusal: Refusal, now: float) -> None:
    """Stop the bucket for all, once for all refusals of what was sent before it stopped."""
    bucket.refusals += 1
    again = now - refusal.age_s > bucket.paused_at
    if again:
        bucket.paused_at = now
        bucket.adapted = max(1.0, bucket.adapted / 2)
        bucket.slow_start = False
        bucket.in_a_row += 1
    asked = refusal.retry_after_s
    if asked is None and again:
        asked = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, 2.0 ** (bucket.in_a_row - 1))
    bucket.paused_until = max(bucket.paused_until, now + (asked or 0.0))


class LocalLimiter:
    """The limit of one process: for local mode, and for calls that need no Ray."""

    def __init__(self) -> None:
        self._quotas = Quotas()

    async def exchange(self, report: Report) -> Grant:
        """Return what a holder of this process may do."""
        return self._quotas.exchange(report)

    def show(self) -> list[BucketInfo]:
        """Return every bucket as it is now."""
        return self._quotas.show()
