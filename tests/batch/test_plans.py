"""A plan of two models with their own prices and limits: in a call, in a job with a budget, in an estimate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.batch.tools.estimate import estimate_job
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, OutputMismatchError
from skllm_ray.execution.plan import Plan, Unsure
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.tasks.prior import LabelPrior
from skllm_ray.testing import ChatServer, StatusFault, WireFault
from tests.batch.plans import FAST, STRONG, Cascade, World, configure, expected, sure_of_good, texts
from tests.batch.worlds import read, write

ROOT = Path(__file__).parents[2]
N = 1600
OPTIONS: dict[str, Any] = {"unit_rows": 40, "max_output_tokens": 16}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("skllm_ray.batch.job.journalled_backend._PAUSES_S", (0.0,))
    skllm_ray.init(local_mode=True)
    yield
    ModelCache.clear()
    skllm_ray.shutdown()


def test_a_call_asks_both_models_and_adds_up_what_they_cost():
    world = World()
    with ChatServer(world.answer) as server:
        clf = configure(server)
        details = clf.predict_details(texts(40))
        assert details["prediction"].tolist() == [expected(i)[0] for i in range(40)]
        assert details["cost_usd"].sum() == pytest.approx(world.bill())
        assert (world.n("fast"), world.n("strong")) == (40, 11)
        _, rows, _ = clf._run([*texts(3), None, "a thing <4>"], "coerce")
    assert [row.stage for row in rows] == ["strong", "fast", "fast", "", "strong"]
    assert [row.replaced and row.replaced.value for row in rows] == ["bad", None, None, None, "bad"]


def test_a_sample_is_of_positions_in_the_input_whatever_has_no_text():
    world = World()
    with ChatServer(world.answer) as server:
        _, rows, _ = configure(server)._run(["a thing <1>", None, None, "a thing <2>", "a thing <5>"], "coerce")
    assert [row.stage for row in rows] == ["fast", "", "", "sample", "fast"]


def test_a_wrong_key_of_the_fast_model_is_not_answered_by_the_strong_one():
    world = World()
    world.fault = lambda model, n: StatusFault(401, "bad key") if model == "fast" else None
    with ChatServer(world.answer) as server:
        clf = configure(server)
        with pytest.raises(Exception, match="bad key"):
            clf.predict(texts(4))
    assert world.n("strong") == 0


def test_a_job_writes_the_same_and_knows_both_prices(tmp_path):
    world = World()
    source = write(tmp_path / "in.parquet", texts(300))
    with ChatServer(world.answer) as server:
        result = batch.run(configure(server), source, str(tmp_path / "out"), unit_rows=100, budget_usd=1000.0)
    found = read(tmp_path / "out")
    assert (result.complete, result.errors) == (True, {})
    assert found["prediction"].tolist() == [expected(i)[0] for i in range(300)]
    assert (world.n("fast"), world.n("strong")) == (300, 76)  # one of the sample, the others unsure
    assert max(world.asked.values()) == 1
    assert result.total.cost_usd == pytest.approx(world.bill())
    assert found["cost_usd"].sum() == pytest.approx(world.bill())
    assert (result.total.asked, result.total.rows, result.total.unknown_usd) == (376, 300, 0.0)


def test_each_model_keeps_to_its_own_limit(tmp_path):
    world = World(latency_s=0.02)
    source = write(tmp_path / "in.parquet", texts(160))
    with ChatServer(world.answer) as server:
        clf = configure(server)
        clf.predict(texts(160))
        assert 4 < world.most["fast"] <= 8
        assert 1 < world.most["strong"] <= 4
        world.most.clear()
        batch.run(clf, source, str(tmp_path / "out"), unit_rows=100)
        assert 4 < world.most["fast"] <= 8
        assert 1 < world.most["strong"] <= 4


def test_a_strong_model_that_fails_is_an_error_of_its_rows_and_is_asked_again(tmp_path):
    world = World()
    world.fault = lambda model, n: StatusFault(400, "nope") if model == "strong" and n == 8 else None
    source = write(tmp_path / "in.parquet", texts(40))
    with ChatServer(world.answer) as server:
        first = batch.run(configure(server), source, str(tmp_path / "out"))
        assert first.errors == {"bad_request": 1}
        assert first.total.rows == 40
        world.fault = lambda model, n: None
        second = batch.run(configure(server), source, str(tmp_path / "out"), retry_errors=True)
    assert second.errors == {}
    assert read(tmp_path / "out")["prediction"].tolist() == [expected(i)[0] for i in range(40)]


def test_a_fast_model_that_fails_makes_no_job_in_vain(tmp_path):
    world = World()
    world.fault = lambda model, n: WireFault.CONTENT_FILTER if model == "fast" else None
    source = write(tmp_path / "in.parquet", texts(400))
    with ChatServer(world.answer) as server:
        result = batch.run(configure(server), source, str(tmp_path / "out"), unit_rows=100)
    assert (result.complete, result.errors, result.in_vain) == (True, {}, False)
    assert world.n("strong") == 400


SCRIPT = """
import sys, skllm_ray
from skllm_ray import batch
from types import SimpleNamespace
from tests.batch.plans import configure
skllm_ray.init(local_mode=True)
url, source, output, budget = sys.argv[1:]
clf = configure(SimpleNamespace(url=url))
batch.run(clf, source, output, unit_rows=40, budget_usd=float(budget), max_output_tokens=16)
"""


def kill_after(n: int, world: World, server: ChatServer, *where: str) -> None:
    """Run a job in a process of its own, and kill that after the strong model's n-th answer."""
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url, *where], cwd=ROOT)
    world.fault = lambda model, i: child.kill() if model == "strong" and world.n("strong") >= n else None
    child.wait(60)
    world.fault = lambda model, i: None


