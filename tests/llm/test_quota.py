"""The shared limit, by simulation: a clock that the test turns, servers that count in sliding windows."""

import asyncio
import heapq
import itertools
import random
import sys
import threading
from collections import Counter, deque

import pytest

from skllm_ray.config import RateLimit
from skllm_ray.llm.api.token_estimate import TokenEstimate
from skllm_ray.llm.rate_limit.bucket import TURN_S, Totals
from skllm_ray.llm.rate_limit.client import Gate
from skllm_ray.llm.rate_limit.limiter import LocalLimiter, Quotas
from skllm_ray.llm.rate_limit.messages import PERMIT_S, Left, Refusal, Released, Report
from skllm_ray.llm.rate_limit.permits import NotLetThroughError
from skllm_ray.tasks.base import ChatRequest, RowError, Usage


class Server:
    """Counts what arrives in the last 60 s, and notes the highest count."""

    def __init__(self) -> None:
        self.seen: deque[tuple[float, int]] = deque()
        self.total = self.tokens = self.most = self.most_tokens = 0

    def arrive(self, now: float, tokens: int) -> None:
        self.seen.append((now, tokens))
        self.tokens += tokens
        self.total += 1
        while self.seen[0][0] <= now - 60:
            self.tokens -= self.seen.popleft()[1]
        self.most, self.most_tokens = max(self.most, len(self.seen)), max(self.most_tokens, self.tokens)


class Holder:
    """A process with rows without end."""

    numbers = itertools.count()

    def __init__(self, world, limit, latency_s, reserve, use):
        self.world, self.limit, self.latency_s, self.reserve, self.use = world, limit, latency_s, reserve, use
        self.name, self.n, self.in_flight, self.released, self.epoch = f"h{next(self.numbers)}", 0, 0, [], ""
        self.past, self.out, self.alive, self.concurrency = [], {}, True, 100

    def report(self, now, past=()):
        self.n += 1
        released = tuple(Released(i, 1, r, u, now - t, 1) for i, r, u, t in self.released)
        free = max(0, min(32, self.concurrency - self.in_flight))
        wanted = () if past else (self.reserve,) * free
        self.past += [(t, u) for _, _, u, t in self.released]
        done, self.released = len(self.released), []
        done_s = self.latency_s if done else None
        return Report("b", self.name, self.n, self.limit, 999, self.in_flight, wanted, 130.0, released,
                      epoch=self.epoch, past=past, done=done, latency_s=done_s)  # fmt: skip

    def turn(self, now):
        if not self.alive:
            return
        report = self.report(now)
        grant = self.world.quotas.exchange(report)
        if self.epoch and grant.epoch != self.epoch:
            self.epoch = grant.epoch
            past = [Released(0, 1, u, u, now - t, 1) for t, u in self.past if now - t < 60]
            past += [Released(0, 1, self.reserve, self.reserve, 0.0, 1) for _ in range(self.in_flight)]
            grant = self.world.quotas.exchange(self.report(now, tuple(past) or (Released(0, 0, 0, 0, 0.0, 0),)))
        self.epoch, self.concurrency = grant.epoch, grant.concurrency
        for _ in range(grant.permits):
            self.in_flight += 1
            travels = self.world.random.uniform(0, 0.3)
            self.world.at(now + travels, self.arrive, grant.lease)
        self.world.at(now + max(0.01, grant.wait_s if report.wanted else 0.02), self.turn)

    def arrive(self, now, lease):
        if not self.alive:
            return
        used = self.use()
        self.world.server.arrive(now, used)
        self.world.at(now + self.latency_s, self.answer, lease, used, now)

    def answer(self, now, lease, used, arrived):
        self.in_flight -= 1
        self.released.append((lease, self.reserve, used, min(now, arrived + 1.0)))


class World:
    def __init__(self, seed=0):
        self.now, self.queue, self.counter = 1000.0, [], itertools.count()
        self.random, self.server = random.Random(seed), Server()
        self.quotas = Quotas(lambda: self.now, "first")

    def at(self, when, what, *args):
        heapq.heappush(self.queue, (when, next(self.counter), what, args))

    def run(self, until):
        while self.queue and self.queue[0][0] < until:
            self.now, _, what, args = heapq.heappop(self.queue)
            what(self.now, *args)
        self.now = until


