"""Model actors that outlive calls, as their callers see them: open a model, ask its actors, unload it.

The pool actor (``pool_actor.py``) replaces an actor that dies; the caller asks again. From the first death on it asks
alone, so that whatever kills the actor then is its own: it halves the block at each death, down to the one row that
kills its model, which costs itself alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError

from skllm_ray.errors import ClusterError, SkllmRayError, warn
from skllm_ray.execution import parent_process, placement, ray_state
from skllm_ray.execution.last_words import quoted
from skllm_ray.execution.model_actor import ModelActor, ReplicaInfo
from skllm_ray.execution.open_backends import warn_of_changes
from skllm_ray.execution.pool_actor import DIED, SHARED, PoolActor
from skllm_ray.execution.pool_state import Opened
from skllm_ray.execution.progress import download_bar, slow
from skllm_ray.execution.ray_state import NAMESPACE
from skllm_ray.execution.worker_feedback import Answers
from skllm_ray.llm.base import Backend, StatefulSpec
from skllm_ray.llm.open_models import Freed, ModelCache
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError

_CHILDREN_KEEP_ALIVE_S: Final = 20.0
_POLL_S: Final = 0.05
_SHOW_S: Final = 0.5
_POOL_RETURNS_S: Final = 60.0
_INFO_S: Final = 5.0
_GONE_S: Final = 10.0
_MOST_REOPENS: Final = 5
_SMALLEST_SLICE: Final = 16
_DEATHS_OF_ONE_ROW: Final = 2  # alone, after one in company

_pools: dict[str, Any] = {}
_lock = threading.RLock()

Owner = Literal["job", "parent", "all"]
"""Whose a pool is: this job's, that of the process which started this one, or that of all jobs."""
Crashed = Callable[[RowError, int], Any]
"""Makes a row's failure of an error and the number of attempts."""


def connect(spec: StatefulSpec) -> PooledBackend:
    """Return the pool of `spec`, its model loaded at the first call of the job.

    Raises
    ------
    PlacementError
        If the cluster has no room for the actors.
    ModelLoadError
        If the model cannot be loaded.
    """
    owner, own = _owner(spec)
    job = ray_state.job_key()
    held = ModelCache.get(spec.key)
    if isinstance(held, PooledBackend) and held.job == job and held.owner != owner and _look(held.owner, spec.key):
        owner, own = held.owner, held.spec  # a model stays where it is
    opened = _look(owner, spec.key)
    if opened is None or not opened.n_replicas:
        opened = _open(owner, own)
    backend = PooledBackend(opened.spec, opened.n_replicas, job, owner)
    with _lock:
        ModelCache.forget(spec.key)  # closing the old one would close the new one
        ModelCache.store(spec.key, backend, shared=owner != "job")
    if backend.spec != spec and not _parent_job():
        warn_of_changes(spec)
    return backend


def is_nested_without_room(spec: StatefulSpec) -> bool:
    """Return whether a call from inside a task must load the model here, because its actors could never be placed.

    The task itself holds resources while it waits for the answer, so waiting for room could wait for ever.
    """
    if spec.placement.num_gpus or _look(_owner(spec)[0], spec.key):
        return False
    return placement.room(placement.share_of(spec.placement)) < spec.placement.min_replicas


def clear_shared() -> list[Freed]:
    """Unload the models that outlive jobs, whichever job loaded them."""
    return _unload("all", None)


