"""The pool's book-keeping and what its callers do, with stand-ins for Ray's actors."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError

from skllm_ray.errors import ClusterError, ModelLoadError
from skllm_ray.execution import model_pool, placement, pool_actor, pool_state
from skllm_ray.execution.arrivals import Arrival
from skllm_ray.execution.last_words import Place
from skllm_ray.execution.model_actor import ReplicaInfo
from skllm_ray.execution.pool_actor import PoolActor
from skllm_ray.llm.base import Placement
from tests.execution.stateful import PlainSpec

INFO = ReplicaInfo(1, "node", 0.0, 1, 100.0)


class Pool(PoolActor):
    """A pool whose models load at once, as long as `error` is None."""

    error: Exception | None = None

    def _ask(self, model, n, at_least):
        self._submit(model, self._load, model, [], at_least)

    def _start(self, model, n, avoided=frozenset()):
        return []

    def _replace(self, model, place, arrivals):
        self._load(model, [], 1)

    def _load(self, model, arrivals, at_least):
        if self.error is not None:
            raise self.error
        model.replicas[next(self._numbers)] = pool_state.Replica(object(), INFO)
        model.is_ready = True

    def _keep_balance(self) -> None:
        pass

    def wait(self) -> None:
        """Wait until what loads has loaded."""
        for load in self._models["test"].loads:
            load.exception()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(pool_actor.ray, "kill", lambda actor: None)
    monkeypatch.setattr(placement, "_nodes", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(placement.ray, "available_resources", lambda: {"CPU": 2.0})
    made = Pool()
    made.open(PlainSpec())
    made.wait()
    return made


def test_an_unknown_model_and_one_that_was_cleared_differ(pool: Pool) -> None:
    assert pool.take("other", 1) is None
    assert len(pool.close("test")) == 1
    with pytest.raises(ClusterError, match="was unloaded while it was in use"):
        pool.take("test", 1)
    assert pool.look("test") is None
    pool.open(PlainSpec())
    pool.wait()
    assert [rows for *_, rows in pool.take("test", 256) or []] == [256]


def test_a_replacement_that_cannot_load_is_an_error_and_the_next_call_tries_again(pool: Pool) -> None:
    pool.error = ModelLoadError("the file is gone")
    ((number, *_),) = pool.take("test", 1) or []
    pool.report_death("test", number)
    pool.wait()
    for _ in range(2):  # each of those that wait
        with pytest.raises(ModelLoadError, match="the file is gone"):
            pool.take("test", 1)
    assert pool.look("test") is None
    pool.error = None
    opened = pool.open(PlainSpec())
    pool.wait()
    assert pool.open(PlainSpec(), opened.number).n_replicas == 1


def test_who_waits_for_a_load_that_fails_gets_its_error(pool: Pool) -> None:
    pool.error = ModelLoadError("damaged")
    number = pool.open(PlainSpec(key="new")).number
    for load in pool._models["new"].loads:
        load.exception()
    with pytest.raises(ModelLoadError, match="damaged"):
        pool.open(PlainSpec(key="new"), number)


def test_a_model_that_only_dies_is_given_up(pool: Pool) -> None:
    for deaths in range(1, pool_actor._MOST_DEATHS + 1):
        ((number, *_),) = pool.take("test", 1) or []
        pool.report_death("test", number)
        pool.report_death("test", number)  # the other call that was in flight
        pool.wait()
        if deaths == 5:
            pool.give_back("test", [], answered=True)
    for _ in range(5):
        ((number, *_),) = pool.take("test", 1) or []
        pool.report_death("test", number)
        pool.wait()
    with pytest.raises(ClusterError, match="died 40 times in a row without an answer"):
        pool.take("test", 1)


def test_a_model_that_dies_of_every_request_is_given_up_with_its_last_words(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_actor, "words_of", lambda place: "GGML_ASSERT(x) failed")
    tried: list[int] = []

    def replace_it(model: Any, place: Any, arrivals: Any) -> None:
        tried.append(model.deaths)
        PoolActor._load(pool, model, [], 1)

    def attempt(model: Any, arrivals: Any, at_least: int, timeout_s: Any = None) -> Any:
        if model.deaths >= pool_actor._DOUBTS:  # it is asked a trivial request, and dies of that as well
            return [(Place("node"), ActorDiedError())]
        model.replicas[next(pool._numbers)] = pool_state.Replica(object(), INFO)
        return []

    monkeypatch.setattr(pool, "_replace", replace_it)
    monkeypatch.setattr(pool, "_try", attempt)
    monkeypatch.setattr(pool_actor, "nodes_to_avoid", lambda share, nodes: frozenset())
    for _ in range(pool_actor._DOUBTS):
        ((number, *_),) = pool.take("test", 1) or []
        pool.report_death("test", number)
        pool.wait()
    with pytest.raises(ModelLoadError, match=r"Its last words: GGML_ASSERT\(x\) failed"):
        pool.take("test", 1)
    assert tried == [1, 2, 3]


class Remote:
    """A method of an actor's handle."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def options(self, **options: Any) -> Remote:
        return self

    def remote(self, *args: Any) -> Any:
        return lambda: self._answer(*args)