def simulate(limit, n_holders=3, latency_s=0.5, reserve=100, use=lambda: 100, seconds=400, events=()):
    world = World()
    holders = [Holder(world, limit, latency_s, reserve, use) for _ in range(n_holders)]
    for holder in holders:
        world.at(1000.0 + world.random.random(), holder.turn)
    for when, event in events:
        world.at(1000.0 + when, lambda now, event=event: event(world, holders))
    world.run(1000.0 + 120)
    before = world.server.total
    world.run(1000.0 + seconds)
    return world.server, (world.server.total - before) / (seconds - 120) * 60


@pytest.mark.parametrize("latency_s", [0.05, 3.0])
@pytest.mark.parametrize("rpm", [1, 20, 600, 6000])
def test_never_more_requests_than_the_limit_in_any_window_and_nearly_all_of_it(rpm, latency_s):
    seconds = 400 if rpm <= 600 else 200
    server, per_minute = simulate(RateLimit(requests_per_minute=rpm), latency_s=latency_s, seconds=seconds)
    assert server.most <= rpm
    assert per_minute >= rpm * (0.95 if rpm >= 600 else 0.85)


@pytest.mark.parametrize(("reserve", "share"), [(100, 0.95), (400, 0.9)])
def test_tokens_are_refunded_and_never_exceed_the_limit(reserve, share):
    generator = random.Random(1)
    server, per_minute = simulate(
        RateLimit(tokens_per_minute=60_000), reserve=reserve, use=lambda: generator.randint(50, 100)
    )
    assert server.most_tokens <= 60_000
    assert per_minute * 75 >= share * 60_000


def restart(world, holders):
    world.quotas = Quotas(lambda: world.now, "second")


def kill_one(world, holders):
    holders[0].alive = False


def node_lost(world, holders):
    kill_one(world, holders)
    restart(world, holders)


@pytest.mark.parametrize(
    ("event", "rpm"),
    [*itertools.product([restart, kill_one, node_lost], [60, 600]), (node_lost, 6000)],
)
def test_a_lost_limiter_or_holder_never_exceeds_the_limit_and_work_goes_on(event, rpm):
    server, per_minute = simulate(
        RateLimit(requests_per_minute=rpm), events=[(90, event), (200.5, restart)], seconds=330
    )
    assert server.most <= rpm
    assert per_minute >= 0.85 * rpm


def test_a_lost_limiter_never_exceeds_the_tokens():
    generator = random.Random(1)
    server, _ = simulate(
        RateLimit(tokens_per_minute=60_000), reserve=200, use=lambda: generator.randint(50, 150),
        events=[(90, restart), (133, restart)],
    )  # fmt: skip
    assert server.most_tokens <= 60_000


def holder(quotas, name, number, **what):
    return quotas.exchange(Report("b", name, number, **what))


def test_the_lower_of_two_declarations_wins_while_its_holder_lives():
    now = [0.0]
    quotas = Quotas(lambda: now[0])
    holder(quotas, "a", 1, limit=RateLimit(max_concurrency=8), waiting=9)
    holder(quotas, "b", 1, limit=RateLimit(max_concurrency=3), waiting=9)
    assert quotas.show()[0].max_concurrency == 3
    now[0] = 11.0
    holder(quotas, "a", 2, limit=RateLimit(max_concurrency=8), waiting=9)
    assert quotas.show()[0].max_concurrency == 8


def test_concurrency_is_shared_and_never_exceeded():
    quotas = Quotas(lambda: 0.0)
    limit = RateLimit(max_concurrency=10)
    first = holder(quotas, "a", 1, limit=limit, waiting=100)
    assert first.concurrency == 10
    assert holder(quotas, "b", 1, limit=limit, waiting=100).concurrency == 0
    assert holder(quotas, "a", 2, limit=limit, waiting=90, in_flight=10).concurrency == 5
    assert holder(quotas, "b", 2, limit=limit, waiting=100).concurrency == 0  # a's are still in flight
    holder(quotas, "a", 3, limit=limit, waiting=90, in_flight=5)
    assert holder(quotas, "b", 3, limit=limit, waiting=100).concurrency == 5


def served(cap, waiting, latency_s, seconds):
    """Let holders that always have so many rows share `cap`; return how many requests of each were answered."""
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0]), RateLimit(max_concurrency=cap)
    ends, done = {name: [] for name in waiting}, dict.fromkeys(waiting, 0)
    for number in range(round(seconds / 0.5)):
        now[0] += 0.5
        for name, rows in waiting.items():
            left = [end for end in ends[name] if end > now[0]]
            done[name] += len(ends[name]) - len(left)
            share = holder(quotas, name, number, limit=limit, waiting=rows, in_flight=len(left)).concurrency
            ends[name] = left + [now[0] + latency_s] * (min(rows, share) - len(left))
            assert sum(map(len, ends.values())) <= cap
    return done


