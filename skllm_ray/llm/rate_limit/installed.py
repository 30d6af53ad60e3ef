"""Which limiter the gates of this process ask, and who is told how long requests take."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from skllm_ray.llm.rate_limit.limiter import LocalLimiter
from skllm_ray.llm.rate_limit.messages import Limiter

_state: dict[str, object] = {}
_installing = threading.Lock()


def observe(tell: Callable[[float], object]) -> None:
    """Let `tell` know how long every request of this process took, in seconds; called on event loops."""
    _state["observer"] = tell


def tell_observer(seconds: float) -> None:
    """Tell who observes, if anyone does, that a request took so long."""
    observer = _state.get("observer")
    if callable(observer):
        observer(seconds)


def install_limiter(limiter: Limiter | None) -> None:
    """Make all gates of this process ask `limiter`; None is the process's own."""
    with _installing:
        _state["limiter"] = limiter or _own_limiter()


def current_limiter() -> Limiter:
    """Return the limiter that this process's gates ask."""
    with _installing:
        limiter = _state.get("limiter")
        if limiter is None or _state.get("pid") not in {None, os.getpid()}:
            limiter = _state["limiter"] = _own_limiter()
    return limiter  # type: ignore[return-value]


def _own_limiter() -> LocalLimiter:
    if _state.get("pid") != os.getpid():
        _state["own"], _state["pid"] = LocalLimiter(), os.getpid()
    own = _state["own"]
    assert isinstance(own, LocalLimiter)  # noqa: S101  for the type checker
    return own
