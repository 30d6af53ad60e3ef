"""A pool whose cluster brings nodes late, drains and takes them: simulated, with a clock of its own."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import pytest

from skllm_ray.errors import PlacementError
from skllm_ray.execution import placement
from skllm_ray.execution.arrivals import Arrival
from skllm_ray.execution.last_words import Place
from skllm_ray.execution.placement import Share
from skllm_ray.execution.pool_scaling import MOST_MODELS, Balance, Cluster
from skllm_ray.execution.pool_state import Model, Replica, standing
from skllm_ray.execution.scaling import Claim, giver
from skllm_ray.llm.base import Placement
from tests.execution.stateful import PlainSpec
from tests.execution.test_model_pool import INFO


class Clouds(Cluster):
    """A cluster of the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.autoscales, self.free, self.free_cpus, self.n_nodes = True, 0, 0, 1

    def look(self) -> None:
        pass

    def room(self, share: Share) -> int:
        return self.free

    def room_beside(self, asked: Placement) -> int:
        return self.free_cpus

    def most(self, asked: Placement) -> int:
        return asked.max_replicas or max(asked.min_replicas, self.n_nodes)

    def patience_s(self, asked: Placement) -> float:
        return 1200.0


@dataclass
class Simulation:
    """Some models of one pool, their cluster, and the time."""

    clouds: Clouds = field(default_factory=Clouds)
    now: float = 1000.0
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.balance = Balance(self.clouds, self._ask, self._ask_beside)
        self.models: list[Model] = []

    def add(self, key: str = "m", **bounds: int | None) -> Model:
        """Open a model."""
        asked = Placement(num_cpus=0, num_gpus=1, **bounds)  # type: ignore[arg-type]
        self.models.append(Model(PlainSpec(key=key, placement=asked), Share(0, 1, 1), 1))
        return self.models[-1]

    def _ask(self, model: Model, n: int, at_least: int) -> None:
        self.asked.append((model.spec.key, n, at_least))
        model.arrivals += [Arrival(object(), self.now) for _ in range(n)]
        model.loads = [Future()]

    def _ask_beside(self, model: Model, n: int) -> None:
        self.asked.append((f"{model.spec.key} on CPUs", n, 0))
        model.arrivals += [Arrival(object(), self.now, beside=True) for _ in range(n)]

    def load(self, model: Model, *nodes: str) -> None:
        """Let the oldest of what waits for room load, one on each node."""
        for node in nodes:
            arrival = model.arrivals.pop(0)
            replica = Replica(object(), INFO, Place(node), beside=arrival.beside, touched=self.now)
            model.replicas[next(self.numbers)] = replica
            model.is_ready = True

    def tell(self, model: Model, left: int, done: int = 0, *, partial: bool = False) -> None:
        model.callers.tell("driver", left, done, self.now, partial=partial)

    def pass_time(self, seconds: float) -> int:
        """Let time pass; return how many replicas ended."""
        ended, until = 0, self.now + seconds
        while self.now < until:
            self.now += 0.5
            ended += len(self.balance.step(self.models, self.now))
        return ended


@pytest.fixture
def world() -> Simulation:
    return Simulation()


def test_from_nothing_to_four_to_one_and_to_none(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=4)
    world.tell(model, 10_000)
    world.pass_time(0.5)
    assert world.asked == [("m", 4, 1)]  # all at once: what one node takes to start is not waited for
    world.pass_time(60)
    assert len(world.asked) == 1
    world.load(model, "a", "b", "c", "d")
    busy = next(iter(model.replicas.values()))
    for replica in model.replicas.values():
        replica.begin(256, world.now)
    world.tell(model, 1024)
    assert world.pass_time(60) == 0  # all work
    for replica in model.replicas.values():
        if replica is not busy:
            replica.end(256, world.now, answered=True)
    world.tell(model, 256)
    assert world.pass_time(9) == 0
    assert world.pass_time(2) == 3  # idle, and all that is left is in flight
    assert list(model.replicas.values()) == [busy]
    busy.end(256, world.now, answered=True)
    world.tell(model, 0)
    assert world.pass_time(100) == 0  # the least stays, for the next call
    assert standing(model, 0.0).replicas == 1


def test_nothing_leaves_where_no_node_can_go_home(world: Simulation) -> None:
    world.clouds.autoscales = False
    model = world.add(min_replicas=1, max_replicas=4)
    model.arrivals = [Arrival(object()) for _ in range(3)]
    world.load(model, "a", "a", "a")
    assert world.pass_time(600) == 0
    assert world.asked == []


def test_where_no_autoscaler_runs_a_model_in_use_takes_the_room_that_appears(world: Simulation) -> None:
    world.clouds.autoscales, world.clouds.free = False, 2
    model = world.add(min_replicas=1, max_replicas=3)
    model.arrivals = [Arrival(object())]
    world.load(model, "a")
    world.pass_time(5)
    assert world.asked == []
    model.used_at = world.now
    world.pass_time(1)
    assert world.asked == [("m", 2, 0)]


