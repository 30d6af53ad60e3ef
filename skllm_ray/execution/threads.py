"""A call that asks local models alone: this process hands its blocks to the model actors, and no task has to start.

A task's process takes seconds of a CPU to start, and a call would wait for two of them for each replica. What a block
costs here, rendering, pickling and parsing, is little beside what a model takes for it.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

from skllm_ray.errors import collected_warnings, warn
from skllm_ray.execution.assignment import block_sizes
from skllm_ray.tasks.base import Row, RowError

MOST_THREADS: Final = 64
"""Blocks that one process hands out at once; beyond that, tasks share the work of rendering and parsing."""


def through_threads(
    n_rows: int, n_threads: int, process: Callable[[range], list[Row[Any]]], end: Callable[[RowError], None]
) -> Generator[tuple[Sequence[int], list[Row[Any]]], None, None]:
    """Yield blocks as they finish: their rows' places, and the rows.

    Parameters
    ----------
    n_rows : int
        Rows of the call.
    n_threads : int
        Blocks at once.
    process : callable
        Returns the rows at some places; called in threads.
    end : callable
        Lets nothing more be sent, where nobody waits for the call any more.
    """
    sizes = block_sizes(n_rows, n_threads)
    waiting = deque(range(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0)))
    done: queue.SimpleQueue[tuple[range, list[Row[Any]] | BaseException, list[str]]] = queue.SimpleQueue()

    def work() -> None:
        while waiting:
            try:
                places = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            with collected_warnings() as messages:
                try:
                    found: list[Row[Any]] | BaseException = process(places)
                except BaseException as error:  # noqa: BLE001  raised where the call was made
                    found = error
                    waiting.clear()
            done.put((places, found, messages))

    for _ in range(min(n_threads, len(waiting))):
        threading.Thread(target=work, name="skllm-ray-block", daemon=True).start()
    told: set[str] = set()
    try:
        for _ in sizes:
            places, found, messages = done.get()
            for message in dict.fromkeys(messages):
                if message not in told:
                    told.add(message)
                    warn(message)
            if isinstance(found, BaseException):
                raise found
            yield places, found
    except BaseException:  # Ctrl-C or SIGTERM, or what stops the call
        waiting.clear()
        end(RowError("cancelled", "The call was interrupted.", fatal=True))
        raise