@pytest.mark.parametrize("cap", [1, 2, 4, 5])
@pytest.mark.parametrize("rows", [(100, 2), (100, 100, 100), (1, 1, 1, 100), (5, 5, 5, 5, 5), (1, 2, 100, 3, 1, 1, 1)])
@pytest.mark.parametrize("latency_s", [0.5, 8.0])
def test_no_holder_starves_however_few_slots_there_are(cap, rows, latency_s):
    done = served(cap, {f"h{i}": n for i, n in enumerate(rows)}, latency_s, 100 * latency_s)
    fair = [min(100 * cap / len(rows), 100 * n) for n in rows]
    assert all(n >= 0.6 * part for n, part in zip(done.values(), fair, strict=True)), done


def test_a_newcomer_gets_its_slot_from_who_had_it_for_longest():
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0]), RateLimit(max_concurrency=2)

    def share(name, number, in_flight=0):
        return holder(quotas, name, number, limit=limit, waiting=9, in_flight=in_flight).concurrency

    assert share("a", 1) == 2
    assert share("b", 1) == 0
    assert share("a", 2, 1) == 1
    now[0] = 2.0
    assert (share("b", 2), share("c", 1)) == (1, 0)
    now[0] = TURN_S + 0.5
    assert (share("b", 3, 1), share("a", 3, 1)) == (1, 0)
    assert share("c", 2) == 0  # a's request is in flight still
    assert share("a", 4) == 0
    assert share("c", 3) == 1


def test_a_holder_that_is_known_to_be_dead_keeps_nothing():
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0]), RateLimit(max_concurrency=4)
    assert holder(quotas, "a", 1, limit=limit, waiting=9).concurrency == 4
    assert holder(quotas, "b", 1, limit=limit, waiting=9).concurrency == 0
    now[0] = 4.0
    assert holder(quotas, "b", 2, limit=limit, waiting=9).concurrency == 0
    assert quotas.silent(3.0) == {"a"}
    quotas.bury({"a"})
    assert holder(quotas, "b", 3, limit=limit, waiting=9).concurrency == 4


def test_a_dead_holder_keeps_its_concurrency_until_its_requests_must_be_over():
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0]), RateLimit(max_concurrency=4)
    holder(quotas, "dead", 1, limit=limit, waiting=9, hold_s=30.0)
    now[0] = 39.0
    assert holder(quotas, "b", 1, limit=limit, waiting=9).concurrency == 0
    now[0] = 41.0
    assert holder(quotas, "b", 2, limit=limit, waiting=9).concurrency == 4


def test_a_report_that_is_sent_twice_counts_once():
    now = [0.0]
    quotas = Quotas(lambda: now[0])
    limit = RateLimit(requests_per_minute=600)
    holder(quotas, "a", 1, limit=limit, waiting=5, wanted=(1,) * 5)
    now[0] = 1.0
    first = holder(quotas, "a", 2, limit=limit, waiting=5, wanted=(1,) * 5)
    assert first.permits == 5
    assert holder(quotas, "a", 2, limit=limit, waiting=5, wanted=(1,) * 5) == first
    assert quotas.show()[0].requests_used == 5


def test_one_refusal_pauses_all_once():
    now = [10.0]
    quotas = Quotas(lambda: now[0])
    holder(quotas, "a", 1, waiting=5)
    holder(quotas, "b", 1, waiting=5)
    refused = (Refusal(0.1, 7.0), Refusal(0.2, 7.0))
    assert holder(quotas, "a", 2, waiting=5, refusals=refused).paused_s == pytest.approx(7)
    assert holder(quotas, "b", 2, waiting=5, refusals=(Refusal(0.05),)).paused_s == pytest.approx(7)
    (bucket,) = quotas.show()
    assert (bucket.refusals, bucket.concurrency) == (3, 16)  # halved once, not three times
    now[0] = 17.5
    assert holder(quotas, "b", 3, waiting=5).paused_s == 0


