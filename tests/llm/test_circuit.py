"""A server that was there and is not: one request at a time looks for it, and no other worker asks it meanwhile."""

from __future__ import annotations

import threading
import time

import pytest

from skllm_ray.llm.api.retry_policy import RetryPolicy, _Streak
from skllm_ray.llm.rate_limit.limiter import Quotas
from skllm_ray.llm.rate_limit.messages import Refusal, Report
from skllm_ray.testing import ChatServer, StatusFault
from tests.llm.gpt.clients.openai.test_chat import KEY, ask, spec_for

LOOK_S = 4.0


class Worker:
    """A process that reports to the limiter."""

    def __init__(self, quotas, name):
        self.quotas, self.name, self.number = quotas, name, 0

    def report(self, **what):
        self.number += 1
        return self.quotas.exchange(Report("b", self.name, self.number, waiting=50, **what))


def two_workers():
    now = [100.0]
    quotas = Quotas(lambda: now[0])
    one, other = Worker(quotas, "one"), Worker(quotas, "other")
    for worker in (one, other, one, other):
        worker.report(served=True)
    return now, one, other


def test_what_one_worker_meets_makes_the_others_wait_until_one_is_served():
    now, one, other = two_workers()
    assert other.report().concurrency > 1
    now[0] = 103.0
    assert 0 < one.report(absent=(0.1, LOOK_S)).paused_s <= 0.25
    assert other.report().paused_s > 0
    now[0] = 104.0
    shares = [one.report().concurrency, other.report().concurrency]
    assert sorted(shares) == [0, 1]
    now[0] = 105.0
    assert one.report(served=True).paused_s == 0
    assert one.report().concurrency > 1 and other.report().concurrency > 1


def test_looks_become_rarer_up_to_what_a_rows_time_allows_and_those_sent_before_count_once():
    now, one, other = two_workers()
    pauses = []
    for _ in range(8):
        now[0] += 10
        pauses.append(one.report(absent=(0.1, LOOK_S)).paused_s)
        assert other.report(absent=(0.2, LOOK_S)).paused_s == pytest.approx(pauses[-1])
    assert pauses[0] <= 0.25 and LOOK_S / 2 <= pauses[-1] <= LOOK_S


@pytest.mark.parametrize("served_s", [0.0, 0.5])
def test_a_row_that_alone_finds_no_server_stops_nobody(served_s):
    now, one, other = two_workers()
    now[0] = 100.0 + served_s
    assert one.report(absent=(0.0, LOOK_S)).paused_s <= 0
    assert other.report().concurrency > 1


def test_a_server_that_never_was_there_is_no_outage():
    quotas = Quotas(lambda: 100.0)
    one, other = Worker(quotas, "one"), Worker(quotas, "other")
    assert one.report(absent=(0.1, LOOK_S)).paused_s <= 0
    assert [worker.report().concurrency > 1 for worker in (other, one, other)][1:] == [True, True]


def test_the_pause_of_a_quota_holds_for_a_worker_that_met_none():
    now, one, other = two_workers()
    one.report(refusals=(Refusal(0.1, 7.0),))
    assert other.report().paused_s >= 7.0
    now[0] += 8
    assert other.report().paused_s <= 0


@pytest.mark.parametrize("status", [502, 503])
def test_two_clients_together_look_for_a_gateways_server_a_few_times_and_lose_no_row(status):
    patience = RetryPolicy(timeout_s=5, deadline_s=60, max_tries=5, backoff_s=0.02)
    with ChatServer(latency_s=0.005) as server:
        clients = [spec_for(server, patience=patience).open(lambda ref: KEY) for _ in range(2)]
        for client in clients:
            assert client.complete([ask("x")])[0].text == "ok"
        server.answer = lambda body: StatusFault(status)
        time.sleep(1.2)  # it has served nobody for a while
        before, replies = server.n_requests, []
        asking = [
            threading.Thread(target=lambda c=client: replies.extend(c.complete([ask(str(i)) for i in range(150)])))
            for client in clients
        ]
        for one in asking:
            one.start()
        time.sleep(3)
        looks = server.n_requests - before
        server.answer = lambda body: "ok"
        for one in asking:
            one.join(60)
        for client in clients:
            client.close()
    assert [reply.text for reply in replies] == ["ok"] * 300
    assert looks < 150  # of 300 rows, each of which would look a dozen times


def test_failures_of_before_an_answer_do_not_count_against_a_server():
    streak = _Streak(10.0, 10.0)
    for second in range(8):
        assert not streak.goes_on(second - 0.5, float(second), float("-inf"))  # eight tries, in less than ten seconds
    assert not streak.goes_on(7.6, 8.0, served_at=7.5)
    assert not streak.goes_on(8.1, 19.0, served_at=7.5)  # ten seconds without an answer, and one try
    for try_ in range(1, 7):
        assert not streak.goes_on(19.0 + try_, 19.5 + try_, served_at=7.5)
    assert streak.goes_on(26.0, 26.5, served_at=7.5)