@pytest.mark.parametrize("most", [None, 3])
def test_more_than_one_replica_is_asked_of_the_autoscaler_only_where_the_user_named_a_number(
    world: Simulation, most: int | None
) -> None:
    model = world.add(min_replicas=1, max_replicas=most)
    world.clouds.n_nodes = 3
    world.tell(model, 10_000)
    world.pass_time(5)
    assert sum(n for _, n, _ in world.asked) == (1 if most is None else 3)
    world.load(model, *(["a"] if most is None else ["a", "b", "c"]))
    world.clouds.free = 1
    world.pass_time(5)
    assert len(model.arrivals) == (1 if most is None else 0)  # there is room: no node need come


def test_a_drained_node_is_replaced_before_it_is_gone(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=2)
    world.tell(model, 10_000)
    world.pass_time(0.5)
    world.load(model, "a", "b")
    leaving = next(iter(model.replicas.values()))
    leaving.begin(256, world.now)
    world.clouds.draining = frozenset({"a"})
    assert world.pass_time(0.5) == 0  # what it works at, it may end
    assert leaving.load.leaving
    assert world.asked[-1] == ("m", 1, 0)
    leaving.end(256, world.now, answered=True)
    assert world.pass_time(0.5) == 1
    assert len(world.asked) == 2  # and once only


def test_the_only_replica_is_lost_and_what_must_come_is_asked_for_at_once(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=1)
    world.pass_time(0.5)
    world.load(model, "a")
    model.replicas.clear()
    world.balance.replace(model, world.now)
    assert world.asked == [("m", 1, 1)] * 2


