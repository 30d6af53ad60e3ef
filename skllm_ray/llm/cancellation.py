"""What the blocks of one call share, in every process: a bound on the requests in flight, and an end for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from skllm_ray.tasks.base import RowError

_MOST_ENDED = 1000


@dataclass(frozen=True, slots=True)
class Call:
    """One call of ``predict`` or the like. It travels with the blocks."""

    name: str
    """Tells it from all other calls of the cluster; empty for one whose end concerns no other block."""
    max_in_flight: int | None = None
    """The most requests that one block may have in flight; None leaves it to the shared limit."""
    guard: Callable[[], RowError | None] | None = field(default=None, compare=False)
    """Asked right before each request is sent, on the event loop: why it may not be sent, or None. Of this process."""
    keeps_requests: bool = False
    """Whether the rows are to hold what was asked."""

    @property
    def ended(self) -> RowError | None:
        """Why nothing more is to be sent, as far as this process knows."""
        return _ended.get(self.name)

    def end(self, error: RowError) -> None:
        """Let no block of this process send anything more."""
        end_call(self.name, error)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let backends know what they are asked for."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)


_active: ContextVar[Call | None] = ContextVar("skllm_ray_call", default=None)
_ended: dict[str, RowError] = {}
_ending = threading.Lock()


def active_call() -> Call | None:
    """Return the call that this thread works for; None for a backend that is asked by itself."""
    return _active.get()


def end_call(name: str, error: RowError) -> None:
    """Let no block of the call `name` send anything more from this process."""
    with _ending:
        _ended.setdefault(name, error)
        if len(_ended) > _MOST_ENDED:
            del _ended[next(iter(_ended))]


def not_sent(cause: RowError) -> RowError:
    """Return the error of a row that was not sent since `cause` ended its call."""
    message = f"Not asked: another row ended the job ({cause.kind}: {cause.message})"
    return RowError("cancelled", message, retryable=cause.retryable)
