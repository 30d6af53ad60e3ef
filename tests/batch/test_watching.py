"""Watchers of a job's batches, in this process: what they do when no driver runs, and how one takes their place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skllm_ray import batch
from skllm_ray.batch.job import watching
from skllm_ray.batch.job.locked_run import LockedRun
from skllm_ray.batch.job.watching import BatchWatcher
from skllm_ray.config import Secret, SKLLMConfig
from skllm_ray.errors import AmbiguousSubmission, OutputInUseError
from skllm_ray.execution.secrets import Sealed
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.execution.watcher import as_pieces, from_pieces
from skllm_ray.testing.batch_server import BatchFault
from tests.batch.delivery_worlds import PRICES, Death, World, die_at


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAUSES", Polling(0.05, 1.0, 0.05, 0.0))


@pytest.fixture
def watch(world: World) -> Callable[[], Watched]:
    return lambda: Watched("w", *as_pieces(run_of(world)))


class Watched(BatchWatcher):
    """A watcher that tells when it has gone."""

    def __init__(self, *given: Any) -> None:
        self.is_over = threading.Event()
        super().__init__(*given)

    def _end(self) -> None:
        self.is_over.set()


def run_of(world: World, **options: Any) -> LockedRun:
    given = {"delivery": "batch", "unit_rows": 20, **PRICES, **options}
    job = batch.job_for(world.classifier(), world.source, world.output, **given)
    return job._locked_run(job.manifest())


def until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def dies(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(Death):
            world.run()


@pytest.mark.parametrize("step", ["drafted", "recorded", "line"])
def test_a_watcher_does_the_rest_and_the_next_run_pays_nothing(world, watch, monkeypatch, step):
    dies(world, monkeypatch, step)
    assert watch().is_over.wait(60)
    world.check_home()
    assert len(world.server.batches) == 1
    asked = world.server.bill.requests.copy()
    assert world.run().complete
    assert world.server.bill.requests == asked


def test_a_watcher_that_dies_is_gone_on_from(world, watch, monkeypatch):
    dies(world, monkeypatch, "recorded")
    with monkeypatch.context() as patch:
        die_at(patch, "line")
        with pytest.raises(Death):
            run_of(world).again({})
    assert watch().is_over.wait(60)
    world.check_home()
    assert len(world.server.batches) == 1


def test_a_driver_is_left_alone_and_a_watcher_makes_room_for_it(world, watch, monkeypatch):
    world.server.batch_faults.append(BatchFault.STUCK)
    dies(world, monkeypatch, "recorded")
    (one,) = world.server.batches.values()
    watcher = watch()
    until(lambda: one.status == "in_progress")
    with pytest.raises(OutputInUseError, match="the watcher of its batches, process"):
        world.run()
    watcher.stand_back()
    one.fault = None
    assert world.run().complete
    world.check_home()
    assert not watcher.is_over.is_set()  # it looks again when its minute is over


def test_a_watcher_ends_where_a_person_is_needed(world, watch, monkeypatch):
    dies(world, monkeypatch, "posting")
    assert watch().is_over.wait(60)
    with pytest.raises(AmbiguousSubmission):
        world.run()
    assert not world.server.batches


def test_cancelling_all_batches_ends_the_watcher_and_the_next_run_goes_on(world, watch, monkeypatch):
    world.server.batch_faults.append(BatchFault.STUCK)
    dies(world, monkeypatch, "recorded")
    (one,) = world.server.batches.values()
    watcher = watch()
    until(lambda: one.status == "in_progress")
    batch.cancel_batches(world.output)
    assert watcher.is_over.wait(60)
    assert len(world.server.batches) == 1
    assert world.run().complete
    world.check_home()
    assert len(world.server.batches) == 2


def test_a_watcher_leaves_another_job_on_its_output_alone(world, watch, monkeypatch):
    dies(world, monkeypatch, "recorded")
    run = run_of(world)
    (Path(world.output) / "_skllm_ray" / "manifest.json").unlink()
    assert run.again({}).progress.asked == 0
    assert not list(Path(world.output).glob("part-*"))


def test_what_travels_to_a_watcher_holds_no_key_and_it_is_given_one(world, watch, monkeypatch):
    SKLLMConfig.set_openai_key("sk-secret-123456")
    dies(world, monkeypatch, "recorded")
    pieces = as_pieces(run_of(world))
    assert b"sk-secret" not in b"".join(pieces)
    assert from_pieces(pieces).work.manifest.created
    watcher = watch()
    watcher.wake(Sealed([Secret("sk-secret-123456")]))
    assert watcher.is_over.wait(60)
    world.check_home()
