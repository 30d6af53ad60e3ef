"""Model actors, and their pool, that are killed while they are needed. The models are stand-ins that load at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from skllm_ray.errors import ClusterError, ModelLoadError
from skllm_ray.execution import model_pool
from skllm_ray.execution.plan import Step
from skllm_ray.execution.runner import run
from skllm_ray.llm.base import Backend, Placement
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply
from skllm_ray.tasks.classification import ZeroShotTask
from tests.execution.stateful import PlainSpec

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]


@dataclass(frozen=True)
class Spec(PlainSpec):
    """A model that answers after a while, holds its answers back, and dies of poison, as `folder` says."""

    key: str = "stand-in"
    model: str = "gguf::stand-in"
    folder: str = ""
    block_s: float = 0.05

    def open(self, resolve_secret: object) -> StandIn:
        if Path(self.folder, "damaged").exists():
            raise ModelLoadError("the file is damaged")
        if Path(self.folder, "asserts").exists():
            sys.stderr.write("/src/llama.cpp:7: GGML_ASSERT(n > 0) failed\n")
            sys.stderr.flush()
            os.abort()
        if Path(self.folder, "dies once").exists():
            Path(self.folder, "dies once").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        Path(self.folder, f"loaded {os.getpid()}").touch()
        return StandIn(self)


class StandIn(Backend):
    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._lock = threading.Lock()

    def complete(self, requests: list[ChatRequest]) -> list[Reply]:
        with self._lock:
            Path(self._spec.folder, "busy").touch()
            time.sleep(self._spec.block_s)
            while Path(self._spec.folder, "held").exists():
                time.sleep(0.02)
            if any("POISON" in request.messages[-1]["content"] for request in requests):
                os.kill(os.getpid(), signal.SIGKILL)
            return [Reply('{"label": "good"}')] * len(requests)

    def embed(self, texts: list[str]) -> list[Embedding]:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture
def spec(tmp_path: Path) -> Any:
    ModelCache.clear()
    yield Spec(folder=str(tmp_path))
    ModelCache.clear()


def ask(spec: Spec, n: int, poison: int | None = None) -> list[str | None]:
    """Return the label, or the kind of error, of each of `n` rows."""
    texts = [f"{'POISON' if row == poison else 'text'} {row}" for row in range(n)]
    rows = run(texts, (Step(ZeroShotTask(("good", "bad")), spec),), show_progress=False)  # type: ignore[arg-type]
    return [row.error.kind if row.error is not None else row.value for row in rows]


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions in threads of their own; return what each returned or raised."""
    found: list[Any] = [None] * len(functions)

    def call(i: int) -> None:
        try:
            found[i] = functions[i]()
        except Exception as error:  # noqa: BLE001  what it raises is what the test is about
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@contextmanager
def held(spec: Spec) -> Iterator[None]:
    """Let the model answer nothing meanwhile: what happens then happens to requests in flight, on any machine."""
    Path(spec.folder, "held").touch()
    yield
    Path(spec.folder, "held").unlink()


def loaded_last(spec: Spec) -> int:
    """Return the process of the model that was loaded last."""
    found = max(Path(spec.folder).glob("loaded *"), key=lambda path: path.stat().st_mtime)
    return int(found.name.split()[1])


def pid_of(spec: Spec) -> int:
    (replica,) = model_pool.connect(spec).replicas()  # type: ignore[arg-type]
    return replica.pid