@pytest.mark.deep
def test_a_budget_holds_through_kills_and_nothing_that_was_told_is_paid_for_again(tmp_path):
    world = World()
    source, output = write(tmp_path / "in.parquet", texts(N)), str(tmp_path / "out")
    with ChatServer(world.answer, latency_s=0.01) as server:
        clf = configure(server)
        kill_after(20, world, server, source, output, "1000")
        before = dict(world.asked)
        assert sum(before.values()) < 600
        state = OutputState(open_folder(output, StorageOptions(), {}), ())
        assert state.spent_usd(None) >= world.bill() * (1 - 1e-9)  # what is not known to be unspent is spent
        result = batch.run(clf, source, output, budget_usd=1000.0, **OPTIONS)
        assert (result.complete, result.errors) == (True, {})
        assert read(output)["prediction"].tolist() == [expected(i)[0] for i in range(N)]
        twice = {place: count for place, count in world.asked.items() if count > 1}
        assert len(twice) <= 64 + 12  # what was in flight, and one segment of the journal
        assert result.total.cost_usd + result.total.unknown_usd >= world.bill() * (1 - 1e-9)
        cost, world.asked, world.tokens = world.bill(), type(world.asked)(), type(world.tokens)()
        half = str(tmp_path / "half")
        kill_after(20, world, server, source, half, str(cost / 2))
        for _ in range(2):
            stopped = batch.run(clf, source, half, budget_usd=cost / 2, **OPTIONS)
    assert stopped.out_of_budget
    assert 0.15 * cost < world.bill() <= cost / 2  # what the kill left open counts as spent


@pytest.mark.parametrize("model", [FAST, STRONG])
def test_a_budget_needs_the_price_of_each_model(tmp_path, model):
    source = write(tmp_path / "in.parquet", texts(4))
    with ChatServer(World().answer) as server:
        clf = configure(server)
        prices = SKLLMConfig._settings.prices
        SKLLMConfig.reset()
        SKLLMConfig.set_gpt_url(server.url)
        for name, price in dict(prices).items():
            if name != model:
                SKLLMConfig.set_price(name, input_per_million=price.input, output_per_million=price.output)
        with pytest.raises(ConfigurationError, match=f"price of {model.rpartition(':')[2]}.* is not known"):
            batch.run(clf, source, str(tmp_path / "out"), budget_usd=1.0)
        assert server.n_requests == 0