def test_undeclared_concurrency_grows_while_answers_stay_quick():
    now = [0.0]
    quotas = Quotas(lambda: now[0])
    found = []
    for number in range(20):
        now[0] += 0.6
        share = holder(quotas, "a", number, waiting=1000, in_flight=found[-1] if found else 0, done=9, latency_s=0.05)
        found.append(share.concurrency)
    assert found[0] == 32 and found[-1] == 1024
    for number in range(20, 25):
        now[0] += 0.6
        found.append(holder(quotas, "a", number, waiting=9, in_flight=1024, done=9, latency_s=9.0).concurrency)
    assert found[-1] == 1024


def test_what_others_use_is_learnt_from_the_servers_headers():
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0]), RateLimit(requests_per_minute=600)
    holder(quotas, "a", 1, limit=limit, waiting=1, wanted=(1,))
    now[0] = 5.0
    holder(quotas, "a", 2, limit=limit, waiting=1, external=(Left(0), None))
    assert holder(quotas, "a", 3, limit=limit, waiting=1, wanted=(1,)).permits == 0
    now[0] = 36.0
    assert holder(quotas, "a", 4, limit=limit, waiting=1, wanted=(1,)).permits == 1


@pytest.mark.parametrize(("reset_s", "blocked_s"), [(0.0, 0.0), (4.0, 4.0), (None, 30.0), (3600.0, 60.0)])
def test_what_others_use_counts_until_the_server_has_it_back(reset_s, blocked_s):
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0]), RateLimit(tokens_per_minute=6000)
    holder(quotas, "a", 1, limit=limit)
    now[0] = 5.0
    for number in range(2, 6):  # every answer says so again
        now[0] += 0.01
        holder(quotas, "a", number, limit=limit, external=(None, Left(0, reset_s)))
    if blocked_s:
        now[0] = 4.9 + blocked_s
        assert holder(quotas, "a", 6, limit=limit, waiting=1, wanted=(1,)).permits == 0
    now[0] = 5.1 + blocked_s
    assert holder(quotas, "a", 7, limit=limit, waiting=1, wanted=(1,)).permits == 1


def test_what_one_holder_declares_binds_all_and_what_was_sent_before_counts():
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0]), RateLimit(requests_per_minute=60)
    free = holder(quotas, "free", 1, waiting=500)
    assert (free.limit, free.concurrency) == (RateLimit(), 32)
    now[0] = 1.0
    sent = Released(0, 10, 0, 0, 0.0, 10)
    holder(quotas, "free", 2, waiting=490, in_flight=20, unleased=(20, 0), released=(sent,))
    assert holder(quotas, "strict", 1, limit=limit, waiting=9).limit == limit
    assert holder(quotas, "strict", 2, limit=limit, waiting=9, wanted=(1,)).permits == 0  # "free" does not know yet
    now[0] = 1.5
    assert holder(quotas, "free", 3, waiting=478, in_flight=32, unleased=(32, 0)).limit == limit
    assert holder(quotas, "strict", 3, limit=limit, waiting=9, wanted=(1,)).permits == 0  # it may have sent meanwhile
    now[0] = 2.0
    told = holder(quotas, "free", 4, waiting=470, in_flight=40, unleased=(40, 0), wanted=(1,) * 9)
    assert told.permits == 1
    granted = told.permits
    for number in range(5, 100):
        now[0] += 0.4
        left = {"waiting": 470, "in_flight": 40, "unleased": (40, 0)}
        granted += holder(quotas, "free", number, wanted=(1,) * 9, **left).permits
        granted += holder(quotas, "strict", number, limit=limit, waiting=9, wanted=(1,) * 9).permits
    assert 10 + 40 + granted <= 60


def test_what_a_lost_holder_sent_without_a_lease_counts():
    now = [0.0]
    quotas = Quotas(lambda: now[0])
    holder(quotas, "free", 1, waiting=500)
    holder(quotas, "free", 2, waiting=480, in_flight=20, unleased=(20, 700))
    now[0] = 4.0
    quotas.bury({"free"})
    assert (quotas.show()[0].requests_used, quotas.show()[0].tokens_used) == (20, 700)


def test_a_new_limiter_keeps_the_limit_until_all_who_declared_it_have_said_so_again():
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0], "second"), RateLimit(requests_per_minute=60)
    past = (Released(0, 0, 0, 0, 0.0, 0),)
    assert holder(quotas, "free", 7, waiting=9, epoch="second", past=past, known=limit).limit == limit
    now[0] = 5.0
    assert holder(quotas, "free", 8, waiting=9, epoch="second").limit == limit
    now[0] = 11.0
    assert holder(quotas, "free", 9, waiting=9, epoch="second").limit == RateLimit()