class PooledBackend(Backend):
    """A backend whose model lives in a pool's actors. Picklable: Dataset tasks hold it too."""

    def __init__(self, spec: StatefulSpec, n_replicas: int, job: str, owner: Owner = "job") -> None:
        self.spec = spec
        self.n_replicas = n_replicas
        self.job = job
        self.owner = owner

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request; a block from the driver is spread over all replicas at once."""
        return self._spread("complete", requests, lambda error, attempts: Reply(error=error, attempts=attempts))

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, spread likewise."""
        return self._spread("embed", texts, lambda error, attempts: Embedding(error=error, attempts=attempts))

    def close(self) -> list[Freed]:
        """Unload the model from all nodes."""
        if not ray_state.is_initialised() or ray_state.job_key() != self.job:
            return []
        return _unload(self.owner, self.spec.key)

    def replicas(self) -> list[ReplicaInfo]:
        """Return where the model's replicas live."""
        return list(_ask_pool(self.owner, "replicas", self.spec.key))

    def _spread(self, verb: str, items: Sequence[Any], crashed: Crashed) -> list[Any]:
        parts = _slices(items, 1 if len(items) <= _SMALLEST_SLICE else self.n_replicas)
        taken = self._take(len(parts))
        answers = [handle.call.remote(verb, part) for part, (_, handle) in zip(parts, taken, strict=True)]
        found: list[Any] = []
        answered = False
        try:
            for part, answer, (number, _) in zip(parts, answers, taken, strict=True):
                reply = self._answer(answer, number)
                answered |= reply is not None
                found += self._ask_alone(verb, part, crashed) if reply is None else reply
        finally:
            self._give_back([number for number, _ in taken], answered)
        return found

    def _ask_alone(self, verb: str, items: Sequence[Any], crashed: Crashed) -> list[Any]:
        """Ask again, with the actor to itself; by halves if it dies, down to the one item that kills it."""
        for _ in range(_DEATHS_OF_ONE_ROW):
            found = self._ask_once_alone(verb, items)
            if found is not None:
                return found
            if len(items) > 1:
                return [one for half in _slices(items, 2) for one in self._ask_alone(verb, half, crashed)]
        times = f"{_DEATHS_OF_ONE_ROW} times"
        words = _ask_pool(self.owner, "words", self.spec.key)
        message = f"The process that held {self.spec.model} died {times} while it worked on this row alone."
        message += quoted(words)
        return [crashed(RowError("model_crashed", message), 1 + _DEATHS_OF_ONE_ROW)]

    def _ask_once_alone(self, verb: str, items: Sequence[Any]) -> list[Any] | None:
        """Return the answers; None if the actor died while it worked on `items` and nothing else."""
        while True:
            ((number, handle),) = self._take(1)
            found: list[Any] | object | None = None
            try:
                admission = self._answer(handle.admit.remote(), number)
                if admission is None:  # died of what ran before
                    continue
                call = handle.call_admitted.options(concurrency_group=ModelActor.ASIDE)
                found = self._answer(call.remote(admission, verb, items), number, late=_TOO_LATE)
            finally:
                self._give_back([number], isinstance(found, list))
            if found is None or isinstance(found, list):
                return found

    def _answer(self, answer: Any, number: int, late: Any = None) -> Any:
        """Return what an actor answers; None if it died, which the pool is told. `late` stands for its own None."""
        try:
            found = ray.get(answer)
        except RayTaskError as error:
            raise _cause(error) from None
        except DIED:
            _ask_pool(self.owner, "report_death", self.spec.key, number)
            return None
        if isinstance(found, Answers):
            for message in found.warnings:
                warn(message)
        return late if found is None else found

    def _take(self, n: int) -> list[tuple[int, Any]]:
        """Return `n` of the model's actors; wait while there is none because it is being replaced."""
        for _ in range(_MOST_REOPENS):
            while (taken := _ask_pool(self.owner, "take", self.spec.key, n)) == []:
                time.sleep(_POLL_S)
            if taken:
                return list(taken)
            _open(self.owner, self.spec)  # the pool was lost, and its actors with it
        raise ClusterError(_LOST, _LOST_HINT)

    def _give_back(self, numbers: Sequence[int], answered: bool) -> None:
        with contextlib.suppress(ClusterError):  # a parent's pool that has ended
            _pool(self.owner).give_back.remote(self.spec.key, numbers, answered)


_TOO_LATE: Final = object()
_LOST = "The actor that hands out models is lost again and again."
_LOST_HINT = "See Ray's logs for what ends it, and call again."


