"""SIGTERM and Ctrl-C while a job runs: nothing more is sent, what is in flight is kept, and the run ends by itself."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, Final, Self

GRACE_S: Final = 15.0
"""How long requests in flight are waited for, in seconds; Kubernetes gives a process 30 s in all."""
_OURS: Final = ("ray.", "skllm_ray.")
_is_told: ContextVar[Callable[[], bool] | None] = ContextVar("skllm_ray_is_told_to_end", default=None)


@contextmanager
def ending_when(is_told: Callable[[], bool]) -> Iterator[None]:
    """Let the runs of this thread, which gets no signals, end as after SIGTERM once `is_told` returns True."""
    token = _is_told.set(is_told)
    try:
        yield
    finally:
        _is_told.reset(token)


class Interruption:
    """Notes a signal instead of ending the process; a second signal, or the end of the grace, ends the run at once.

    That raises ``KeyboardInterrupt``, or ``SystemExit`` for SIGTERM. Signals that the program itself handles are left
    to it, and nothing is done where this is not the main thread.

    Parameters
    ----------
    tell : callable or None, default=None
        Called with the reason, in a thread of its own: the main thread may be at work and cannot look.
    """

    def __init__(self, tell: Callable[[str], object] | None = None) -> None:
        self._number = 0
        self._tell = tell
        self._is_told = _is_told.get()
        self._ends = False
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if _is_default(before):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._ends and exception[0] is not None:  # Ray, where it waits for an answer, makes another code of it
            raise self._end() from None

    @property
    def signal(self) -> int:
        """Which one came; 0 where none did."""
        if not self._number and self._is_told is not None and self._is_told():
            self._number = signal.SIGTERM
        return self._number

    @property
    def reason(self) -> str:
        """The same in words; empty where none came."""
        return "" if not self.signal else f"interrupted by {signal.Signals(self.signal).name}"

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._number:
            self._ends = True
            raise self._end()
        self._number = number
        if self._tell is not None:
            threading.Thread(target=self._tell, args=(self.reason,), daemon=True).start()
        self._timer = threading.Timer(GRACE_S, os.kill, (os.getpid(), number))
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> BaseException:
        return SystemExit(128 + signal.SIGTERM) if self.signal == signal.SIGTERM else KeyboardInterrupt()


def _is_default(handler: Any) -> bool:
    if handler in {signal.SIG_DFL, signal.default_int_handler}:
        return True
    module = inspect.getmodule(handler) if callable(handler) else None
    return module is not None and f"{module.__name__}.".startswith(_OURS)