def test_a_call_that_ended_has_ended_for_all():
    quotas, error = Quotas(lambda: 0.0), RowError("insufficient_quota", "no money", fatal=True)
    assert holder(quotas, "a", 1, waiting=9, calls=("one", "two")).ended == ()
    holder(quotas, "a", 2, calls=("one", "two"), ended=(("one", error),))
    other = quotas.exchange(Report("another bucket", "b", 1, waiting=9, calls=("two", "one")))
    assert other.ended == (("one", error),)
    assert holder(quotas, "c", 1, waiting=9, calls=("two",)).ended == ()


def test_refusals_without_end_pause_longer_and_longer_until_somebody_is_served():
    now = [0.0]
    quotas = Quotas(lambda: now[0])
    pauses = []
    for number in range(2000):
        now[0] += 60.0
        refused = (Refusal(0.0, 0.01),)
        pauses.append(holder(quotas, "a", number, waiting=5, done=1, refusals=refused).paused_s)
    assert pauses[0] < 0.1 and 15 <= pauses[-1] <= 30
    now[0] += 60.0
    assert holder(quotas, "a", 3000, waiting=5, done=9, served=True, refusals=(Refusal(0.0, 0.01),)).paused_s < 0.1


def test_unsettled_permits_count_until_a_window_after_they_end():
    now = [0.0]
    quotas, limit = Quotas(lambda: now[0]), RateLimit(requests_per_minute=60, tokens_per_minute=600)
    holder(quotas, "a", 1, limit=limit)
    now[0] = 2.0
    assert holder(quotas, "a", 2, limit=limit, waiting=1, wanted=(9,)).permits == 1
    now[0] = 2.0 + PERMIT_S + 60
    (shown,) = quotas.show()
    assert (shown.requests_used, shown.tokens_used) == (1, 9)
    now[0] += 2
    (shown,) = quotas.show()
    assert (shown.requests_used, shown.tokens_used) == (0, 0)


def test_a_request_that_is_forbidden_right_before_it_is_sent_leaves_its_slot_to_others():
    async def forbid_and_ask() -> int:
        gate = Gate("bucket of one", RateLimit(max_concurrency=1), 60.0, 60.0)
        forbidden = gate.enter(None, guard=lambda: RowError("cancelled", "forbidden", fatal=True))
        with pytest.raises(NotLetThroughError):
            await gate.acquire(1, forbidden)
        permit = await asyncio.wait_for(gate.acquire(1, gate.enter(None)), 20)
        gate.release(permit, 1)
        await gate.close()
        return permit.tokens

    assert asyncio.run(forbid_and_ask()) == 1


def test_what_a_request_will_cost_rises_at_once_and_falls_slowly():
    request, estimate = ChatRequest(({"role": "user", "content": "x" * 300},)), TokenEstimate()
    estimate.learn(request, Usage(100, 40))
    first = estimate.of_request(request)
    assert 140 < first < 180
    estimate.learn(request, Usage(100, 400))
    long = estimate.of_request(request)
    assert long > 500
    estimate.learn(request, Usage(100, 1))
    assert 0.95 * long < estimate.of_request(request) < long