def test_an_output_is_of_one_plan(tmp_path):
    source = write(tmp_path / "in.parquet", texts(20))
    with ChatServer(World().answer) as server:
        clf: Any = configure(server)
        batch.run(clf, source, str(tmp_path / "out"), limit=10)
        clf.takes = (Unsure(0.9, score=sure_of_good),)
        with pytest.raises(OutputMismatchError, match="another question"):
            batch.run(clf, source, str(tmp_path / "out"))


@pytest.mark.deep
def test_an_estimate_knows_both_models(tmp_path):
    world = World()
    source = write(tmp_path / "in.parquet", texts(2000))
    with ChatServer(world.answer) as server:
        clf = configure(server)
        free = estimate_job(batch.job_for(clf, source, str(tmp_path / "out")))
        assert server.n_requests == 0
        assert (free.fewest_requests, free.requests) == (2000, 4000)
        told = estimate_job(batch.job_for(clf, source, str(tmp_path / "out")), sample=200)
        world.tokens.clear()
        used = batch.run(clf, source, str(tmp_path / "out"))
    assert free.cost_usd[0] < used.total.cost_usd < free.cost_usd[1]
    assert told.fewest_requests <= 2501 <= told.requests
    assert told.cost_usd[0] <= used.total.cost_usd <= told.cost_usd[1]
    assert told.cost_usd[1] < 2 * told.cost_usd[0]
    assert used.total.cost_usd == pytest.approx(world.bill())
    assert told.sample_rows == 200


def test_an_estimate_lasts_as_long_as_the_slower_limit_wants(tmp_path):
    source = write(tmp_path / "in.parquet", texts(2000))
    with ChatServer(World().answer) as server:
        clf = configure(server)
        SKLLMConfig.set_rate_limit(FAST, requests_per_minute=1000)
        SKLLMConfig.set_rate_limit(STRONG, requests_per_minute=60_000)
        slow_fast = estimate_job(batch.job_for(clf, source, str(tmp_path / "out")))
        SKLLMConfig.set_rate_limit(FAST, requests_per_minute=60_000)
        SKLLMConfig.set_rate_limit(STRONG, requests_per_minute=500)
        slow_strong = estimate_job(batch.job_for(clf, source, str(tmp_path / "out")))
    assert (slow_fast.seconds, slow_fast.limited_by) == ((120.0, 120.0), "1,000 requests/min")
    assert (slow_strong.seconds, slow_strong.limited_by) == ((0.0, 240.0), "500 requests/min")


class WithPriors(Cascade):
    """Takes the labels' prior out of the answers of some of its models."""

    priors: tuple[int, ...] = (0,)

    def _plan(self, spec: Any) -> Plan:
        plan = super()._plan(spec)
        prior = LabelPrior(("N/A", "nothing"))
        return tuple(
            replace(step, task=replace(step.task, prior=prior)) if n in self.priors else step  # type: ignore[type-var]
            for n, step in enumerate(plan)
        )


def test_the_labels_prior_may_be_that_of_the_fast_model(tmp_path):
    world = World()
    source = write(tmp_path / "in.parquet", texts(20))
    with ChatServer(world.answer) as server:
        configure(server)
        clf = WithPriors(model=STRONG, on_error="coerce").fit(None, ["bad", "good"])
        told = estimate_job(batch.job_for(clf, source, str(tmp_path / "out")))
        result = batch.run(clf, source, str(tmp_path / "out"), budget_usd=1000.0)
        assert (result.complete, result.errors) == (True, {})
        assert {place for place in world.asked if place[1] > 1_000_000} == {("fast", 1_000_001)}
        assert world.asked["fast", 1_000_001] == 2
        assert (told.fewest_requests, told.requests) == (22, 42)
        assert result.total.cost_usd == pytest.approx(world.bill())
        n_asked = server.n_requests
        clf.priors = (0, 1)
        with pytest.raises(ConfigurationError, match="label_prior is set for two models"):
            batch.run(clf, source, str(tmp_path / "two"))
        assert server.n_requests == n_asked