def _slices(items: Sequence[Any], n: int) -> list[Sequence[Any]]:
    size = -(-len(items) // n)
    return [items[start : start + size] for start in range(0, len(items), size)]


# --- pools ----------------------------------------------------------------------------------------------------------


def _pool(owner: Owner) -> Any:
    """Return the pool actor of `owner`, created by the first process that asks; a parent's must be there."""
    job = ray_state.job_key()
    key = f"{job} {owner}"
    with _lock:
        if key not in _pools:
            for old in [one for one in _pools if not one.startswith(f"{job} ")]:  # of a Ray that this process has left
                del _pools[old]
            _pools[key] = _existing_pool("parent") if owner == "parent" else _new_pool(owner)
        return _pools[key]  # kept: the actor lives as long as the handle of whoever created it


def _new_pool(owner: Owner) -> Any:
    actor_class = ray.remote(PoolActor).options(
        name=_pool_name(owner),
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached" if owner == "all" else None,
        num_cpus=0,
        max_concurrency=8,
        max_restarts=-1,
    )
    return actor_class.remote(shared=owner == "all")


def _existing_pool(owner: Owner) -> Any:
    try:
        return ray.get_actor(_pool_name(owner), namespace=NAMESPACE)
    except ValueError:
        raise ClusterError(f"There is no pool of models of {owner!r}.") from None


def _pool_name(owner: Owner) -> str:
    if owner == "all":
        return SHARED
    return f"pool-{_parent_job() if owner == 'parent' else ray.get_runtime_context().get_job_id()}"


def _parent_job() -> str:
    """Return the job of the process that started this one, if it told; else an empty string."""
    known = None if ray_state.in_ray_worker() else parent_process.parent()
    return known[1] if known else ""


def _owner(spec: StatefulSpec) -> tuple[Owner, StatefulSpec]:
    """Return whose actors hold the model of `spec`, and the spec as they are to load it.

    The children of one process, such as joblib's, share models: each is a job of its own to Ray, and they would take
    the room from one another.
    """
    if spec.placement.keep_alive_s is not None:
        return "all", spec
    if not _parent_job():
        return "job", spec
    if _look("parent", spec.key):
        return "parent", spec
    own: Any = spec
    return "all", replace(own, resources=replace(own.resources, keep_alive_s=_CHILDREN_KEEP_ALIVE_S))


def _ask_pool(owner: Owner, method: str, *args: Any) -> Any:
    """Return what the pool answers, or raise our own error where it raised one, without Ray's trace around it.

    A pool that died is started again, by Ray or else here. It knows nothing then, and its model actors died with it.
    """
    deadline = time.monotonic() + _POOL_RETURNS_S
    while True:
        pool = _pool(owner)
        try:
            return ray.get(getattr(pool, method).remote(*args))
        except RayTaskError as error:
            raise _cause(error) from None
        except ActorUnavailableError:  # being restarted
            pass
        except DIED:
            with _lock:
                if _pools.get(key := f"{ray_state.job_key()} {owner}") is pool:
                    del _pools[key]
        if time.monotonic() > deadline:
            raise ClusterError(_LOST, _LOST_HINT)
        time.sleep(_POLL_S)


def _look(owner: Owner, key: str) -> Opened | None:
    try:
        found: Opened | None = _ask_pool(owner, "look", key)
    except ClusterError:
        if owner != "parent":
            raise
        return None  # the parent has ended, or never loaded a model
    return found


def _open(owner: Owner, spec: StatefulSpec) -> Opened:
    """Have the model loaded and wait for it; show how far its file is, where it has to come from elsewhere first."""
    number, shown_at = None, time.monotonic()
    with slow(f"loading {spec.model} into its actors"), download_bar(spec.model) as show:
        while True:
            opened: Opened = _ask_pool(owner, "open", spec, number, ray_state.is_fixed_size())
            if opened.n_replicas:
                return opened
            number = opened.number
            if time.monotonic() - shown_at >= _SHOW_S:
                _show_transfers(opened.arriving, show)
                shown_at = time.monotonic()
            time.sleep(_POLL_S)


def _show_transfers(actors: Sequence[Any], show: Callable[[int, int], None]) -> None:
    asked = [actor.transfer.options(concurrency_group=ModelActor.ASIDE).remote() for actor in actors]
    with contextlib.suppress(GetTimeoutError, *DIED):
        found = [transfer for transfer in ray.get(asked, timeout=_INFO_S) if transfer is not None]
        if found:  # one for each node: the slowest decides
            slowest = min(found, key=lambda transfer: transfer.done)
            show(slowest.done, slowest.total)


def _unload(owner: Owner, key: str | None) -> list[Freed]:
    """Unload one model of a pool, or all; return what each process held that was still there.

    The actors end without closing their models, which a call may be at work with: the system frees what they held.
    """
    try:
        replicas = ray.get(_existing_pool(owner).close.remote(key))
    except (ClusterError, *DIED):  # no pool, so no models
        return []
    asked = [handle.info.options(concurrency_group=ModelActor.ASIDE).remote() for _, handle, _ in replicas]
    freed = []
    for (model, _, known), answer in zip(replicas, asked, strict=True):
        info = known
        try:
            info = ray.get(answer, timeout=_INFO_S)
        except GetTimeoutError:  # too busy to say what it holds by now
            pass
        except DIED:
            continue
        freed.append(Freed(model, info.node, info.pid, info.memory_mb))
    for _, handle, _ in replicas:
        ray.kill(handle)
    for _, handle, _ in replicas:
        with contextlib.suppress(GetTimeoutError, *DIED):
            ray.get(handle.ping.remote(), timeout=_GONE_S)
    return freed


def _cause(error: RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, SkllmRayError) else error
