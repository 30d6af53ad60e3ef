"""Blocks that threads of one process hand out: all rows once, errors and warnings where the call was made."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from skllm_ray.errors import ModelLoadError, SkllmRayWarning, warn
from skllm_ray.execution import dataset
from skllm_ray.execution.plan import Block, Step
from skllm_ray.execution.threads import through_threads
from skllm_ray.llm.api.capabilities import known
from skllm_ray.llm.base import Backend
from skllm_ray.llm.cancellation import Call
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError
from skllm_ray.tasks.classification import ZeroShotTask
from skllm_ray.testing import FakeSpec


def test_every_row_comes_once_and_no_more_blocks_than_threads_run_at_once() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def process(places: range) -> list[Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return [f"row {place}" for place in places]

    found = Counter()
    for places, rows in through_threads(5000, 4, process, pytest.fail):
        found.update(zip(places, rows, strict=True))
    assert found == Counter((place, f"row {place}") for place in range(5000))
    assert most <= 4


def test_what_goes_wrong_is_raised_to_the_caller_and_nothing_more_is_begun() -> None:
    asked: list[range] = []
    ended: list[RowError] = []

    def process(places: range) -> list[Any]:
        asked.append(places)
        raise ModelLoadError("the file is gone")

    with pytest.raises(ModelLoadError, match="the file is gone"):
        list(through_threads(50_000, 2, process, ended.append))
    assert [error.kind for error in ended] == ["cancelled"]
    assert len(asked) <= 4  # of two hundred


def test_who_stops_waiting_ends_the_call() -> None:
    ended: list[RowError] = []
    blocks = through_threads(50_000, 2, lambda places: [None] * len(places), ended.append)
    next(blocks)
    blocks.close()
    assert len(ended) == 1


def test_warnings_come_once_and_in_the_callers_thread() -> None:
    told: list[str] = []

    def process(places: range) -> list[Any]:
        warn("The text was cut.")
        return [None] * len(places)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SkllmRayWarning)
        warnings.showwarning = lambda message, *_: told.append(f"{threading.current_thread().name}: {message}")
        list(through_threads(2000, 4, process, pytest.fail))
    assert told == ["MainThread: The text was cut."]


class Pool(Backend):
    """What stands for a model's actors."""

    n_replicas = 2
    spec = FakeSpec(str)

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        return [Reply('{"label": "good"}') for _ in requests]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def test_a_call_of_local_models_alone_asks_them_from_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset.Connected, "in_flight", 4)
    step: Any = Step(ZeroShotTask(("good", "bad")), Pool.spec)
    pool: Any = Pool()
    work = dataset.Connected((step,), (pool,), known(), Call("a call"))
    found = {}
    for places, rows in dataset._blocks(Block([f"text {i}" for i in range(3000)], range(3000)), work):
        found |= dict(zip(places, rows, strict=True))
    assert sorted(found) == list(range(3000))
    assert {row.value for row in found.values()} == {"good"}
