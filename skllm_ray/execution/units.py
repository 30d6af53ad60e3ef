"""Units of work on the cluster: a function for each, a few at a time, and an object that all of them share.

Ray Data is not used here: a unit carries no rows, and a job must be able to stop between two units, to count the
deaths of each, and to go on with the others.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from skllm_ray.errors import ClusterError, SkllmRayError
from skllm_ray.execution import session
from skllm_ray.execution.block import embedding_of, open_here
from skllm_ray.execution.children import inherited
from skllm_ray.llm.base import Backend, BackendSpec
from skllm_ray.llm.gate import install_limiter
from skllm_ray.tasks.base import Task

_TICK_S: Final = 0.5
_MOST_DEATHS: Final = 3
_MOST_TASKS: Final = 8
_RARELY: Final = (100_000, 20, 20)
_held: dict[str, Any] = {}
C = TypeVar("C")


class Shared(Protocol):
    """An object that the driver and all workers use."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method and return what it returns."""
        ...

    def tell(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method and do not wait for it."""
        ...


Function = Callable[[C, Backend, "Backend | None", Shared, Mapping[str, str]], Any]
"""What is done with each unit; it gets the open backends, the shared object and the credentials."""


@dataclass(frozen=True)
class Died:
    """What stands for the result of a unit whose workers died."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """What stands for the result of a unit that raised what nobody expected."""

    reason: str
    trace: str


class UnitRunner:
    """Runs units with one task and backend.

    Parameters
    ----------
    function : callable
        What is done with each unit.
    task, spec : Task, BackendSpec
        What is asked, and whom.
    secrets : mapping of str to str
        Credentials by fingerprint.
    n_tasks : int or None, default=None
        Units at once; None takes two for each replica of a local model, else as many as the cluster has CPUs, between
        2 and 8: each keeps many requests in flight.

    Attributes
    ----------
    n_tasks : int
        Units at once.
    """

    def __init__(
        self,
        function: Function[Any],
        task: Task[Any],
        spec: BackendSpec,
        secrets: Mapping[str, str],
        n_tasks: int | None = None,
    ) -> None:
        self._function = function
        self._task = task
        self._spec = spec
        self._secrets = inherited(secrets)
        self._here = session.is_local_mode()
        if self._here:
            self.n_tasks = 1
            return
        session.ensure()
        import ray

        from skllm_ray.execution.dataset import Connected
        from skllm_ray.execution.vault import hand_over
        from skllm_ray.execution.workers import compare_workers

        compare_workers(spec)
        connected = Connected.connect(task, spec, self._secrets)
        hand_over(self._secrets)
        self.n_tasks = n_tasks or (connected.in_flight if connected.backend is not None else _default_tasks())
        self._work = ray.put((connected, function))

    def share(self, factory: Callable[..., Any], *args: Any, restarts: bool) -> Shared:
        """Return a new object that the driver and all workers use; `restarts` begins it anew where its process dies."""
        if self._here:
            return _Here(factory(*args))
        import ray

        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1 if restarts else 0, "max_concurrency": 16}
        actor = ray.remote(_Holder).options(**options).remote(factory, args)
        return _There(actor)

    def run(self, units: deque[Any], shared: Shared) -> Generator[tuple[Any, Any] | None, None, None]:
        """Yield each unit with its result as they finish, in any order, and None about twice a second in between.

        A unit whose worker or node dies is done again, three times at most; then its result is a `Died`. Clearing
        `units` lets the job end with what runs; closing the generator cancels that too.
        """
        if self._here:
            yield from self._run_here(units, shared)
            return
        yield from self._run_there(units, shared)

    def _run_here(self, units: deque[Any], shared: Shared) -> Generator[tuple[Any, Any] | None, None, None]:
        backend = open_here(self._spec, self._secrets)
        embedding = embedding_of(self._task)
        embedder = None if embedding is None else open_here(embedding, self._secrets)
        install_limiter(None)
        while units:
            unit = units.popleft()
            yield unit, self._function(unit, backend, embedder, shared, self._secrets)

    def _run_there(self, waiting: deque[Any], shared: Shared) -> Generator[tuple[Any, Any] | None, None, None]:
        import ray

        from skllm_ray.execution.metrics import show_units

        running: dict[Any, Any] = {}
        deaths: dict[int, int] = {}
        function = ray.remote(_run_unit).options(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")
        try:
            while waiting or running:
                while waiting and len(running) < self.n_tasks:
                    unit = waiting.popleft()
                    running[function.remote([self._work], unit, shared)] = unit
                show_units(len(waiting), len(running))
                done, _ = ray.wait(list(running), num_returns=1, timeout=_TICK_S)
                if not done:
                    yield None
                for reference in done:
                    unit = running.pop(reference)
                    result = _result(reference)
                    if isinstance(result, Died):
                        number = deaths[id(unit)] = deaths.get(id(unit), 0) + 1
                        if number < _MOST_DEATHS:
                            waiting.appendleft(unit)
                            continue
                    yield unit, result
        finally:
            show_units(0, 0)
            for reference in running:
                with suppress(Exception):
                    ray.cancel(reference)


def node_name() -> str:
    """Return what names this process among the cluster's: its node's address and its number."""
    if not session.is_initialised():
        return f"this process ({os.getpid()})"
    import ray

    return f"{ray.util.get_node_ip_address()} ({os.getpid()})"


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

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError

        try:
            return ray.get(self._actor.call.remote(method, args, kwargs))
        except RayActorError:
            raise ClusterError("The process that keeps the job's state died.", "Run the same command again.") from None

    def tell(self, method: str, *args: Any, **kwargs: Any) -> None:
        self._actor.call.remote(method, args, kwargs)


class _Holder:
    def __init__(self, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._held = factory(*args)

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(self._held, method)(*args, **kwargs)


def _run_unit(work: list[Any], unit: Any, shared: Shared) -> Any:
    """Do a unit on a worker."""
    import ray

    from skllm_ray.execution.dataset import worker_secrets
    from skllm_ray.execution.metrics import observe_requests

    key = work[0].hex()
    if key not in _held:  # a worker does many units of one job
        _held.clear()
        connected, function = ray.get(work[0])
        secrets = worker_secrets()
        observe_requests(connected.spec.model)
        gc.freeze()
        _held[key] = connected, function, secrets
    connected, function, secrets = _held[key]
    backend, embedder = connected.open(secrets)
    before = gc.get_threshold()
    gc.set_threshold(*_RARELY)  # rows are many small objects without cycles
    try:
        return function(unit, backend, embedder, shared, secrets)
    finally:
        gc.set_threshold(*before)


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (RayActorError, OutOfMemoryError)):
            return Died(f"{type(cause).__name__}")
        if isinstance(cause, SkllmRayError):
            raise cause from None
        return Failed(type(cause).__name__ if cause is not None else "RayTaskError", str(error))
    except RayError as error:
        return Died(f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")


def _default_tasks() -> int:
    import ray

    return int(max(2, min(_MOST_TASKS, ray.cluster_resources().get("CPU", 1))))
