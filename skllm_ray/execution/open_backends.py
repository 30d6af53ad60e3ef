"""Backends that are open in this process: opened once, kept for the next call, closed when many others were used since.

They stand in ``ModelCache``, as the pools of model actors do. What a call uses is never closed under it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from weakref import WeakValueDictionary

from skllm_ray.config import Secret, resolve_secret
from skllm_ray.errors import ClusterError, SkllmRayWarning
from skllm_ray.execution import ray_state
from skllm_ray.llm.base import Backend, BackendSpec
from skllm_ray.llm.open_models import Freed, ModelCache, key_here
from skllm_ray.llm.rate_limit.installed import install_limiter
from skllm_ray.llm.reply_cache import with_cache

MOST_CLIENTS: Final = 16
"""Clients of APIs that stay open while nobody uses them; each has a thread and connections."""
MOST_MODELS: Final = 4
"""Models that stay loaded in this process while nobody uses them."""

_state = threading.RLock()
_locks: WeakValueDictionary[str, _Lock] = WeakValueDictionary()


class _Lock:
    """Held while one backend is opened, so that two threads that ask it first do not open it twice."""

    def __init__(self) -> None:
        self.held = threading.RLock()


class OpenBackend:
    """A backend that is open in this process, kept in ``ModelCache`` for the next call."""

    def __init__(self, spec: BackendSpec, backend: Backend) -> None:
        self.spec = spec
        self.backend = backend
        self.pid = os.getpid()
        self.n_users = 0
        self.used_at = time.monotonic()
        self.ends_with_process = not spec.capabilities.stateful and not ray_state.is_initialised()

    def close(self) -> list[Freed]:
        """Close the backend, unless it belongs to a parent process."""
        if self.pid != os.getpid():
            return []
        if not self.spec.capabilities.stateful:
            self.backend.close()
            return []
        import psutil

        before = psutil.Process().memory_info().rss
        self.backend.close()
        freed = max(0, before - psutil.Process().memory_info().rss)
        return [Freed(self.spec.model, "this process", self.pid, freed / 1e6)]


@contextmanager
def opened(spec: BackendSpec, secrets: Mapping[str, Secret]) -> Iterator[Backend]:
    """Give the backend of `spec` in this process, under the limit that its requests share; it stays open meanwhile.

    Raises
    ------
    ClusterError
        If a parent process opened it before a fork: its threads do not exist here.
    """
    use_limiter()
    if not spec.capabilities.stays_open:
        yield _open(spec, secrets)
        return
    held = _hold(spec, secrets, n_users=1)
    try:
        yield held.backend
    finally:
        with _state:
            held.n_users -= 1
            held.used_at = time.monotonic()
        _close_unused(stateful=spec.capabilities.stateful)


def open_here(spec: BackendSpec, secrets: Mapping[str, Secret]) -> Backend:
    """Return the backend of `spec` in this process, as it is kept for calls."""
    return _hold(spec, secrets).backend


def use_limiter() -> None:
    """Let this process's requests share the limit of its cluster; without one, the process keeps it by itself."""
    if ray_state.is_local_mode() or not ray_state.is_initialised():
        install_limiter(None)
        return
    from skllm_ray.execution.rate_limiter import use_cluster_limiter

    use_cluster_limiter()


def warn_of_changes(spec: BackendSpec) -> None:
    """Warn that the model of `spec` is loaded with other settings."""
    warnings.warn(
        f"{spec.model} stays loaded with the settings of its first use; changed ones take effect after "
        "ModelCache.clear().",
        SkllmRayWarning,
        stacklevel=3,
    )


def _hold(spec: BackendSpec, secrets: Mapping[str, Secret], n_users: int = 0) -> OpenBackend:
    """Return what is open, opened at the first call, with so many users more. Others can open theirs meanwhile."""
    key = key_here(spec.key)
    with _state:
        lock = _locks.setdefault(key, _Lock())
    with lock.held:
        with _state:  # nobody closes it between the look and the note that it is used
            held = _look(key, spec)
            if held is not None:
                held.n_users += n_users
        if held is None:
            held = OpenBackend(spec, _open(spec, secrets))
            held.n_users += n_users
            ModelCache.store(key, held)
        elif spec.capabilities.stateful and held.spec != spec:
            warn_of_changes(spec)
        return held


def _look(key: str, spec: BackendSpec) -> OpenBackend | None:
    held = ModelCache.get(key)
    if not isinstance(held, OpenBackend):
        return None
    if held.pid != os.getpid():
        raise ClusterError(
            f"{spec.model} was opened before this process was forked, and its threads do not survive a fork.",
            'Start child processes with the "spawn" method.',
        )
    return held


def _open(spec: BackendSpec, secrets: Mapping[str, Secret]) -> Backend:
    return with_cache(spec.open(lambda reference: resolve_secret(reference, secrets)), spec)


def _close_unused(*, stateful: bool) -> None:
    """Close those that were used longest ago, where more are open than should stay."""
    most = MOST_MODELS if stateful else MOST_CLIENTS
    with _state:
        kept = {key: one for key, one in ModelCache.entries().items() if isinstance(one, OpenBackend)}
        alike = {key: one for key, one in kept.items() if one.spec.capabilities.stateful == stateful}
        idle = sorted((key for key, one in alike.items() if not one.n_users), key=lambda key: alike[key].used_at)
        closing = idle[: max(0, len(alike) - most)]
        for key in closing:
            ModelCache.forget(key)
    for key in closing:
        alike[key].close()


@atexit.register
def _close_at_exit() -> None:
    """Close connections in order, rather than leave that to whatever is torn down last."""
    for held in ModelCache.entries().values():
        if isinstance(held, OpenBackend) and held.ends_with_process:
            held.close()
