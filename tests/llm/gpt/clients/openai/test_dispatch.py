"""How many at once, how often again and for how long: no SDK, no socket."""

import asyncio
import threading
import time
import uuid
from dataclasses import replace

import pytest

from skllm_ray.config import RateLimit
from skllm_ray.llm.api.failures import row_error
from skllm_ray.llm.api.request_runner import RequestKind, RequestRunner
from skllm_ray.llm.api.retry_policy import RetryPolicy, _Streak
from skllm_ray.llm.cancellation import Call
from skllm_ray.llm.rate_limit import bucket
from skllm_ray.llm.rate_limit.installed import current_limiter, install_limiter
from skllm_ray.tasks.base import Reply, Usage

HASTY = RetryPolicy(timeout_s=5, deadline_s=20, max_tries=5, backoff_s=0.001)


@pytest.fixture
def opened():
    """Return a function that opens runners of one bucket, and close them all."""
    install_limiter(None)
    open_ones, bucket = [], uuid.uuid4().hex

    def open_one(patience=HASTY, limit=None):
        open_ones.append(RequestRunner(patience, bucket, limit))
        return open_ones[-1]

    open_one.bucket = bucket
    yield open_one
    for one in open_ones:
        one.close(_nothing)


async def _nothing():
    return None


def asking(answer):
    """Return a job whose questions `answer` answers; it may be a coroutine function."""

    async def ask(question, permit):
        found = answer(question)
        found = await found if asyncio.iscoroutine(found) else found
        if found.error is not None and found.error.kind == "rate_limit":
            permit.refusal_s = 0.001
        return found

    return RequestKind(ask, lambda question: 1, Reply)


class Counting:
    """Answers after a moment, and counts how many are in flight."""

    def __init__(self):
        self.now = self.most = self.n = 0

    async def __call__(self, question):
        self.n += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        return Reply("fine")


@pytest.mark.parametrize("most", [1, 3])
def test_a_call_has_no_more_in_flight_than_it_wants_and_leaves_the_others_alone(opened, most):
    runner, mine, others = opened(), Counting(), Counting()
    other = threading.Thread(target=runner.run, args=(range(200), asking(others)))
    other.start()
    with Call("capped", most).active():
        runner.run(range(20), asking(mine))
    other.join()
    assert mine.most == most
    assert others.most > 2 * most
    (shown,) = [one for one in current_limiter().show() if one.bucket == opened.bucket]
    assert shown.max_concurrency is None


BAD_KEY = row_error("authentication", "no")


def test_a_fatal_error_ends_the_other_blocks_of_the_call_and_keeps_what_they_were_answered(opened):
    """Two backends stand for two workers; a third one works for another call."""
    name, asked = uuid.uuid4().hex, threading.Event()
    found, sent = {}, {"slow": 0, "other": 0}

    def block(which, runner, call, answer, n):
        with call.active():
            found[which] = runner.run(range(n), asking(answer))

    async def slow(question):
        sent["slow"] += 1
        asked.set()
        await asyncio.sleep(0.05)
        return Reply("paid")

    async def other(question):
        sent["other"] += 1
        await asyncio.sleep(0.005)
        return Reply("paid")

    call, third = Call(name), Call(uuid.uuid4().hex)
    one_at_a_time = RateLimit(max_concurrency=6)
    threads = [
        threading.Thread(target=block, args=("slow", opened(limit=one_at_a_time), call, slow, 2000)),
        threading.Thread(target=block, args=("other", opened(), third, other, 100)),
    ]
    for thread in threads:
        thread.start()
    assert asked.wait(20)
    block("fatal", opened(), call, lambda question: Reply(error=BAD_KEY), 10)
    for thread in threads:
        thread.join()
    kinds = [reply.error.kind if reply.error else "paid" for reply in found["slow"]]
    assert kinds.count("paid") == sent["slow"] < 2000
    assert set(kinds) == {"paid", "cancelled"}
    assert {reply.text for reply in found["other"]} == {"paid"}
    cancelled = next(reply for reply in found["slow"] if reply.error)
    assert (cancelled.attempts, cancelled.error.fatal) == (0, False)
    assert "authentication" in cancelled.error.message
    block("late", opened(), call, other, 5)  # a block that begins after the end sends nothing
    assert {reply.error.kind for reply in found["late"]} == {"cancelled"}
    assert sent["other"] == 100