def when_busy(spec: Spec, act: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that acts once the model is at work, which it is not yet."""
    busy = Path(spec.folder, "busy")
    busy.unlink(missing_ok=True)

    def acting() -> Any:
        while not busy.exists():
            time.sleep(0.01)
        return act()

    return acting


@pytest.mark.deep
def test_a_single_actor_is_killed_with_two_calls_in_flight_and_one_that_comes_meanwhile(spec: Spec) -> None:
    ask(spec, 1)
    first = pid_of(spec)

    def kill_and_ask() -> list[str | None]:
        os.kill(first, signal.SIGKILL)
        time.sleep(0.3)
        return ask(spec, 2)

    found = at_once(lambda: ask(spec, 40), lambda: ask(spec, 3), when_busy(spec, kill_and_ask))
    assert found == [["good"] * 40, ["good"] * 3, ["good"] * 2]
    assert pid_of(spec) != first
    assert len(ModelCache.clear()) == 1


@pytest.mark.deep
def test_it_is_killed_twice_below_a_dataset(spec: Spec) -> None:
    ask(spec, 1)

    def kill() -> None:
        os.kill(loaded_last(spec), signal.SIGKILL)

    first = when_busy(spec, kill)

    def kill_twice() -> None:
        with held(spec):
            first()
            when_busy(spec, kill)()  # to load the next one takes longer than to get here

    labels, killed = at_once(lambda: ask(spec, 300), kill_twice)
    assert labels == ["good"] * 300
    assert killed is None


@pytest.mark.deep
@pytest.mark.parametrize("n", [1, pytest.param(600, marks=pytest.mark.slow)])
def test_a_row_that_kills_its_model_costs_itself_alone(spec: Spec, n: int) -> None:
    """Of 600 rows two blocks are in flight: the innocent one dies along and is not blamed."""
    poison = n // 7
    expected = ["good"] * n
    expected[poison] = "model_crashed"
    assert ask(spec, n, poison) == expected


@pytest.mark.deep
def test_innocent_rows_beside_a_poisoned_block_are_not_blamed(spec: Spec) -> None:
    spec = replace(spec, block_s=0.3)
    ask(spec, 1)
    beside = when_busy(spec, lambda: ask(spec, 1))
    found = at_once(lambda: ask(spec, 4, 2), beside, beside)
    assert found == [["good", "good", "model_crashed", "good"], ["good"], ["good"]]


@pytest.mark.deep
def test_the_pool_itself_is_killed(spec: Spec) -> None:
    ask(spec, 1)
    pid = ray.get(model_pool.pool_of("job").__ray_call__.remote(lambda pool: os.getpid()))
    labels, _ = at_once(lambda: ask(spec, 300), when_busy(spec, lambda: os.kill(pid, signal.SIGKILL)))
    assert labels == ["good"] * 300
    ray.kill(model_pool.pool_of("job"))  # for good: Ray does not start it again
    assert ask(spec, 2) == ["good"] * 2
    ray.kill(model_pool.pool_of("job"))
    assert ModelCache.clear() == []
    assert ask(spec, 2) == ["good"] * 2


@pytest.mark.deep
def test_loading_that_dies_is_tried_again_and_loading_that_fails_for_good_is_an_error(spec: Spec) -> None:
    Path(spec.folder, "dies once").touch()
    assert ask(spec, 1) == ["good"]
    Path(spec.folder, "damaged").touch()
    with held(spec):
        found = at_once(lambda: ask(spec, 300), when_busy(spec, lambda: os.kill(loaded_last(spec), signal.SIGKILL)))
    assert isinstance(found[0], ModelLoadError)
    with pytest.raises(ModelLoadError, match="damaged"):
        ask(spec, 1)
    Path(spec.folder, "damaged").unlink()
    assert ask(spec, 1) == ["good"]


@pytest.mark.deep
def test_what_an_actor_says_when_it_dies_is_told_and_it_is_not_loaded_again(spec: Spec) -> None:
    Path(spec.folder, "asserts").touch()
    with pytest.raises(ModelLoadError, match=r"Its last words: llama.cpp:7: GGML_ASSERT\(n > 0\) failed"):
        ask(spec, 3)


def test_threads_that_ask_at_once_share_one_actor(spec: Spec) -> None:
    found = at_once(*[lambda n=n: ask(spec, n) for n in (1, 20, 300)])
    assert found == [["good"] * n for n in (1, 20, 300)]
    assert len(list(Path(spec.folder).glob("loaded *"))) == 1


@pytest.mark.deep
@pytest.mark.parametrize("n", [3, 300])
def test_a_model_that_is_cleared_under_a_call_ends_it_with_an_error_of_ours(spec: Spec, n: int) -> None:
    ask(spec, 1)
    with held(spec):
        found, freed = at_once(lambda: ask(spec, n), when_busy(spec, ModelCache.clear))
    assert isinstance(found, ClusterError) and "unloaded while it was in use" in str(found)
    assert len(freed) == 1
    assert ask(spec, n) == ["good"] * n


@ray.remote(num_cpus=0)
def ask_in_a_task(spec: Spec, n: int) -> list[str | None]:
    return ask(spec, n)


@pytest.mark.deep
def test_a_cancelled_task_leaves_the_pool_as_it_was(spec: Spec) -> None:
    loading = ask_in_a_task.remote(spec, 1)
    time.sleep(0.5)
    ray.cancel(loading)
    ask(spec, 1)
    first = pid_of(spec)
    wait = when_busy(spec, lambda: None)
    running = ask_in_a_task.remote(spec, 300)
    wait()
    ray.cancel(running)
    assert ask(spec, 300) == ["good"] * 300
    assert pid_of(spec) == first


@pytest.mark.deep
def test_a_model_that_nobody_uses_makes_room_for_another_and_comes_back(spec: Spec) -> None:
    """Each takes all CPUs."""
    all_cpus = Placement(num_cpus=ray.cluster_resources()["CPU"], max_replicas=1)
    first, second = (replace(spec, key=key, placement=all_cpus) for key in ("first", "second"))
    assert ask(first, 2) == ["good"] * 2
    pid, held = pid_of(first), model_pool.connect(first)  # type: ignore[arg-type]
    assert ask(second, 2) == ["good"] * 2
    assert held.replicas() == []
    ModelCache.remove("second")
    (reply,) = held.complete([ChatRequest(({"role": "user", "content": "text"},))])  # whoever held it asks on
    assert reply.error is None
    assert pid_of(first) != pid
