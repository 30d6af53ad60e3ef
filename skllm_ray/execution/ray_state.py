"""What this process knows of Ray, without starting it."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import fields

NAMESPACE = "skllm_ray"


_state = {"local_mode": False, "forked": False}
_started: dict[str, tuple[bool, bool]] = {}
"""The job that this library connected to a Ray itself, whether that Ray is of a fixed size, and whether it is this
process's own. Another Ray, which the user joined later, is another job."""


def _after_fork() -> None:
    ray = sys.modules.get("ray")
    _state["forked"] = bool(ray is not None and ray.is_initialized())


def is_local_mode() -> bool:
    """Return whether everything runs in this process."""
    return _state["local_mode"]


def is_initialised() -> bool:
    """Return whether this process is connected to Ray, without importing it."""
    return _initialised()


def is_fixed_size() -> bool:
    """Return whether Ray runs on this machine alone, so that waiting brings no new node."""
    return is_started_here() and _started[job_key()][0]


def ends_with_this_process() -> bool:
    """Return whether this library has started the Ray that this process uses, so that nothing in it outlives it."""
    return is_started_here() and _started[job_key()][1]


def started_here(*, fixed_size: bool, own: bool = False) -> None:
    """Note that this library has connected the process to the Ray that it is connected to now."""
    _started.clear()
    _started[job_key()] = fixed_size, own


def is_started_here() -> bool:
    """Return whether this library has connected the process to the Ray that it is connected to, if it is to any."""
    return bool(_started) and _initialised() and job_key() in _started


def in_ray_worker() -> bool:
    """Return whether this process is a Ray worker: the call comes from inside a task or an actor."""
    if not _initialised():
        return False
    import ray

    return int(ray.get_runtime_context().worker.mode) == int(ray.WORKER_MODE)


def job_key() -> str:
    """Return what tells this job from all others, of this cluster and of any that the process used before."""
    import ray

    context = ray.get_runtime_context()
    return f"{context.gcs_address}/{context.get_job_id()}"


def shared_name(name: str, *messages: type) -> str:
    """Return the name of an actor that outlives jobs, with a mark of the `messages` which it is told.

    Jobs of two versions that would not understand each other have an actor each: a job that speaks to an older actor
    would lose its rows.

    Parameters
    ----------
    name : str
        What the actor is.
    *messages : type
        The dataclasses that travel to it and back.
    """
    told = [(one.__module__, one.__qualname__, [(f.name, str(f.type)) for f in fields(one)]) for one in messages]
    return f"{name}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"


def _initialised() -> bool:
    ray = sys.modules.get("ray")
    return bool(ray is not None and ray.is_initialized())


os.register_at_fork(after_in_child=_after_fork)