class Handle:
    """An actor that dies, of what it is told to, at each of its first `deaths` calls."""

    def __init__(self, error: Exception, deaths: int) -> None:
        self.error, self.deaths = error, deaths
        self.admit = Remote(lambda: 1)
        self.call = Remote(self._call)
        self.call_admitted = Remote(lambda number, verb, items: self._call(verb, items))

    def _call(self, verb: str, items: list[str]) -> list[str]:
        self.deaths -= 1
        if self.deaths >= 0:
            raise self.error
        return items


@pytest.mark.parametrize("error", [OutOfMemoryError("killed"), ActorDiedError(), NodeDiedError("lost")])
def test_whatever_ends_an_actor_its_items_are_asked_again(
    pool: Pool, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Handle(error, deaths=2)
    monkeypatch.setattr(model_pool, "ask_pool", lambda owner, method, *args: answer(pool, method, args, handle))
    monkeypatch.setattr(model_pool.PooledBackend, "_give_back", lambda *args: None)
    monkeypatch.setattr(model_pool.ray, "get", lambda reference: reference())
    backend: Any = model_pool.PooledBackend(PlainSpec(), 1, "job")
    assert backend.complete(["a", "b", "c"]) == ["a", "b", "c"]
    handle.deaths = 3
    (reply,) = backend.complete(["alone"])
    assert (reply.error.kind, reply.attempts) == ("model_crashed", 3)
    assert handle.deaths == 0


def answer(pool: Pool, method: str, args: tuple[Any, ...], handle: Handle) -> Any:
    found = getattr(pool, method)(*args)
    pool.wait()
    return [(number, handle, rows) for number, _, rows in found] if method == "take" else found


def test_an_error_that_an_actor_raises_is_no_death() -> None:
    assert not issubclass(RayTaskError, pool_actor.DIED)


@pytest.mark.parametrize(
    ("num_cpus", "cpus", "threads"), [(None, 3.0, 4), (2, 2.0, 2), (4, 4.0, 4), (0, 0.0, 1), (0.5, 0.5, 1)]
)
def test_threads_are_the_cpus_that_were_asked_for(monkeypatch, num_cpus, cpus, threads) -> None:
    monkeypatch.setattr(placement, "_nodes", lambda: [{"CPU": 2.0}, {"CPU": 4.0}])
    share = placement.share_of(Placement(num_cpus=num_cpus))
    assert (share.num_cpus, share.threads) == (cpus, threads)


def test_more_replicas_where_the_cluster_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"CPU": 3.0}
    monkeypatch.setattr(placement, "_nodes", lambda: [{"CPU": 2.0}] * 2)
    monkeypatch.setattr(placement.ray, "available_resources", lambda: free)
    asked = Placement(num_cpus=1, min_replicas=1, max_replicas=4)
    share = placement.share_of(asked)
    assert [placement.replicas_to_add(asked, share, held) for held in (0, 2, 4)] == [3, 2, 0]
    assert placement.replicas_to_add(replace(asked, max_replicas=None), share) == 2  # one for each node
    free.clear()
    assert [placement.replicas_to_add(asked, share, held) for held in (0, 1)] == [1, 0]


def test_a_replica_that_died_is_replaced_once_whoever_looks_meanwhile(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the dead process said is read first, which takes time; it counts as on its way from the beginning."""
    model = pool._models["test"]
    monkeypatch.setattr(pool_actor, "start", lambda *_: Arrival(object()))
    monkeypatch.setattr("skllm_ray.execution.pool_scaling.patience_s", lambda *_: 60.0)
    monkeypatch.setattr(pool, "_start", lambda *given: PoolActor._start(pool, *given))
    reading = threading.Event()
    monkeypatch.setattr(pool, "_replace", lambda *_: reading.wait(10))
    (number,) = model.replicas
    pool.report_death("test", number)
    pool._balance.step([model], time.monotonic())
    assert len(model.arrivals) == 1
    reading.set()


def test_who_has_a_higher_priority_is_served_first_and_nobody_waits_for_ever(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(pool_actor.time, "monotonic", lambda: now[0])
    taken = [pool.take("test", 256, f"first-{n}") for n in range(2)]
    assert pool.take("test", 256, "low") == pool.take("test", 256, "high", priority=1) == []
    for one in taken:
        pool.give_back("test", [(number, rows) for number, _, rows in one or []], answered=True)
    assert pool.take("test", 256, "low") == []  # though there is room: the other asks again soon
    assert pool.take("test", 256, "high", priority=1)
    assert pool.take("test", 256, "low")
    assert pool.take("test", 256, "low again") == []
    pool.give_back("test", [(next(iter(pool._models["test"].replicas)), 256)], answered=True)
    for _ in range(60):
        now[0] += 1
        pool._models["test"].callers.wait("others, one after the other", 1, now[0])
        assert pool.take("test", 256, "low again") == []
    now[0] += 1
    pool._models["test"].callers.wait("others, one after the other", 1, now[0])
    assert pool.take("test", 256, "low again")
