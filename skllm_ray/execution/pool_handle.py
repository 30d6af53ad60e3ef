"""The pool actors that there are, by whose their models are, and how they are asked."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any, Final, Literal

import ray
from ray.exceptions import ActorUnavailableError, RayTaskError

from skllm_ray.errors import ClusterError, SkllmRayError
from skllm_ray.execution import parent_process, ray_state
from skllm_ray.execution.arrivals import DIED
from skllm_ray.execution.pool_actor import SHARED, PoolActor
from skllm_ray.execution.pool_state import Opened
from skllm_ray.execution.ray_state import NAMESPACE
from skllm_ray.llm.base import StatefulSpec

_CHILDREN_KEEP_ALIVE_S: Final = 20.0
_POLL_S: Final = 0.05
_POOL_RETURNS_S: Final = 60.0
LOST: Final = (
    "The actor that hands out models is lost again and again.",
    "See Ray's logs for what ends it, and call again.",
)
"""What is told, and what to do, where a pool does not stay."""

_pools: dict[str, Any] = {}
_lock = threading.RLock()

Owner = Literal["job", "parent", "all"]
"""Whose a pool is: this job's, that of the process which started this one, or that of all jobs."""


def pool_of(owner: Owner) -> Any:
    """Return the pool actor of `owner`, created by the first process that asks; a parent's must be there."""
    job = ray_state.job_key()
    key = f"{job} {owner}"
    with _lock:
        if key not in _pools:
            for old in [one for one in _pools if not one.startswith(f"{job} ")]:  # of a Ray that this process has left
                del _pools[old]
            _pools[key] = existing_pool("parent") if owner == "parent" else _new_pool(owner)
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


def existing_pool(owner: Owner) -> Any:
    """Return the pool actor of `owner`, which must be there."""
    try:
        return ray.get_actor(_pool_name(owner), namespace=NAMESPACE)
    except ValueError:
        raise ClusterError(f"There is no pool of models of {owner!r}.") from None


def _pool_name(owner: Owner) -> str:
    if owner == "all":
        return SHARED
    return f"pool-{parent_job() if owner == 'parent' else ray.get_runtime_context().get_job_id()}"


def parent_job() -> str:
    """Return the job of the process that started this one, if it told; else an empty string."""
    known = None if ray_state.in_ray_worker() else parent_process.parent()
    return known[1] if known else ""


def owner_of(spec: StatefulSpec) -> tuple[Owner, StatefulSpec]:
    """Return whose actors hold the model of `spec`, and the spec as they are to load it.

    The children of one process, such as joblib's, share models: each is a job of its own to Ray, and they would take
    the room from one another.
    """
    if spec.placement.keep_alive_s is not None:
        return "all", spec
    if not parent_job():
        return "job", spec
    if look("parent", spec.key):
        return "parent", spec
    own: Any = spec
    return "all", replace(own, resources=replace(own.resources, keep_alive_s=_CHILDREN_KEEP_ALIVE_S))


def ask_pool(owner: Owner, method: str, *args: Any) -> Any:
    """Return what the pool answers, or raise our own error where it raised one, without Ray's trace around it.

    A pool that died is started again, by Ray or else here. It knows nothing then, and its model actors died with it.
    """
    deadline = time.monotonic() + _POOL_RETURNS_S
    while True:
        pool = pool_of(owner)
        try:
            return ray.get(getattr(pool, method).remote(*args))
        except RayTaskError as error:
            raise cause_of(error) from None
        except ActorUnavailableError:  # being restarted
            pass
        except DIED:
            with _lock:
                if _pools.get(key := f"{ray_state.job_key()} {owner}") is pool:
                    del _pools[key]
        if time.monotonic() > deadline:
            raise ClusterError(*LOST)
        time.sleep(_POLL_S)


def look(owner: Owner, key: str) -> Opened | None:
    """Return how far the model of a key is; None where it is not there and not on its way."""
    try:
        found: Opened | None = ask_pool(owner, "look", key)
    except ClusterError:
        if owner != "parent":
            raise
        return None  # the parent has ended, or never loaded a model
    return found


def cause_of(error: RayTaskError) -> BaseException:
    """Return our own error that a pool or an actor raised, without Ray's trace around it."""
    return error.cause if isinstance(error.cause, SkllmRayError) else error
