"""SIGTERM during a call, as Kubernetes and spot instances send it: the call ends as Ctrl-C ends it."""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise ``SystemExit`` in the main thread, so that what was paid for is written down before the end.

    By default it ends a process at once; where Ray runs, with a native stack. A handler that the program has set is
    left to it, and nothing is done in other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if not _is_default(before):
        yield
        return
    came = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came
        del frame
        came = True
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException:
        if came:  # Ray, where it waits for an answer, makes another exception or code of it
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_default(handler: Any) -> bool:
    """Return whether a handler is Python's or Ray's own."""
    if handler is signal.SIG_DFL:
        return True
    module = inspect.getmodule(handler) if callable(handler) else None
    return module is not None and module.__name__.partition(".")[0] == "ray"
