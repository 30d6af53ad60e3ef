"""What a job costs, over the whole life of its output: never more than the budget, never counted wrongly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.job import worker
from skllm_ray.batch.job.budget import Ledger
from skllm_ray.batch.job.options import JobOptions
from skllm_ray.batch.job.pricing import Pricing
from skllm_ray.batch.job.progress_display import cost_of
from skllm_ray.batch.job.worker import UnitWork
from skllm_ray.batch.output.journal import Journal, answer_line, digest, intent_line, paid, split, write_segment
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.progress import Progress
from skllm_ray.batch.storage import Folder, StorageOptions, open_folder
from skllm_ray.batch.tools.estimate import estimate_job
from skllm_ray.batch.tools.report import write_report
from skllm_ray.config import Price, SKLLMConfig
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.tasks.base import Reply, Usage
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault, WireFault, prompt_of
from skllm_ray.testing.chat_forms import tokens_of
from tests.batch.worlds import LABELS, api_classifier, read, write

PRICES: dict[str, Any] = {"input_price": 1000.0, "output_price": 1000.0, "max_output_tokens": 10}
GOOD = '{"label": "good"}'


@pytest.fixture(autouse=True)
def _world(monkeypatch):
    monkeypatch.setattr("skllm_ray.batch.job.journalled_backend._PAUSES_S", (0.0,))
    SKLLMConfig.reset()
    skllm_ray.init(local_mode=True)
    ModelCache.clear()
    yield
    ModelCache.clear()
    skllm_ray.shutdown()
    SKLLMConfig.reset()


class World:
    """A server that sums up what it must be paid."""

    def __init__(self, folder: Path, n_rows: int = 60) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.paid: list[int] = []
        self.fault: Any = lambda n: None
        self.source = write(folder / "in.parquet", [f"good <{i}>" for i in range(n_rows)])

    def answer(self, body: dict[str, Any]) -> Any:
        n = int(re.search(r"<(\d+)>", prompt_of(body))[1])
        fault = self.fault(n)
        if fault is not None:
            return fault
        self.paid.append(n)
        return GOOD

    def run(self, server: ChatServer, **options: Any) -> batch.JobResult:
        return batch.run(api_classifier(server), self.source, str(self.output), **{**PRICES, **options})

    def state(self) -> OutputState:
        return OutputState(open_folder(str(self.output), StorageOptions(), {}), ())

    def spent(self) -> float:
        return self.state().spent_usd(None)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_failed_row_does_not_make_its_unit_free(tmp_path):
    world = World(tmp_path, 300)
    world.fault = lambda n: StatusFault(400, "nope") if n % 60 == 7 else None
    with ChatServer(world.answer) as server:
        results = [world.run(server, budget_usd=14, limit=limit) for limit in (60, 120, 180, 240, 300)]
    cost = results[0].total.cost_usd / 59
    assert cost > 0.05
    assert len(world.paid) * cost <= 14
    assert "budget" in results[-1].stopped
    assert results[-1].total.cost_usd == pytest.approx(len(world.paid) * cost, rel=0.01)
    assert results[0].unknown_usd == 0.0
    page = tmp_path / "page.html"
    write_report(str(world.output), str(page))
    assert f"{world.state().bill.cost_usd - results[-1].pending.cost_usd:,.2f}" in page.read_text()


def test_asking_again_adds_to_what_was_spent_and_forgets_nothing(world):
    world.fault = lambda n: WireFault.DROP if n % 10 == 0 else None
    with ChatServer(world.answer) as server:
        first = world.run(server, budget_usd=1000, wait_for_server_s=0.2)
        assert first.errors == {"connection": 6}
        assert first.total.cost_usd > 0
        assert first.unknown_usd > 0
        world.fault = lambda n: None
        second = world.run(server, budget_usd=1000, retry_errors=True)
        third = world.run(server, budget_usd=1000)
    assert (second.errors, second.unknown_usd) == ({}, first.unknown_usd)
    assert second.total.cost_usd == pytest.approx(first.total.cost_usd * 60 / 54, rel=0.01)
    assert third.total == second.total
    assert world.spent() == pytest.approx(second.total.cost_usd + first.unknown_usd)


def test_what_an_interrupted_retry_paid_is_spent(world):
    world.fault = lambda n: WireFault.CONTENT_FILTER
    with ChatServer(world.answer) as server:
        first = world.run(server, budget_usd=100)
        world.fault = lambda n: StatusFault(401, "bad key") if len(world.paid) >= 30 else None
        stopped = world.run(server, budget_usd=100, retry_errors=True)
        paid = len(world.paid)
        assert stopped.stopped.startswith("fatal")
        assert stopped.pending.asked == paid
        assert stopped.total.cost_usd == pytest.approx(first.total.cost_usd + stopped.pending.cost_usd)
        assert world.spent() == pytest.approx(stopped.total.cost_usd)  # a refusal for the key costs nothing
        world.fault = lambda n: None
        done = world.run(server, budget_usd=100, retry_errors=True)
    assert (done.errors, done.pending.asked, len(world.paid)) == ({}, 0, 60)
    assert done.total.cost_usd == pytest.approx(first.total.cost_usd + 60 / paid * stopped.pending.cost_usd, rel=0.01)


def test_a_journal_that_outlives_its_part_is_not_counted_twice(world, monkeypatch):
    monkeypatch.setattr(Journal, "close", lambda self, *, keep: None)
    with ChatServer(world.answer) as server:
        done = world.run(server)
    assert world.state().journals != {}
    assert done.pending.asked == 0
    assert world.spent() == pytest.approx(done.total.cost_usd)


def test_a_part_that_is_lost_was_paid_for_all_the_same(world):
    with ChatServer(world.answer) as server:
        first = world.run(server, unit_rows=30)
        next(world.output.glob("part-*")).unlink()
        assert world.spent() == pytest.approx(first.total.cost_usd)
        again = world.run(server)
    assert (again.complete, len(world.paid)) == (True, 90)
    assert again.total.cost_usd == pytest.approx(1.5 * first.total.cost_usd, rel=0.01)


def test_rows_that_had_no_price_yet_count_when_there_is_one(world):
    with ChatServer(world.answer) as server:
        free = world.run(server, limit=20, input_price=None, output_price=None)
        assert (free.total.cost_usd, free.total.unpriced) == (0.0, 20)
        stopped = world.run(server, budget_usd=1.0)
    assert "budget" in stopped.stopped
    assert len(world.paid) == 20


USAGES = [
    None,
    {},
    {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    {"prompt_tokens": 40},
    {"completion_tokens": 5},
    {"prompt_tokens": "many"},
]


@pytest.mark.parametrize("usage", USAGES)
def test_answers_that_tell_no_tokens_count_as_the_most_that_they_may_cost(world, usage):
    """A budget was never used up by servers, and gateways, that count nothing."""
    budget = 15.0

    def answer(body):
        world.answer(body)
        message = {"role": "assistant", "content": '{"label": "good"}'}
        told = {"model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        return RawAnswer(told if usage is None else told | {"usage": usage})

    with ChatServer(answer) as server:
        first = world.run(server, budget_usd=budget)
        paid = len(world.paid)
        assert 0 < paid < 60
        assert first.out_of_budget
        assert first.total.cost_usd == 0
        assert first.total.unpriced == paid
        assert 0 < first.total.unknown_usd <= budget
        assert world.spent() == pytest.approx(first.total.unknown_usd)
        again = world.run(server, budget_usd=budget)  # what an earlier run may have cost stays spent
        assert (len(world.paid), again.total.unknown_usd) == (paid, first.total.unknown_usd)
        done = world.run(server, budget_usd=1000)
        assert (done.complete, len(world.paid), done.total.unpriced) == (True, 60, 60)
        assert world.spent() == pytest.approx(done.total.unknown_usd)
        assert done.total.unknown_usd == pytest.approx(first.total.unknown_usd * 60 / paid, rel=0.05)
    assert cost_of(done.total) == f"price not known, counted as {done.total.unknown_usd:,.4f} USD"


@pytest.mark.parametrize("prices", [{"input_price": 1.0}, {"output_price": 1.0}, {}])
def test_a_budget_takes_both_prices(world, prices):
    with ChatServer(world.answer) as server, pytest.raises(ConfigurationError, match=r"_price is missing|not known"):
        world.run(server, budget_usd=1.0, **{"input_price": None, "output_price": None, **prices})
    assert world.paid == []


def test_half_a_price_is_completed_where_the_other_half_is_known(world):
    with ChatServer(world.answer) as server:
        SKLLMConfig.set_price("custom_url::m", input_per_million=2.0, output_per_million=8.0)
        job = batch.job_for(api_classifier(server), world.source, str(world.output), budget_usd=1.0, input_price=3.0)
        assert (job.plan[-1].spec.price.input, job.plan[-1].spec.price.output) == (3.0, 8.0)


LONG = Price(500.0, 1000.0, long=Price(1000.0, 1500.0), long_above=400)


@pytest.fixture
def long_and_short(tmp_path, monkeypatch):
    """60 rows of which each fourth is longer than the usual price allows, and what a row of each kind costs."""
    monkeypatch.setattr(SKLLMConfig, "get_price", lambda model: LONG)
    world = World(tmp_path)
    write(tmp_path / "in.parquet", [f"good <{i}>" + " word" * (400 if i % 4 == 0 else 0) for i in range(60)])
    return world


def priced(server: ChatServer) -> list[float]:
    """Return what each request cost, by hand."""
    found = []
    for received in server.received:
        n = tokens_of(received.body)
        rate = (1000.0, 1500.0) if n > 400 else (500.0, 1000.0)
        found.append((n * rate[0] + len(GOOD) // 4 * rate[1]) / 1e6)
    return found


def test_a_long_prompt_is_paid_at_its_own_price_and_set_aside_at_it(long_and_short):
    own = {"input_price": None, "output_price": None, "max_output_tokens": 10}
    with ChatServer(long_and_short.answer) as server:
        whole = long_and_short.run(server, **own)
        costs = priced(server)
        assert min(costs) * 2 < max(costs)
        assert whole.total.cost_usd == pytest.approx(sum(costs))
        server.received.clear()
        half = batch.run(api_classifier(server), long_and_short.source, str(long_and_short.folder / "half"),
                         budget_usd=sum(costs) / 2, unit_rows=4, **own)  # fmt: skip
        assert half.out_of_budget
        assert half.total.cost_usd == pytest.approx(sum(priced(server)))
        assert 0 < half.total.cost_usd <= sum(costs) / 2


def test_the_most_that_a_request_can_cost_follows_the_length_of_its_prompt(long_and_short):
    with ChatServer(long_and_short.answer) as server:
        job = batch.job_for(api_classifier(server), long_and_short.source, str(long_and_short.output), budget_usd=9.0)
    pricing = Pricing(job.plan, JobOptions(budget_usd=9.0))
    (step,), (terms,) = pricing.plan, pricing.terms()
    for n_words in (0, 1, 50, 100, 1000):
        (request,) = step.task.render(["word " * n_words])
        n_bytes = sum(len(message["content"]) for message in request.messages)
        assert terms.most_usd(request) >= max(LONG.cost_usd(n, 1024) for n in range(0, n_bytes + 1, 10))
    assert pricing.dearest == Price(1000.0, 1500.0)  # for replies that had no price yet


def test_half_a_price_keeps_what_long_prompts_cost(long_and_short):
    with ChatServer(long_and_short.answer) as server:
        where = (long_and_short.source, str(long_and_short.output))
        job = batch.job_for(api_classifier(server), *where, budget_usd=1.0, input_price=3.0)
    price = job.plan[-1].spec.price
    assert (price.input, price.output, price.long.input, price.long.output) == (3.0, 1000.0, 3.0, 1500.0)
    assert price.long_above == 400


def test_an_estimate_counts_long_prompts_at_their_price(long_and_short):
    with ChatServer(long_and_short.answer) as server:
        job = batch.job_for(api_classifier(server), long_and_short.source, str(long_and_short.output))
        told = estimate_job(job, 60)
        costs = priced(server)
    assert told.cost_usd[0] <= sum(costs) <= told.cost_usd[1]
    tokens = told.prompt_tokens
    assert told.cost_usd[1] / told.cost_usd[0] < 1.1 * tokens[1] / tokens[0]  # lengths differ, and so does their sum


def test_vectors_alone_need_no_price_of_an_answer(world):
    from skllm_ray.vectorization import GPTVectorizer

    with ChatServer() as server:
        SKLLMConfig.set_gpt_url(server.url)
        vectors = GPTVectorizer(model="custom_url::m", on_error="coerce").fit()
        done = batch.run(vectors, world.source, str(world.output), budget_usd=10.0, input_price=1.0)
    assert done.complete
    assert 0 < done.total.cost_usd <= 10


def test_the_model_that_chooses_examples_needs_a_price_too(world):
    from skllm_ray.classification import DynamicFewShotGPTClassifier
    from skllm_ray.vectorization import GPTVectorizer

    with ChatServer(world.answer) as server:
        SKLLMConfig.set_gpt_url(server.url)
        few = DynamicFewShotGPTClassifier(
            model="custom_url::m", vectorizer=GPTVectorizer(model="custom_url::v"), n_examples=1, on_error="coerce"
        ).fit(["a fine thing", "an awful thing"], LABELS)
        with pytest.raises(ConfigurationError, match="price of v, which makes vectors, is not known"):
            batch.run(few, world.source, str(world.output), budget_usd=100.0, **PRICES)
        SKLLMConfig.set_price("custom_url::v", input_per_million=1000.0, output_per_million=0.0)
        done = batch.run(few, world.source, str(world.output), budget_usd=1000.0, **PRICES)
    found = read(world.output)
    assert done.total.cost_usd == pytest.approx(found["cost_usd"].sum())  # that of the vectors among it


def test_a_stop_tells_what_was_paid_and_how_to_go_on(tmp_path):
    world = World(tmp_path, 300)
    with ChatServer(world.answer) as server:
        stopped = world.run(server, budget_usd=14, unit_rows=300)
        n = len(world.paid)
        assert 60 < n < 200
        assert stopped.rows_done == 0
        assert stopped.this_run.asked == stopped.pending.asked == n
        assert stopped.this_run.cost_usd == pytest.approx(stopped.total.cost_usd)
        assert 0 < stopped.total.cost_usd <= 14
        assert stopped.this_run.prompt_tokens == stopped.total.prompt_tokens > 0
        assert stopped.next_step.startswith("raise --budget-usd: 300 rows remain, for about ")
        needed = float(re.search(r"about ([\d.]+) USD", stopped.next_step)[1])
        done = world.run(server, budget_usd=40, unit_rows=300)
    assert (done.complete, len(world.paid)) == (True, 300)
    assert done.total.cost_usd - stopped.total.cost_usd == pytest.approx(needed, rel=0.02)


def test_a_lost_connection_is_asked_again_only_for_money_that_is_set_aside(world):
    dropped: list[int] = []

    def fault(n: int) -> Any:
        if len(dropped) < 300:
            dropped.append(n)
            return WireFault.DROP
        return None

    world.fault = fault
    with ChatServer(world.answer) as server:
        stopped = world.run(server, budget_usd=5, wait_for_server_s=1.0)
    assert stopped.total.cost_usd + stopped.unknown_usd <= 5
    assert not stopped.complete


# --- the ledger, and what it is made of ---------------------------------------------------------------------------


def test_a_new_ledger_counts_no_request_twice_and_trusts_no_grant_of_the_old_one():
    old = Ledger(budget_usd=10.0)
    assert old.reserve("unit-1 aa", [0.5] * 16).held
    assert old.confirm("unit-1 aa")
    new = Ledger(budget_usd=10.0, spent_usd=8.0)  # what was written down of the requests in flight, among it
    assert not new.confirm("unit-2 bb")
    new.settle("unit-1 aa", 1.0)
    assert new.reserve("unit-1 aa", [0.0625] * 32).n == 32
    assert new.reserve("unit-1 aa", [0.0625] * 32).n == 32  # its own reservation is not in its way


def test_a_journal_tells_the_most_that_its_requests_may_have_cost(tmp_path):
    folder = open_folder(str(tmp_path / "out"), StorageOptions(), {}).below(
        f"{worker.JOURNAL}/00000-0000000000-0000004"
    )
    journal = Journal(folder, resumes=False)
    journal.intend({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0})
    usage = Usage(prompt_tokens=3, completion_tokens=2, cost_usd=0.25)
    journal.add({"a": Reply("x", usage=usage)}, urgent=False)
    journal.settle({"b": (0.0, 0.5), "c": (0.125, 0.0)})
    journal.intend({"b": 1.0})
    journal.flush()
    state = OutputState(open_folder(str(tmp_path / "out"), StorageOptions(), {}), ())
    assert state.pending.cost_usd == 0.375
    assert state.pending.unknown_usd == 0.5 + 2.0  # b again, and d
    assert state.pending.prompt_tokens == 3
    assert state.spent_usd(Price(1.0)) == 2.875
    resumed = Journal(folder, resumes=True)
    assert resumed.before == state.pending
    assert len(resumed.resumed) == 1
    assert Journal(folder, resumes=True, settled=resumed.attempts).before.cost_usd == 0.0


def test_a_cut_through_a_journal_loses_nothing_and_counts_nothing_twice(tmp_path, monkeypatch):
    world = World(tmp_path, 100)
    world.fault = lambda n: StatusFault(401, "bad key") if len(world.paid) >= 70 else None
    with ChatServer(world.answer) as server:
        world.run(server, budget_usd=1000, unit_rows=100)
        before = world.spent()
        paid = set(world.paid)
        world.fault = lambda n: None

        def killed(self: Any, *given: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("skllm_ray.batch.job.job.OutputState.tidy", killed)
            with pytest.raises(KeyboardInterrupt):
                world.run(server, budget_usd=1000, limit=40)
        assert world.spent() == pytest.approx(before)
        cut = world.run(server, budget_usd=1000, limit=40)
        assert cut.complete
        assert world.spent() >= before
        done = world.run(server, budget_usd=1000)
    assert done.complete
    assert len(world.paid) == 100
    assert set(world.paid) >= paid
    assert done.total.cost_usd == pytest.approx(read(world.output)["cost_usd"].sum())
    assert world.spent() == pytest.approx(done.total.cost_usd)


def test_a_driver_that_dies_before_it_writes_a_retry_down_believes_the_part(world, monkeypatch):
    world.fault = lambda n: WireFault.CONTENT_FILTER
    with ChatServer(world.answer) as server:
        world.run(server)
        world.fault = lambda n: None
        with monkeypatch.context() as patch:
            patch.setattr("skllm_ray.batch.job.job.OutputState.save", lambda self, *, force=False: None)
            assert world.run(server, retry_errors=True).errors == {}
        later = world.run(server)
    assert later.errors == {}
    assert later.total.asked == 120


def test_a_part_of_another_size_than_the_log_tells_is_done_again(world):
    with ChatServer(world.answer) as server:
        world.run(server, unit_rows=30)
        parts = sorted(world.output.glob("part-*"))
        parts[0].write_bytes(b"")
        parts[1].write_bytes(parts[1].read_bytes()[:-100])
        assert world.run(server).complete
    assert len(world.paid) == 120
    assert len(read(world.output)) == 60


def test_a_damaged_log_costs_a_look_into_the_parts(world):
    with ChatServer(world.answer) as server:
        first = world.run(server, unit_rows=30)
        (log,) = (world.output / worker.SYSTEM / "done").iterdir()
        log.write_bytes(log.read_bytes()[:50] + b"\n{}\n[1]\n\xff\n")
        again = world.run(server)
    assert (again.complete, again.this_run.rows, again.total) == (True, 0, first.total)


def test_a_worker_that_is_done_twice_keeps_its_first_part(world, monkeypatch):
    """A worker may die between its part and the word about it: the unit is called again, with a journal left over."""
    calls: list[Any] = []
    whole = UnitWork.__call__

    def twice(self: UnitWork, call: Any, *given: Any) -> Any:
        monkeypatch.setattr(Journal, "close", lambda self, *, keep: None)
        first = whole(self, call, *given)
        monkeypatch.undo()
        calls.append(first)
        again = whole(self, worker.replace(call, resumes=True), *given)
        assert again == first
        return again

    monkeypatch.setattr(UnitWork, "__call__", twice)
    with ChatServer(world.answer) as server:
        done = world.run(server)
    assert len(calls) == 1
    assert (done.complete, len(world.paid)) == (True, 60)
    assert not (world.output / worker.SYSTEM / "journal" / calls[0].unit).exists()


# --- what a request may cost at most ------------------------------------------------------------------------------


def billed_usd(server: ChatServer, replies: list[str]) -> float:
    """Return what a server must be paid that counts a quarter of all characters as tokens, at 1,000 USD a million."""
    return sum(len(reply) // 4 for reply in replies) / 1000 + sum(
        len(prompt_of(one.body)) // 4 / 1000 for one in server.received
    )


def long_answers(server_limit: int | None, replies: list[str]) -> Any:
    """Return a script that writes as much as it may: as the request says, or as much as it likes."""

    def answer(body: dict[str, Any]) -> str:
        said = [body[name] for name in ("max_completion_tokens", "max_tokens", "max_output_tokens") if name in body]
        tokens = server_limit or (min(said) if said else 6000)
        replies.append(GOOD + " " * (4 * tokens - len(GOOD)))
        return replies[-1]

    return answer


@pytest.mark.parametrize(
    "options",
    [
        {"max_completion_tokens": 900},
        {"max_tokens": 900},
        {"max_output_tokens": 900},
        {"extra_body": {"max_tokens": 900}},
        {"max_completion_tokens": 900, "max_tokens": 40},
    ],
)
def test_what_the_users_own_options_allow_is_what_is_set_aside(tmp_path, options):
    world, replies = World(tmp_path, 200), list[str]()
    with ChatServer(long_answers(None, replies)) as server:
        clf = api_classifier(server, request_options=options)
        done = batch.run(clf, world.source, str(world.output), budget_usd=25.0, **PRICES)
        assert done.out_of_budget
        assert replies
        assert billed_usd(server, replies) <= 25.0


def test_a_server_that_keeps_to_no_bound_ends_the_job_after_its_first_answers(tmp_path):
    world, replies = World(tmp_path, 200), list[str]()
    with ChatServer(long_answers(6000, replies)) as server:
        stopped = batch.run(api_classifier(server), world.source, str(world.output), budget_usd=100.0, **PRICES)
        assert stopped.stopped.startswith("fatal: ")
        assert len(replies) == 1
        assert billed_usd(server, replies) <= 100.0
        assert stopped.total.cost_usd == pytest.approx(billed_usd(server, replies), rel=0.01)


def test_a_server_that_refuses_every_bound_ends_the_job_unpaid(tmp_path):
    world, replies = World(tmp_path, 200), list[str]()
    whole = long_answers(6000, replies)

    def answer(body: dict[str, Any]) -> Any:
        for name in ("max_completion_tokens", "max_tokens"):
            if name in body:
                return StatusFault(400, f"Unsupported parameter: '{name}'", "unsupported_parameter", name)
        return whole(body)

    with ChatServer(answer) as server:
        stopped = batch.run(api_classifier(server), world.source, str(world.output), budget_usd=100.0, **PRICES)
    assert stopped.stopped.startswith("fatal: ")
    assert not stopped.complete
    assert replies == []


def test_a_bound_that_is_none_is_refused_with_a_budget(world):
    with ChatServer(world.answer) as server:
        clf = api_classifier(server, request_options={"max_tokens": -1})
        with pytest.raises(ConfigurationError, match="max_tokens"):
            batch.run(clf, world.source, str(world.output), budget_usd=1.0, **PRICES)
    assert world.paid == []


NONE_OF_OURS = (
    "[" * 5000,
    '{"i": [["a", NaN]]}',
    '{"i": [["a", -5.0]]}',
    '{"i": 3}',
    '{"s": [["a", 1e999, 0.0]]}',
    '{"k": "x"}',
    '{"k": "x", "u": [1, 2, 3, -9.0], "m": "m", "a": 1, "t": "text", "l": null}',
    '{"k": "x", "u": ["1", 2, 3, 0.5], "m": "m", "a": 1, "t": "text", "l": null}',
    '{"k": "x", "u": [1, 2, 3, 0.5], "m": null, "a": 1, "t": "text", "l": null}',
    '{"k": "x", "u": [1, 2, 3, 0.5], "m": "m", "a": 1, "v": 7, "l": null}',
    "gASVHQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU",
)


def test_lines_that_are_none_of_ours_are_passed_over(world):
    world.fault = lambda n: StatusFault(401, "bad key") if len(world.paid) >= 30 else None
    with ChatServer(world.answer) as server:
        world.run(server, budget_usd=100)
        before = world.spent()
        (folder,) = (world.output / worker.JOURNAL).iterdir()
        (world.output / worker.SYSTEM / "done").mkdir(exist_ok=True)
        for number, line in enumerate(NONE_OF_OURS):
            (folder / f"00000000-{number:06}9.jsonl").write_text(f"{line}\n\x00\xff\n{line[:20]}", "latin-1")
            assert world.spent() == pytest.approx(before), line
            (world.output / worker.SYSTEM / "done" / f"x{number}.jsonl").write_text(line, "latin-1")
        world.fault = lambda n: None
        done = world.run(server, budget_usd=100)
    assert done.complete
    assert len(world.paid) == 60


def test_a_vector_that_is_none_is_passed_over(tmp_path):
    folder = open_folder(str(tmp_path), StorageOptions(), {})
    line = '{"k": "x", "u": [1, 2, 3, 0.5], "m": "m", "a": 1, "v": "no base64!", "l": null}'
    folder.write("00000000-000009.jsonl", line.encode())
    assert Journal(folder, resumes=True).resumed == {}


def test_a_part_that_was_killed_while_it_was_written_leaves_nothing(world):
    world.output.mkdir()
    torn = world.output / ".part-00000-0000000000-0000060.parquet.0a1b2c3d.tmp"
    torn.write_bytes(b"PAR1 torn")
    with ChatServer(world.answer) as server:
        assert world.run(server).complete
    assert not torn.exists()
    assert len(read(world.output)) == 60


def test_a_part_that_tells_impossible_costs_is_done_again(world):
    with ChatServer(world.answer) as server:
        world.run(server)
        (part,) = world.output.glob("part-*")
        table = pq.read_table(part)
        told = json.loads(table.schema.metadata[b"skllm_ray"])
        for name, value in (("cost_usd", float("nan")), ("unknown_usd", -5.0), ("rows", "many"), ("errors", [1])):
            odd = {b"skllm_ray": json.dumps({**told, name: value}).encode()}
            pq.write_table(table.replace_schema_metadata(odd), part)
            for log in (world.output / worker.SYSTEM / "done").iterdir():
                log.unlink()
            assert world.run(server).complete
    assert len(world.paid) == 60 * 5


def test_a_journal_that_is_split_among_units_is_paid_for_once(tmp_path):
    whole, *parts = (Folder(pafs.LocalFileSystem(), str(tmp_path / name)) for name in ("whole", "one", "other"))
    answers = [Reply("good", usage=Usage(10, 2, cost_usd=cost), model="m") for cost in (0.5, 0.25)]
    write_segment(whole, "run", 1, [answer_line(digest(str(n)), reply) for n, reply in enumerate(answers)])
    write_segment(whole, "run", 2, [intent_line({digest("lost"): 2.0})])
    before = paid(whole)["run"]
    assert (before.asked, before.cost_usd, before.unknown_usd) == (2, 0.75, 2.0)
    split(whole, parts)
    bills = [paid(part).get("run", Progress()) for part in parts]
    assert bills[0] == before
    assert (bills[1].asked, bills[1].cost_usd, bills[1].unknown_usd) == (0, 0.0, 0.0)
