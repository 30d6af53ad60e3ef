"""Units of work on the cluster: a function for each, a few at a time, and an object that all of them share.

Ray Data is not used here: a unit carries no rows, and a job must be able to stop between two units, to count the
deaths of each, and to go on with the others.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from skllm_ray.config import Secret
from skllm_ray.errors import ClusterError, SkllmRayError
from skllm_ray.execution import ray_state, session
from skllm_ray.execution.assignment import CALLS_EACH
from skllm_ray.execution.block import Backends, opened_all
from skllm_ray.execution.cluster_status import StatusPoller
from skllm_ray.execution.garbage import rarely_collected
from skllm_ray.execution.inherited_secrets import inherited
from skllm_ray.execution.plan import Plan
from skllm_ray.execution.unit_tasks import Died, Moved, UnitTasks
from skllm_ray.llm.base import is_stateful

_TICK_S: Final = 0.5
_TELL_S: Final = 1.0
_RESTART_S: Final = 60.0  # the longest wait for a shared object whose process died
_held: dict[str, Any] = {}
C = TypeVar("C")


class Shared(Protocol):
    """An object that the driver and all workers use."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method and return what it returns."""
        ...

    def tell(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method and do not wait for it; should it be lost, the next call sees to it."""
        ...


Function = Callable[[C, Backends, Shared, Mapping[str, Secret]], Any]
"""What is done with each unit; it gets the plan's open backends, the shared object and the credentials."""


@dataclass(frozen=True)
class Failed:
    """What stands for the result of a unit that raised what nobody expected."""

    reason: str


class UnitRunner:
    """Runs units with one plan.

    Parameters
    ----------
    function : callable
        What is done with each unit.
    plan : tuple of Step
        What is asked, and whom.
    secrets : mapping of str to Secret
        Credentials by fingerprint.
    n_tasks : int or None, default=None
        Units at once; None takes two for each replica that a local model has at the moment, else as many as the cluster
        has CPUs, between 2 and 8: each keeps many requests in flight.
    n_rows : int, default=0
        Rows that are to be done, so that as many replicas are asked for from the beginning; 0 where that is not known.
    priority : int, default=0
        Among those who ask the same local model, the higher is served first.

    Attributes
    ----------
    n_tasks : int
        Units at once, now.
    is_elastic : bool
        Whether that follows the replicas of a local model.
    status_poller : StatusPoller or None
        Tells how the job stands in the cluster; None in local mode.
    """

    def __init__(
        self,
        function: Function[Any],
        plan: Plan,
        secrets: Mapping[str, Secret],
        n_tasks: int | None = None,
        n_rows: int = 0,
        priority: int = 0,
    ) -> None:
        self._function = function
        self._plan = plan
        self._secrets = inherited(secrets)
        began = time.time()
        self._here = ray_state.is_local_mode()
        self.is_elastic = False
        self.status_poller: StatusPoller | None = None
        if self._here:
            self.n_tasks = 1
            return
        session.ensure()
        import ray

        from skllm_ray.execution.dataset import Connected
        from skllm_ray.execution.secrets import hand_over
        from skllm_ray.execution.worker_check import compare_workers

        compare_workers(plan)
        connected = Connected.connect(plan, self._secrets, n_rows, priority)
        hand_over(self._secrets)
        pools = [pool for pool in connected.pools if pool is not None]
        last = connected.pools[-1]
        self._connected = connected
        self.is_elastic = n_tasks is None and last is not None
        self._most_tasks = connected.in_flight
        self.n_tasks = n_tasks or (self._most_tasks if last is None else CALLS_EACH * last.n_replicas)
        asked = [step.spec.model for step in plan if not is_stateful(step.spec)]
        self.status_poller = StatusPoller(asked, pools, began)
        self._work = ray.put((connected, function))

    def share(self, factory: Callable[[Mapping[str, Secret]], Any]) -> Shared:
        """Return an object that the driver and all workers use.

        `factory` makes it from the credentials; where its process dies, again. It lives on the driver's node, so that
        no lost node takes it without the driver.
        """
        if self._here:
            return _Here(factory(self._secrets))
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = ray.get_runtime_context().get_node_id()
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_restarts": -1,
            "max_concurrency": 16,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        return _There(ray.remote(_Holder).options(**options).remote(factory))

    def run(
        self,
        units: deque[Any],
        shared: Shared,
        again: Callable[[Any], Any],
        rows: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> Generator[tuple[Any, Any] | None, None, None]:
        """Yield each unit with its result as they finish, in any order, and None about twice a second in between.

        A unit whose worker or node dies is done again, as `again` changes it, three times at most; then its result is a
        `Died`. Where several shared the worker, nobody knows whose fault it was: each is done again by itself, and that
        death does not count. Clearing `units` lets the job end with what runs; closing the generator cancels that too,
        and gives it a few seconds to write down what it knows. `rows` tells how many rows are left, and how many are
        done: a local model has as many replicas as they need.
        """
        if self._here:
            yield from self._run_here(units, shared)
            return
        try:
            yield from self._run_there(units, shared, again, rows)
        finally:
            with suppress(Exception):  # Ray may have ended
                self._connected.tell(0, 0)

    def _run_here(self, units: deque[Any], shared: Shared) -> Generator[tuple[Any, Any] | None, None, None]:
        with opened_all(self._plan, self._secrets) as backends:
            while units:
                unit = units.popleft()
                yield unit, self._function(unit, backends, shared, self._secrets)

    def _run_there(
        self,
        waiting: deque[Any],
        shared: Shared,
        again: Callable[[Any], Any],
        rows: Callable[[], tuple[int, int]],
    ) -> Generator[tuple[Any, Any] | None, None, None]:
        import ray

        from skllm_ray.execution.metrics import show_units

        tasks = UnitTasks(partial(self._remote_function().remote, [self._work]), shared, self.n_tasks)
        shown_at = told_at = 0.0
        try:
            while waiting or tasks.running:
                if time.monotonic() - told_at > _TELL_S:
                    told_at = time.monotonic()
                    self._connected.tell(*rows())
                    tasks.n_tasks = self.n_tasks = self._tasks_now()
                tasks.start(waiting)
                if time.monotonic() - shown_at > _TICK_S:
                    shown_at = time.monotonic()
                    show_units(len(waiting), len(tasks.running))
                done, _ = ray.wait(list(tasks.running), num_returns=1, timeout=_TICK_S)
                if not done:
                    yield None
                for reference in done:
                    yield from tasks.results(reference, waiting, again)
        finally:
            show_units(0, 0)
            tasks.cancel()

    def _remote_function(self) -> Any:
        import ray

        from skllm_ray.execution.nodes import where_tasks_go

        where = where_tasks_go(self._most_tasks) if self.is_elastic else "SPREAD"
        return ray.remote(_run_units).options(num_cpus=0, max_retries=0, scheduling_strategy=where)

    def _tasks_now(self) -> int:
        """Return how many units may run at once: where that is not fixed, two for each replica of the moment."""
        if not self.is_elastic or self.status_poller is None:
            return self.n_tasks
        held = [standing.replicas for _, standing in self.status_poller.look().replicas]
        return CALLS_EACH * max(1, held[-1] if held else 1)


def node_name() -> str:
    """Return what names this process among the cluster's: its node's address and its number."""
    if not ray_state.is_initialised():
        return f"this process ({os.getpid()})"
    import ray

    return f"{ray.util.get_node_ip_address()} ({os.getpid()})"


def this_node_is_draining() -> bool:
    """Return whether the node of this process is about to go."""
    if not ray_state.is_initialised():
        return False
    from skllm_ray.execution import nodes

    return nodes.this_node_is_draining()


class _Here:
    """An object of this process."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._held, method)(*args, **kwargs)

    tell = call


class _There:
    """An object in an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._told: dict[Any, tuple[Any, ...]] = {}
        self._telling = threading.Lock()  # a unit's guard asks from a thread of its own

    def __reduce__(self) -> tuple[Any, ...]:
        return (_There, (self._actor,))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method, again where the actor dies: it comes back. What it does twice must be the same as once."""
        import ray
        from ray.exceptions import RayActorError

        deadline = time.monotonic() + _RESTART_S
        while True:
            try:
                found = ray.get(self._actor.call.remote(method, args, kwargs))
                self._repeat_lost()
                return found
            except RayActorError:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        "The process that keeps the job's state died, and does not start again.",
                        "Run the same command again.",
                    ) from None
            time.sleep(_TICK_S)

    def tell(self, method: str, *args: Any, **kwargs: Any) -> None:
        self._repeat_lost()
        self._remember((method, args, kwargs))

    def _repeat_lost(self) -> None:
        """Tell again what was told to a process that died."""
        import ray
        from ray.exceptions import RayActorError

        with self._telling:
            ended, _ = ray.wait(list(self._told), num_returns=len(self._told), timeout=0) if self._told else ([], [])
            lost = [(reference, self._told.pop(reference)) for reference in ended]
        for reference, told in lost:
            try:
                ray.get(reference)
            except RayActorError:
                self._remember(told)

    def _remember(self, told: tuple[Any, ...]) -> None:
        reference = self._actor.call.remote(*told)
        with self._telling:
            self._told[reference] = told


class _Holder:
    def __init__(self, factory: Callable[[Mapping[str, Secret]], Any]) -> None:
        from skllm_ray.execution.secrets import fetch_secrets

        self._held = factory(fetch_secrets())

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(self._held, method)(*args, **kwargs)


def _run_units(work: list[Any], units: list[Any], shared: Shared) -> list[Any]:
    """Do some units on a worker."""
    import ray

    from skllm_ray.execution.metrics import observe_requests
    from skllm_ray.execution.secrets import fetch_secrets

    key = work[0].hex()
    if key not in _held:  # a worker does many units of one job
        _held.clear()
        connected, function = ray.get(work[0])
        secrets = fetch_secrets()
        observe_requests(connected.plan[-1].spec.model)
        gc.freeze()
        _held[key] = connected, function, secrets
    connected, function, secrets = _held[key]
    with rarely_collected(), connected.opened(secrets) as backends:
        return [_guarded(function, unit, backends, shared, secrets) for unit in units]


def _guarded(function: Function[Any], unit: Any, *given: Any) -> Any:
    """Do a unit; what nobody expected costs this unit alone. Its text stays here: it may quote a row."""
    from ray.exceptions import RayActorError, RayError

    if this_node_is_draining():
        time.sleep(_TICK_S)  # should there be no other node for it
        return Moved()
    try:
        return function(unit, *given)
    except (RayActorError, SkllmRayError):  # a model actor, or what the job shares, has died
        return Died("a process that it needs died")
    except RayError as error:
        return Died(type(error).__name__)
    except Exception as error:  # noqa: BLE001  the boundary: one unit's failure must not lose the others
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Failed(f"{type(error).__name__} in {frame.name}, line {frame.lineno}")
