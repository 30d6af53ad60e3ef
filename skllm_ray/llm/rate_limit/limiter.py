"""Who may ask a server, how often, and how many at once: the rules of the shared limit. No Ray, no clock of its own.

Every process that asks has a ``Gate`` (:mod:`.client`), and all gates of a cluster exchange reports for grants
with one :class:`Quotas`. A *bucket* is what shares a quota: an endpoint, an account and a model. Its rules:

- Requests and tokens are *leased*: a grant counts in full until its holder reports what became of it, then the actual
  use counts for 60 s from the latest moment at which the server can have seen it. What was granted therefore bounds
  what the server counts, in every window of 60 s, whoever dies in between.
- A small token bucket paces the grants. After a restart it starts empty, and its rate alone keeps the window's bound.
- The lowest limit that any holder declares holds for all. Who may have sent without a lease, since nobody had declared
  one yet, counts with all that is in flight, and nobody gets a lease before it has been told.
- Concurrency is a share that each holder renews with every report; where there is less than one for each, they take
  turns.
- Where no concurrency is declared, it is found by trying (:mod:`.knee`). A refusal (429) stops the whole bucket once;
  the concurrency halves, and grows again slowly.
- A server that was there and is not is looked for by one request at a time, for all who share the bucket.
- A call that ended for a reason that all its rows share has ended for every holder.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace

from skllm_ray.llm.rate_limit.adaptive_concurrency import LOOK_S, Knee
from skllm_ray.llm.rate_limit.bucket import (
    MANY,
    Bucket,
    Holder,
    Lease,
    concurrency_of,
    forget,
    limit_of,
    look_for,
    lower,
    lowest,
    pause,
    share_of,
    token_burst,
)
from skllm_ray.llm.rate_limit.messages import (
    HEARTBEAT_S,
    LARGEST_LEASE,
    LATE_S,
    PERMIT_S,
    SHARE_S,
    WINDOW_S,
    BucketInfo,
    Grant,
    Released,
    Report,
)
from skllm_ray.llm.rate_limit.meter import Meter
from skllm_ray.tasks.base import RowError

_HOLDER_S = 10.0  # a holder that is silent for so long asks no more
_LOOK_S = 0.1
_LATELY_S = 2.0  # four reports of a holder that waits
_UNFETCHED = 4.0  # of what has gathered, one in so many goes to one who asks
_FEW = 8
_MOST_ENDED = 1000
_MOST_BUCKETS = 1000


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
    >>> from skllm_ray.config import RateLimit
    >>> quotas = Quotas(clock=lambda: 0.0)
    >>> quotas.exchange(Report("bucket", "me", 1, RateLimit(max_concurrency=3), waiting=9)).concurrency
    3
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, epoch: str | None = None) -> None:
        self._clock = clock
        self._epoch = epoch or uuid.uuid4().hex
        self._buckets: dict[str, Bucket] = {}
        self._leases = 0
        self._ended: dict[str, RowError] = {}

    def exchange(self, report: Report) -> Grant:
        """Take a holder's report and return what it may do."""
        now = self._clock()
        bucket = self._buckets.get(report.bucket)
        if bucket is None:
            self._forget_idle(now)
            bucket = Bucket(report.bucket, now, Meter(now), Meter(now), knee=Knee(report.first))
            self._buckets[report.bucket] = bucket
        holder = self._holder(bucket, report.holder)
        if report.number == holder.number and holder.grant is not None:
            return holder.grant
        if report.epoch not in {"", self._epoch} and not report.past:
            return Grant(self._epoch, wait_s=0.0)
        bucket.totals.add(holder, -1)
        try:
            self._note(bucket, holder, report, now)
            self._adapt(bucket, holder, report, now)
            holder.grant = replace(
                self._grant(bucket, holder, report, now),
                limit=bucket.limit,
                look_s=HEARTBEAT_S if bucket.knee.is_found else LOOK_S,
                served_s=now - bucket.served_at,
                ended=tuple((call, self._ended[call]) for call in report.calls if call in self._ended),
            )
        finally:
            bucket.totals.add(holder)
        return holder.grant

    def _holder(self, bucket: Bucket, name: str) -> Holder:
        if name not in bucket.holders:
            bucket.holders[name] = holder = Holder()
            bucket.totals.add(holder)
        return bucket.holders[name]

    def end(self, call: str, error: RowError) -> None:
        """Let every holder that works for `call` send nothing more for it, from its next report on."""
        self._end([(call, error)])

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
                concurrency=concurrency_of(bucket),
                requests_used=bucket.requests.used(now),
                tokens_used=bucket.tokens.used(now),
                in_flight=sum(holder.in_flight for holder in bucket.holders.values()),
                waiting=sum(holder.waiting for holder in bucket.holders.values()),
                holders=len(bucket.holders),
                refusals=bucket.refusals,
                paused_s=max(0.0, bucket.paused_until - now),
                trouble=next((holder.trouble for holder in bucket.holders.values() if holder.trouble), ""),
                paced_by=tuple(name for name, at in bucket.short_at.items() if now - at < _LATELY_S),
            )
            for bucket in self._buckets.values()
        ]

    def _forget_idle(self, now: float) -> None:
        """Forget buckets that nobody uses and in which nothing counts, where there are very many."""
        if len(self._buckets) < _MOST_BUCKETS:
            return
        for name, bucket in list(self._buckets.items()):
            self._expire(bucket, now)
            counts = bucket.requests.used(now) or bucket.tokens.used(now) or bucket.paused_until > now
            if not bucket.holders and not counts:
                del self._buckets[name]

    # --- taking a report ------------------------------------------------------------------------------------------

    def _note(self, bucket: Bucket, holder: Holder, report: Report, now: float) -> None:
        holder.number, holder.heard, holder.hold_s = report.number, now, report.hold_s
        holder.waiting, holder.in_flight, holder.limit = report.waiting, report.in_flight, report.limit
        holder.wants, holder.unleased, holder.trouble = bool(report.wanted), report.unleased, report.trouble
        self._end(report.ended)
        self._expire(bucket, now)
        if report.past and report.known is not None:
            bucket.inherited = lowest([bucket.inherited, report.known])
            bucket.inherited_until = now + _HOLDER_S
        bucket.limit = limit_of(bucket, holder, now)
        bucket.requests.limit, bucket.tokens.limit = bucket.limit.requests_per_minute, bucket.limit.tokens_per_minute
        for item in report.past:
            bucket.requests.add(item.requests, now - item.age_s)
            bucket.tokens.add(item.used, now - item.age_s)
        for item in report.released:
            self._release(bucket, item, now)
        if report.served:
            bucket.served_at, bucket.in_a_row, bucket.is_absent = now, 0, False
        elif report.absent is not None:
            look_for(bucket, *report.absent, now)
        left_requests, left_tokens = report.external
        lower(bucket.requests, left_requests, now)
        lower(bucket.tokens, left_tokens, now)
        for refusal in report.refusals:
            pause(bucket, refusal, now)

    def _end(self, ended: Iterable[tuple[str, RowError]]) -> None:
        for call, error in ended:
            self._ended.setdefault(call, error)
            if len(self._ended) > _MOST_ENDED:
                del self._ended[next(iter(self._ended))]

    def _release(self, bucket: Bucket, item: Released, now: float) -> None:
        lease = bucket.leases.get(item.lease)
        if lease is not None:
            lease.permits -= item.permits
            lease.tokens -= item.reserved
            bucket.requests.give_back(item.permits, 1.0, item.requests, bucket.requests.burst)
            bucket.tokens.give_back(item.reserved, lease.ratio, item.used, token_burst(bucket, 0))
            if lease.permits <= 0:
                bucket.tokens.out -= lease.tokens
                del bucket.leases[item.lease]
        bucket.requests.add(item.requests, now - item.age_s)
        bucket.tokens.add(item.used, now - item.age_s)

    def _expire(self, bucket: Bucket, now: float) -> None:
        """Forget leases that nobody released, a window after the last moment they could be used; and silent holders."""
        while bucket.leases and (lease := next(iter(bucket.leases.values()))).ends <= now:  # they end in their order
            del bucket.leases[next(iter(bucket.leases))]
            bucket.requests.out -= lease.permits
            bucket.tokens.out -= lease.tokens
        for meter in (bucket.requests, bucket.tokens):  # forgets what is older than a window
            meter.used(now)
        if now - bucket.looked_at < _LOOK_S:
            return
        bucket.looked_at = now
        for name, holder in list(bucket.holders.items()):
            silent_s = now - holder.heard
            if silent_s > _HOLDER_S:
                bucket.totals.add(holder, -1)
                holder.in_flight, holder.waiting = max(holder.in_flight, holder.share), 0
                holder.share = 0
                bucket.totals.add(holder)
            # where the concurrency is declared, what a lost holder sent may be in flight until its own deadline
            hold_s = holder.hold_s if bucket.limit.max_concurrency is not None else 0.0
            if silent_s > _HOLDER_S and (holder.in_flight == 0 or silent_s > _HOLDER_S + hold_s):
                forget(bucket, name, now)

    def silent(self, seconds: float) -> set[str]:
        """Return the holders that still count and have not been heard of for so long."""
        now = self._clock()
        buckets = self._buckets.values()
        return {name for b in buckets for name, holder in b.holders.items() if now - holder.heard > seconds}

    def bury(self, names: Iterable[str]) -> None:
        """Forget holders whose processes are known to be dead: with them, their connections have ended."""
        now = self._clock()
        for bucket in self._buckets.values():
            for name in set(names) & set(bucket.holders):
                forget(bucket, name, now)

    # --- granting -------------------------------------------------------------------------------------------------

    def _grant(self, bucket: Bucket, holder: Holder, report: Report, now: float) -> Grant:
        holder.share = share_of(bucket, holder, now)
        metered = bucket.requests.limit is not None or bucket.tokens.limit is not None
        holder.unreported = 2 if holder.share and not metered else max(0, holder.unreported - 1)
        paused_s = bucket.paused_until - now
        if paused_s > 0:
            return Grant(self._epoch, concurrency=holder.share, paused_s=paused_s, wait_s=min(paused_s, HEARTBEAT_S))
        if not metered or not report.wanted:
            starved = holder.share == 0 and holder.demand > 0 and len(bucket.holders) <= MANY
            return Grant(self._epoch, concurrency=holder.share, wait_s=0.1 if starved else HEARTBEAT_S)
        if self._may_send_unleased(bucket, holder, now):
            return Grant(self._epoch, concurrency=holder.share, wait_s=0.1)
        n, tokens, wait_s = self._affordable(bucket, holder, report.wanted, now)
        if n == 0:
            return Grant(self._epoch, concurrency=holder.share, wait_s=wait_s)
        self._leases += 1
        bucket.leases[self._leases] = Lease(
            report.holder, n, tokens, bucket.tokens.ratio, now + PERMIT_S + LATE_S + WINDOW_S
        )
        bucket.requests.take(n)
        bucket.tokens.take(tokens)
        return Grant(self._epoch, self._leases, n, holder.share, wait_s=wait_s)

    def _may_send_unleased(self, bucket: Bucket, holder: Holder, now: float) -> bool:
        """Return whether some holder may still send without a lease."""
        if not bucket.totals.unreported and not holder.unreported:
            return False
        return any(other.unreported and now - other.heard < SHARE_S for other in bucket.holders.values())

    def _affordable(
        self, bucket: Bucket, holder: Holder, wanted: tuple[int, ...], now: float
    ) -> tuple[int, int, float]:
        """Return how many of `wanted` may go now, their tokens, and when asking again makes sense."""
        requests, tokens = bucket.requests, bucket.tokens
        rivals = max(1, bucket.totals.wants + holder.wants)
        paced = requests.refill(now, requests.burst)
        # What nobody has fetched goes to who asks: so many may ask so often that each cannot come when it is its turn.
        turn = max(requests.burst / rivals, paced / _UNFETCHED) if requests.limit else LARGEST_LEASE
        most = max(1, min(len(wanted), LARGEST_LEASE, int(turn)))
        burst = token_burst(bucket, max(wanted[:most]))
        token_balance = tokens.refill(now, burst)
        n = cost = 0
        n_unleased = bucket.totals.unleased_requests + holder.unleased[0]
        unleased = bucket.totals.unleased_tokens + holder.unleased[1]
        room = float("inf") if requests.limit is None else requests.limit - requests.used(now) - n_unleased
        token_room = float("inf") if tokens.limit is None else tokens.limit - tokens.used(now) - unleased
        for wish in wanted[:most]:
            need = wish if tokens.limit is None else min(wish, tokens.limit)
            if n + 1 > min(paced, room):
                bucket.short_at["requests"] = now
                break
            if cost + need > token_room or token_balance - cost * tokens.ratio < min(need * tokens.ratio, burst):
                bucket.short_at["tokens"] = now
                break
            n, cost = n + 1, cost + need
        soon = max(1.0, min(len(wanted) - n, requests.burst / 3))
        ahead = max(requests.wait_s(now, soon, requests.burst), tokens.wait_s(now, wanted[min(n, most - 1)], burst))
        return n, cost, min(max(ahead, _turn_s(bucket, rivals, wanted[0]), 0.01), 2 * HEARTBEAT_S)

    def _adapt(self, bucket: Bucket, holder: Holder, report: Report, now: float) -> None:
        """Change the concurrency that nobody declared, while all of it is used."""
        if report.latency_s is not None and report.done:
            bucket.best_latency_s = min(bucket.best_latency_s, report.latency_s)
        is_paused = bucket.is_absent or now < bucket.paused_until
        if bucket.limit.max_concurrency is not None or is_paused or report.latency_s is None:
            return
        knee = bucket.knee
        saturated = report.waiting and bucket.totals.in_flight + holder.in_flight >= 0.8 * knee.level
        if saturated and not knee.refused:
            knee.look(now, report.done, report.latency_s)
        if not knee.refused or now - bucket.adapted_at < HEARTBEAT_S:
            return
        bucket.adapted_at = now
        if saturated and report.latency_s < 2 * bucket.best_latency_s + 0.05:
            knee.grow_slowly()


def _turn_s(bucket: Bucket, rivals: int, tokens: int) -> float:
    """Return how long one of some rivals waits until it is its turn again, so that not all ask all the time.

    They ask twice as often as they get something: asking less would leave some of the quota unused.
    """
    if rivals <= _FEW:
        return 0.0
    requests, limit = bucket.requests.limit, bucket.tokens.limit
    rates = [requests / WINDOW_S] if requests else []
    rates += [limit / WINDOW_S / max(1, tokens)] if limit else []
    return rivals / (2 * min(rates)) if rates else 0.0


class LocalLimiter:
    """The limit of one process: for local mode, and for calls that need no Ray. Every open backend's thread asks it."""

    def __init__(self) -> None:
        self._quotas = Quotas()
        self._lock = threading.Lock()

    async def exchange(self, report: Report) -> Grant:
        """Return what a holder of this process may do."""
        with self._lock:
            return self._quotas.exchange(report)

    def show(self) -> list[BucketInfo]:
        """Return every bucket as it is now."""
        with self._lock:
            return self._quotas.show()