def test_the_limiter_of_a_process_serves_many_threads_at_once():
    limiter, limit, failed = LocalLimiter(), RateLimit(requests_per_minute=10**6, tokens_per_minute=10**9), []

    def hold(name):
        try:
            asyncio.run(ask_and_settle(name))
        except Exception as error:  # noqa: BLE001  whatever it is, the test is to show it
            failed.append(error)

    async def ask_and_settle(name):
        for number in range(300):
            bucket, holder_ = f"bucket {number % 7}", f"{name} {number % 11}"
            grant = await limiter.exchange(Report(bucket, holder_, number, limit, waiting=2, wanted=(5, 5)))
            if grant.permits:
                await limiter.exchange(
                    Report(bucket, holder_, number + 10**6, limit,
                           released=(Released(grant.lease, grant.permits, 5 * grant.permits, 5, 0.0, grant.permits),))
                )  # fmt: skip
            limiter.show()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hold, args=(f"thread {i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    buckets = limiter._quotas._buckets.values()
    assert [(bucket.requests.out, bucket.tokens.out, len(bucket.leases)) for bucket in buckets] == [(0, 0, 0)] * 7


def test_a_limiter_that_lives_for_long_forgets_what_nobody_uses():
    now = [0.0]
    quotas = Quotas(clock=lambda: now[0])
    for number in range(5000):
        now[0] += 1.0
        quotas.exchange(Report(f"bucket {number}", "me", 1, RateLimit(requests_per_minute=5), waiting=0))
    assert len(quotas.show()) <= 1001
    assert "bucket 4999" in {bucket.bucket for bucket in quotas.show()}


class Patient(Holder):
    """Asks again when it was told to, as real ones do."""

    def turn(self, now):
        grant_of = self.world.quotas.exchange
        grants = []
        self.world.quotas.exchange = lambda report: grants.append(grant_of(report)) or grants[-1]
        at, self.world.at = self.world.at, lambda when, what, *args: what != self.turn and at(when, what, *args)
        super().turn(now)
        self.world.quotas.exchange, self.world.at = grant_of, at
        at(now + max(0.01, grants[-1].wait_s), self.turn)


def many_holders(n, rpm, seconds):
    """Return what a server saw of very many holders in the last minute, and how many reports there were."""
    world = World()
    for _ in range(n):
        world.at(1000.0 + world.random.random(), Patient(world, RateLimit(requests_per_minute=rpm), 0.5, 1, int).turn)
    exchange, reports = world.quotas.exchange, itertools.count()
    world.quotas.exchange = lambda report: next(reports) >= 0 and exchange(report)
    world.run(1000.0 + seconds - 60)
    before = world.server.total
    world.run(1000.0 + seconds)
    return world.server, world.server.total - before, next(reports)


def test_very_many_holders_use_the_limit_and_never_more():
    server, in_a_minute, reports = many_holders(80, 3000, 70)
    assert reports < 3 * 70 * 50  # two for each request: they ask when it is their turn
    assert server.most <= 3000
    assert in_a_minute >= 0.95 * 3000


def test_sums_over_the_holders_stay_what_they_are_whatever_happens():
    now, chance = [0.0], random.Random(2)
    quotas = Quotas(lambda: now[0])
    numbers = Counter()
    for _ in range(3000):
        now[0] += chance.choice([0.0, 0.01, 0.5, 3.0])
        name = f"h{chance.randrange(90)}"
        numbers[name] += 1
        limit = chance.choice([None, RateLimit(max_concurrency=chance.randint(1, 200)), RateLimit(600, 9000)])
        holder(quotas, name, numbers[name], limit=limit, waiting=chance.randrange(4), in_flight=chance.randrange(4),
               wanted=(5,) * chance.randrange(3), unleased=(chance.randrange(2), chance.randrange(9)))  # fmt: skip
        if chance.random() < 0.01:
            quotas.bury(quotas.silent(1.0))
    (bucket,) = quotas._buckets.values()
    counted = Totals()
    for one in bucket.holders.values():
        counted.add(one)
    assert bucket.totals == counted
    assert len(bucket.holders) > 5


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (RateLimit(600, None, None), ("requests",)),
        (RateLimit(None, 60_000, None), ("tokens",)),
        (RateLimit(6_000_000, None, None), ()),  # a quota that nobody uses up holds nobody up
        (RateLimit(None, None, 8), ()),
    ],
)
def test_the_quota_that_keeps_requests_waiting_is_named_from_the_first_second(limit, told):
    world = World()
    for _ in range(3):
        world.at(1000.0, Holder(world, limit, 0.5, 100, lambda: 100).turn)
    for second in (2.0, 8.0):
        world.run(1000.0 + second)
        assert [bucket.paced_by for bucket in world.quotas.show()] == [told]
    world.now += 5.0  # in which nobody asks
    assert [bucket.paced_by for bucket in world.quotas.show()] == [()]


def test_a_limit_is_used_up_by_many_holders_that_cannot_ask_as_often_as_it_is_their_turn():
    now, n_granted = [0.0], 0
    quotas = Quotas(clock=lambda: now[0])
    limit = RateLimit(requests_per_minute=60_000, max_concurrency=2000)
    leases: dict[int, tuple[int, int]] = {}
    for i in range(12_000):  # 300 holders, each every half second: 600 reports/s for 1,000 requests/s
        now[0] += 1 / 600
        one = i % 300
        lease, n = leases.pop(one, (0, 0))
        told = (Released(lease, n, 100 * n, 100 * n, 0.1, n),) if n else ()
        grant = quotas.exchange(Report("b", f"n/{one}", i // 300 + 1, limit, 20, 0, (100,) * 20, released=told))
        n_granted += grant.permits
        if grant.permits:
            leases[one] = grant.lease, grant.permits
    assert 0.95 <= n_granted / (1000 * now[0]) <= 1.0