def test_what_one_job_declares_holds_for_another_that_declares_nothing(opened):
    strict, free = opened(limit=RateLimit(requests_per_minute=1200)), opened()
    strict.run([0], asking(Counting()))
    free.run(range(5), asking(Counting()))
    started = time.monotonic()
    free.run(range(40), asking(Counting()))
    assert time.monotonic() - started > 0.8  # twenty a second, and twenty at once
    (shown,) = [one for one in current_limiter().show() if one.bucket == opened.bucket]
    assert (shown.requests_per_minute, shown.requests_used) == (1200, 46)


def test_a_quotas_refusals_are_not_tries(opened, monkeypatch):
    monkeypatch.setattr(bucket, "_FIRST_EXTRA_S", 0.01)
    left = dict.fromkeys(range(3), 12)

    def answer(question):
        left[question] -= 1
        return Reply("fine") if left[question] < 0 else Reply(error=row_error("rate_limit", "slow down"))

    found = opened(replace(HASTY, max_tries=2)).run(range(3), asking(answer))
    assert [(reply.text, reply.attempts) for reply in found] == [("fine", 13)] * 3


def test_who_was_refused_goes_before_who_was_never_asked(opened):
    order = []

    def answer(question):
        order.append(question)
        return Reply(error=row_error("rate_limit", "slow down")) if order == [0] else Reply("fine")

    opened(limit=RateLimit(max_concurrency=1)).run(range(4), asking(answer))
    assert order == [0, 0, 1, 2, 3]


def spent(tokens, cost, error=None):
    return Reply(None if error else "fine", usage=Usage(tokens, 10, 1, cost), error=error)


EMPTY = row_error("malformed_response", "empty")


@pytest.mark.parametrize(
    ("answers", "usage"),
    [
        ([spent(1000, 0.5, EMPTY), spent(1000, 0.5, EMPTY), spent(900, 0.25)], Usage(2900, 30, 3, 1.25)),
        ([spent(1000, 0.5, EMPTY), Reply(error=row_error("server_error", "")), spent(1, 0.5)], Usage(1001, 20, 2, 1.0)),
        ([spent(1000, None, EMPTY), spent(900, None)], Usage(1900, 20, 2, None)),
        ([spent(1000, 0.5, EMPTY), Reply("the server told nothing")], Usage(1000, 10, 1, None)),
        ([Reply(error=row_error("server_error", "")), Reply("the server told nothing")], Usage()),
        ([spent(1000, 0.5, EMPTY), Reply(error=row_error("bad_request", ""))], Usage(1000, 10, 1, 0.5)),
    ],
)
def test_what_failed_tries_cost_is_told(opened, answers, usage):
    (reply,) = opened().run([iter(answers)], asking(next))
    assert reply.usage == usage
    assert reply.attempts == len(answers)


REFUSED = row_error("connection", "refused")
GONE = RetryPolicy(timeout_s=5, deadline_s=0.3, max_tries=5, backoff_s=0.01)


@pytest.mark.parametrize("error", [REFUSED, row_error("timeout", "silent")], ids=str)
def test_a_server_that_is_gone_ends_the_call(opened, error):
    sent = [0]

    def answer(question):
        sent[0] += 1
        return Reply(error=error)

    runner = opened(GONE)
    found = []
    with Call(uuid.uuid4().hex).active():
        for _ in range(60):
            found += runner.run(range(256), asking(answer))
    kinds = [reply.error.kind for reply in found]
    assert sent[0] < 7_000 < kinds.count("cancelled")
    (cause,) = {reply.error for reply in found if reply.error.fatal}
    assert (cause.kind, cause.retryable) == (error.kind, True)
    assert "set_timeouts" in cause.message
    assert all(reply.error.retryable for reply in found)  # a batch job waits and asks all of them again
    assert runner.run(range(3), asking(lambda question: Reply("it is back")))[0].text == "it is back"


@pytest.mark.parametrize("served_every_s", [5, 29, None])
@pytest.mark.parametrize("try_s", [0.0, 120.0])
def test_only_a_server_that_serves_nobody_is_gone(served_every_s, try_s):
    streak, served_at, gone = _Streak(30.0, 30.0), float("-inf"), []
    for second in range(600):
        if served_every_s and second % served_every_s == 0:
            served_at = float(second)
        gone += [streak.goes_on(second - try_s, second, served_at) for _ in range(32)]
    assert any(gone) == (served_every_s is None)
    assert not any(gone[: 30 * 32])
    assert not any(gone[: int(try_s) * 32])  # of tries that had begun before, none tells that it is still so


