"""The last units of a job: cut smaller where a local model has many replicas, moved where a node is about to go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.job import driver, worker
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution import unit_tasks
from skllm_ray.execution.unit_runner import UnitRunner
from skllm_ray.execution.unit_tasks import Moved, UnitTasks
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.testing import ChatServer
from tests.batch.worlds import api_classifier, asked, classifier, read, texts, write


class Elastic(UnitRunner):
    """A runner that works here, as if a local model had replicas for four units at once."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.is_elastic, self.n_tasks = True, 4


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch):
    SKLLMConfig.reset()
    skllm_ray.init(local_mode=True)
    asked.clear()
    ModelCache.clear()
    monkeypatch.setattr(driver, "UnitRunner", Elastic)
    yield
    ModelCache.clear()
    skllm_ray.shutdown()
    SKLLMConfig.reset()


@pytest.mark.parametrize("row_group_size", [100, 2000])
def test_the_last_units_are_cut_and_every_row_is_asked_once(tmp_path, row_group_size):
    source = write(tmp_path / "in.parquet", texts(2000), row_group_size)
    result = batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=500)
    assert result.complete
    assert read(tmp_path / "out")["id"].tolist() == list(range(2000))
    assert set(asked.values()) == {1}
    sizes = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out").glob("part-*"))]
    assert sizes[0] == 500
    assert sizes[1] > sizes[-1] >= 32
    batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=500)
    assert asked.total() == 2000  # the parts are known by the manifest's cuts


def test_a_job_that_stops_with_units_that_were_cut_goes_on_and_asks_nothing_twice(tmp_path):
    source = write(tmp_path / "in.parquet", texts(2000), 2000)
    first = batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=500, limit=700)
    assert first.rows_done == 700
    for part in sorted((tmp_path / "out").glob("part-*"))[-2:]:
        part.unlink()
    result = batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=500)
    assert result.complete
    assert read(tmp_path / "out")["id"].tolist() == list(range(2000))
    assert asked.total() <= 2000 + 500


def test_a_unit_whose_node_is_about_to_go_keeps_what_it_has_and_goes_on_elsewhere(tmp_path, monkeypatch):
    """The node drains after the first block: a unit stops before the next, and begins again from its journal."""
    monkeypatch.setattr(worker, "this_node_is_draining", lambda: 128 <= asked.total() < 130)
    source = write(tmp_path / "in.parquet", texts(400), 400)
    moved: list[Any] = []

    class Runner(Elastic):
        def _run_here(self, units, shared):
            for unit, result in super()._run_here(units, shared):
                if isinstance(result, Moved):
                    moved.append(unit)
                    asked["elsewhere"] += 2
                    units.appendleft(driver.replace(unit, resumes=True))
                else:
                    yield unit, result

    monkeypatch.setattr(driver, "UnitRunner", Runner)
    result = batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=400)
    assert result.complete and len(moved) == 1
    assert read(tmp_path / "out")["id"].tolist() == list(range(400))
    assert {n for text, n in asked.items() if text != "elsewhere"} == {1}


@dataclass(frozen=True)
class Unit:
    key: str


def test_a_moved_unit_is_done_again_without_counting_as_a_death(monkeypatch):
    results = [[Moved(), "done"]] + [[Moved()]] * 5 + [["done"]]
    monkeypatch.setattr(unit_tasks, "_results", lambda reference, n: results.pop(0))
    tasks = UnitTasks(lambda batch, shared: object(), None, 1)
    waiting: deque[Any] = deque([Unit("a"), Unit("b")])
    tasks._pace.n_units = lambda n_waiting, n_tasks: 2
    found = []
    while waiting or tasks.running:
        tasks.start(waiting)
        (reference,) = tasks.running
        found += list(tasks.results(reference, waiting, lambda unit: unit))
    assert found == [(Unit("b"), "done"), (Unit("a"), "done")]


def test_a_unit_that_is_moved_before_its_requests_are_sent_has_spent_nothing_on_them(tmp_path, monkeypatch):
    """What was set aside for them is given back: neither the budget nor the costs count it."""
    drained = iter([*[False] * 4, True])  # the last one just before the second request, whose money is set aside

    class Runner(Elastic):
        def _run_here(self, units, shared):
            for unit, result in super()._run_here(units, shared):
                if isinstance(result, Moved):
                    shared.tell("forget", unit.key)
                    units.appendleft(driver.replace(unit, resumes=True))
                else:
                    yield unit, result

    monkeypatch.setattr(driver, "UnitRunner", Runner)
    monkeypatch.setattr(worker, "this_node_is_draining", lambda: next(drained, False))
    source = write(tmp_path / "in.parquet", texts(60))
    with ChatServer(lambda body: '{"label": "good"}') as server:
        options: Any = {"input_price": 1.0, "output_price": 1.0, "max_output_tokens": 10, "budget_usd": 5.0}
        result = batch.run(api_classifier(server), source, str(tmp_path / "out"), **options)
    assert next(drained, None) is None
    assert result.complete and server.n_requests == 60
    assert (result.unknown_usd, result.total.unknown_usd) == (0.0, 0.0)
