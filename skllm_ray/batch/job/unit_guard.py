"""Whether a unit may go on: its run still holds the output, and nobody told it to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Self

from skllm_ray.batch.output.fence import Fence
from skllm_ray.errors import ClusterError, OutputInUseError
from skllm_ray.tasks.base import RowError

_POLL_S: Final = 1.0


class UnitStopped(Exception):  # noqa: N818  it is a state of the unit as much as an error
    """The unit cannot go on now; what was paid for is in its journal.

    Parameters
    ----------
    kind : str
        "fatal", "outage", "budget", "overtaken", "stopped" or "moved".
    reason : str
        What the user is told.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


class UnitGuard:
    """Asked before each request whether it may be sent.

    Parameters
    ----------
    fence : Fence
        Tells whether the run still holds its output.
    stopped : callable
        Returns why the job was told to stop; empty where it was not. It may take time: a thread asks it every second,
        from the first request on.
    leaves : callable, optional
        Returns whether this node is about to go, so that the unit is to go on elsewhere.
    """

    def __init__(self, fence: Fence, stopped: Callable[[], str], leaves: Callable[[], bool] = lambda: False) -> None:
        self._fence = fence
        self._leaves = leaves
        self._stopped = stopped
        self._reason: tuple[str, str] | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def check(self) -> None:
        """Raise `UnitStopped` where the unit may not go on."""
        if self._reason is None:
            try:
                self._fence.check()
            except OutputInUseError as error:
                self._reason = "overtaken", str(error)
        if self._reason is None and self._leaves():
            self._reason = "moved", "its node is about to go"
        if self._reason is not None:
            raise UnitStopped(*self._reason)

    def __call__(self) -> RowError | None:
        """Return why a request may not be sent, or None. Called from a client's event loop."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="skllm-ray-guard", daemon=True)
            self._thread.start()
        try:
            self.check()
        except UnitStopped as stop:
            return RowError("cancelled", stop.reason)
        return None

    def _follow(self) -> None:
        while not self._ended.wait(_POLL_S):
            try:
                reason = self._stopped()
            except ClusterError:  # the unit's own thread sees to it
                return
            if reason:
                self._reason = self._reason or ("stopped", reason)
                return