def test_failures_long_ago_do_not_count():
    streak, never = _Streak(30.0, 30.0), float("-inf")
    assert [streak.goes_on(now, now, never) for now in range(0, 1000, 40)] == [False] * 25
    streak.end()
    assert not streak.goes_on(1000.0, 1000.0, never)


def test_pauses_that_are_longer_than_the_patience_end_no_streak():
    streak, never = _Streak(6.0, 6.0), float("-inf")
    gone = [streak.goes_on(20.0 * i, 20.0 * i + 1, never) for i in range(12)]
    assert gone.index(True) == 8


def test_who_is_answered_elsewhere_has_a_server(opened):
    """One worker's network is broken, another one's works: the call goes on."""
    stop = threading.Event()

    async def fine(question):
        await asyncio.sleep(0.01)
        return Reply("fine")

    def work():
        while not stop.is_set():
            healthy.run(range(50), asking(fine))

    healthy, thread = opened(), threading.Thread(target=work)
    thread.start()
    patience = replace(GONE, deadline_s=1.0)
    found = opened(patience).run(range(400), asking(lambda question: Reply(error=REFUSED)))
    stop.set()
    thread.join()
    assert {reply.error.kind for reply in found} == {"connection"}


def test_a_server_that_only_ever_refuses_ends_the_call(opened, monkeypatch):
    monkeypatch.setattr(bucket, "_FIRST_EXTRA_S", 0.0)
    found = opened(GONE).run(range(3000), asking(lambda question: Reply(error=row_error("rate_limit", "slow down"))))
    assert sum(reply.error.fatal for reply in found) >= 1
    assert sum(reply.error.kind == "cancelled" for reply in found) > 2000


def test_a_pause_of_our_own_fails_no_row_that_was_never_asked(opened):
    left = [6]

    def answer(question):
        left[0] -= 1
        return Reply(error=row_error("rate_limit", "slow down")) if left[0] >= 0 else Reply("fine")

    found = opened(replace(HASTY, deadline_s=0.01), RateLimit(max_concurrency=2)).run(range(20), asking(answer))
    assert [reply.text for reply in found[4:]] == ["fine"] * 16


def test_one_try_ends_in_time_however_slowly_the_answer_trickles(opened):
    async def answer(question):
        await asyncio.sleep(60)

    patience = RetryPolicy(timeout_s=0.05, connect_s=0.05, deadline_s=30, max_tries=2, backoff_s=0.001)
    (reply,) = opened(patience).run([0], asking(answer))
    assert (reply.error.kind, reply.error.retryable, reply.attempts) == ("timeout", True, 2)


class Broken:
    """A limiter that fails."""

    async def exchange(self, report):
        raise LookupError("a secret")

    def show(self):
        return []


def test_a_limiter_that_fails_lets_no_row_wait_for_ever(opened):
    runner = opened()
    install_limiter(Broken())
    try:
        found = runner.run(range(5), asking(lambda question: Reply("never sent")))
    finally:
        install_limiter(None)
    assert {(reply.error.kind, reply.attempts) for reply in found} == {("cancelled", 0)}
    assert any(reply.error.fatal for reply in found)
    assert "LookupError" in found[0].error.message
    assert "secret" not in str(found)


class Stopped:
    """A limiter that gives no answer for ever."""

    async def exchange(self, report):
        await asyncio.sleep(3600)

    def show(self):
        return []


def test_a_limiter_that_gives_no_answer_lets_no_row_wait_longer_than_it_may(opened, monkeypatch):
    monkeypatch.setattr("skllm_ray.llm.api.request_runner.LONGEST_PAUSE_S", 0.3)
    runner = opened(replace(HASTY, deadline_s=0.2))
    install_limiter(Stopped())
    try:
        found = runner.run(range(5), asking(lambda question: Reply("never sent")))
    finally:
        install_limiter(None)
    assert {(reply.error.kind, reply.attempts) for reply in found} == {("cancelled", 0)}
    assert "what keeps the shared limit gave no answer for 0.3 s" in found[0].error.message