def test_without_any_replica_a_model_is_given_up_after_its_time(
    world: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(placement.ray, "available_resources", lambda: {"CPU": 2.0})
    model = world.add(min_replicas=1, max_replicas=2)
    world.tell(model, 10_000)
    world.pass_time(0.5)
    world.load(model, "a", "b")
    model.replicas.clear()
    world.pass_time(1190)
    assert model.given_up is None
    world.pass_time(20)
    assert isinstance(model.given_up, PlacementError)
    assert not model.waiting


def test_a_replica_that_is_lost_is_replaced_though_it_would_not_be_asked_for_now(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=4)
    world.tell(model, 10_000)
    world.pass_time(0.5)
    world.load(model, "a", "b", "c", "d")
    for replica in model.replicas.values():
        replica.load.rate = 10.0
    model.start_s = 120.0
    world.tell(model, 3_000)  # two would do it, if all had to be started
    model.replicas.popitem()
    world.balance.replace(model, world.now)
    assert world.asked[1:] == [("m", 1, 0)]
    world.pass_time(60)
    assert len(model.waiting) == 1  # and it is not withdrawn
    assert len(world.asked) == 2


def test_what_is_no_longer_needed_is_no_longer_waited_for(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=8)
    world.tell(model, 10_000)
    world.pass_time(0.5)
    assert len(model.waiting) == 8
    world.load(model, "a")
    world.tell(model, 32)
    world.pass_time(6)
    assert len(model.waiting) == 0


def test_two_models_share_what_there_is(world: Simulation) -> None:
    """The first takes all; the second waits for its first replica and gets it, and the first does not take it back."""
    world.clouds.autoscales, world.clouds.free, world.clouds.n_nodes = False, 0, 4
    fast, strong = world.add("fast", min_replicas=1), world.add("strong", min_replicas=1)
    fast.arrivals = [Arrival(object()) for _ in range(4)]
    world.load(fast, "a", "b", "c", "d")
    world.tell(fast, 100_000)
    assert world.pass_time(7) == 1
    assert strong.waiting
    world.load(strong, "a")
    world.tell(strong, 50)
    assert world.pass_time(60) == 0
    assert len(fast.replicas) == 3


def test_a_later_step_has_its_share_of_the_rows(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=4)
    world.tell(model, 10_000, partial=True)
    assert model.demand(world.now).rows is None  # nobody knows yet how many are unsure
    model.callers.asked += 100
    world.tell(model, 9_000, 1_000, partial=True)
    assert model.demand(world.now).rows == 900


def test_calls_that_wait_are_demand_where_nobody_tells_how_much_is_left(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=4)
    for caller in "abcde":
        model.callers.wait(caller, 0, world.now)
    assert (model.demand(world.now).rows, model.demand(world.now).calls) == (None, 5)
    world.pass_time(0.5)
    assert world.asked == [("m", 3, 1)]
    world.now += 10
    assert model.demand(world.now).calls == 0  # they have ended, or died


def opened(world: Simulation, n: int) -> list[Model]:
    """Open models that have loaded, each used a second after the one before, the last one just now."""
    models = []
    for number in range(n):
        model = world.add(str(number), min_replicas=1, max_replicas=1)
        model.arrivals = [Arrival(object())]
        world.load(model, "a")
        model.used_at = world.now
        models.append(model)
        world.now += 1
    return models


def test_of_too_many_models_those_used_longest_ago_are_unloaded(world: Simulation) -> None:
    models = opened(world, MOST_MODELS + 2)
    assert world.balance.unused(models, world.now) == models[:2]
    world.tell(models[0], 10)  # somebody is about to ask
    next(iter(models[1].replicas.values())).begin(5, world.now)  # a call that lasts
    models[2].callers.wait("someone", 0, world.now)
    models[3].is_ready = False  # it loads
    models[4].used_at = world.now
    assert world.balance.unused(models, world.now) == models[5:7]
    assert world.balance.unused(models[: MOST_MODELS - 2], world.now + 60) == []  # there is room for these


def test_a_model_that_finds_no_room_gets_that_of_the_one_used_longest_ago(world: Simulation) -> None:
    models = opened(world, 8)
    newcomer = world.add("new", min_replicas=1, max_replicas=1)
    newcomer.arrivals = [Arrival(object(), world.now)]
    assert world.balance.unused(world.models, world.now + 4) == []  # what is busy may soon be done
    world.now += 6
    models[0].used_at = world.now  # it was used again
    assert world.balance.unused(world.models, world.now) == [models[1]]
    assert world.balance.unused(world.models, world.now + 1) == []  # the room has to be seen
    assert world.balance.unused(world.models, world.now + 6) == [models[1]]
    newcomer.arrivals[0].placed_at = world.now
    assert world.balance.unused(world.models, world.now + 20) == []


def test_a_model_without_gpus_gives_no_room_to_one_that_needs_them(world: Simulation) -> None:
    models = opened(world, 2)
    models[0].share = Share(1, 0, 1)
    newcomer = world.add("new", min_replicas=1, max_replicas=1)
    newcomer.arrivals = [Arrival(object(), world.now)]
    assert world.balance.unused(world.models, world.now + 20) == [models[1]]


def test_cpus_that_are_free_work_beside_the_gpus_while_rows_wait(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=1, cpu_replicas=2)
    world.tell(model, 10_000)
    world.pass_time(6)
    assert world.asked == [("m", 1, 1)]  # no CPU is free
    world.clouds.free_cpus = 3
    world.pass_time(6)
    assert world.asked[1:] == [("m on CPUs", 2, 0)]
    gpu, *_ = model.arrivals
    model.arrivals.remove(gpu)
    world.load(model, "head", "head")  # the job begins on CPUs, while the node with the GPU is on its way
    model.arrivals.append(gpu)
    world.load(model, "gpu")
    assert (len(model.staying), len(model.beside)) == (1, 2)
    for replica in model.replicas.values():
        replica.begin(128, world.now)
    world.tell(model, 384)
    assert world.pass_time(60) == 0  # they end what they have
    for replica in model.replicas.values():
        replica.end(128, world.now, answered=True)
    world.tell(model, 0)
    assert world.pass_time(30) == 2
    assert [replica.place.node for replica in model.replicas.values()] == ["gpu"]
    assert len(world.asked) == 2


def test_a_replica_on_cpus_that_finds_no_room_is_withdrawn_before_a_node_comes_for_it(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=1, cpu_replicas=1)
    world.clouds.free_cpus = 1
    world.tell(model, 10_000)
    world.pass_time(1)
    (late,) = [arrival for arrival in model.arrivals if arrival.beside]
    world.pass_time(6)
    assert late.withdrawn


def test_replicas_on_cpus_leave_where_others_wait_for_cpus(world: Simulation) -> None:
    model = world.add(min_replicas=1, max_replicas=1, cpu_replicas=1)
    world.clouds.free_cpus = 1
    world.tell(model, 10_000)
    world.pass_time(1)
    world.load(model, "gpu", "gpu")
    other = world.add("other", min_replicas=1, max_replicas=1)
    other.share = Share(1, 0, 1)
    world.tell(other, 100)
    world.clouds.free_cpus = 0
    assert world.pass_time(20) == 1
    assert not model.beside
    assert len(model.staying) == 1
    world.clouds.free_cpus = 1
    world.pass_time(10)
    assert [key for key, *_ in world.asked].count("m on CPUs") == 1  # not while the other waits


def test_a_model_of_a_higher_priority_gets_replicas_and_the_other_keeps_its_least() -> None:
    low, high = Claim("low", 3, 1, work_s=1000.0), Claim("high", 1, 1, waits_s=9.0, work_s=10.0, priority=1)
    assert giver([low, high], 5.0) == "low"
    assert giver([replace(low, replicas=1), high], 5.0) is None
    starved = replace(low, replicas=0, waits_s=9.0)
    assert giver([starved, replace(high, replicas=4, waits_s=0.0)], 5.0) == "high"
    assert giver([replace(low, replicas=1, waits_s=9.0), replace(high, replicas=3, waits_s=0.0)], 5.0) is None
