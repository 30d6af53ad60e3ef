"""The Ray tasks that do units: how many units each gets, and which are done again because a worker died."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

_TASK_S: Final = 1.0  # the least time that a task should take
_MOST_DEATHS: Final = 3
_FAREWELL_S: Final = 5.0  # for cancelled tasks, to write down what they know


class Unit(Protocol):
    """A part of a job that a worker does."""

    @property
    def key(self) -> Hashable:
        """What tells it from the others, also when it is done again."""
        ...


@dataclass(frozen=True)
class Died:
    """What stands for the result of a unit whose workers died."""

    reason: str


@dataclass(frozen=True)
class Moved:
    """What stands for the result of a unit that goes on elsewhere, because its worker's node is about to go."""


class UnitTasks:
    """The tasks that run, a few at a time.

    Parameters
    ----------
    begin : callable
        Starts a task for a list of units and the shared object; returns its reference.
    shared : object
        What all units share.
    n_tasks : int
        How many tasks run at once.

    Attributes
    ----------
    n_tasks : int
        How many tasks run at once; it may change.
    running : dict
        The units of each task that runs, by its reference.
    """

    def __init__(self, begin: Callable[[list[Any], Any], Any], shared: Any, n_tasks: int) -> None:
        self._begin = begin
        self._shared = shared
        self.n_tasks = n_tasks
        self.running: dict[Any, _Batch] = {}
        self._deaths: Counter[Hashable] = Counter()
        self._suspects: set[Hashable] = set()
        self._pace = _Pace()

    def start(self, waiting: deque[Any]) -> None:
        """Start tasks for units that wait, as many as may run at once."""
        while waiting and len(self.running) < self.n_tasks:
            batch = _next_batch(waiting, self._pace.n_units(len(waiting), self.n_tasks), self._suspects)
            self.running[self._begin(batch, self._shared)] = _Batch(batch, time.monotonic())

    def results(
        self, reference: Any, waiting: deque[Any], again: Callable[[Any], Any]
    ) -> Generator[tuple[Any, Any], None, None]:
        """Yield the units of a task that has ended, each with its result; put those to be done again back first."""
        batch = self.running[reference].units
        self._pace.learn(self.running.pop(reference))
        results = _results(reference, len(batch))
        shared_it = len(batch) > 1 and all(isinstance(result, Died) for result in results)
        self._suspects.update(unit.key for unit in (batch if shared_it else ()))
        for unit, result in zip(batch, results, strict=True):
            if isinstance(result, Moved):
                waiting.appendleft(again(unit))
            elif isinstance(result, Died) and (shared_it or self._deaths[unit.key] + 1 < _MOST_DEATHS):
                self._deaths[unit.key] += not shared_it
                waiting.appendleft(again(unit))
            else:
                yield unit, result

    def cancel(self) -> None:
        """Cancel what runs, and give it a few seconds to write down what it knows."""
        import ray

        for reference in self.running:
            with suppress(Exception):
                ray.cancel(reference)
        if self.running:
            with suppress(Exception):
                ray.wait(list(self.running), num_returns=len(self.running), timeout=_FAREWELL_S)


@dataclass(frozen=True)
class _Batch:
    """Units that one task does, one after the other."""

    units: list[Unit]
    began: float


class _Pace:
    """Decides how many units a task gets: so many that a worker does not wait for the driver most of its time."""

    def __init__(self) -> None:
        self._seconds = _TASK_S

    def learn(self, batch: _Batch) -> None:
        self._seconds = (time.monotonic() - batch.began) / len(batch.units)

    def n_units(self, n_waiting: int, n_tasks: int) -> int:
        """Return one where units are long, more where they are short, and again one towards the end."""
        return max(1, min(int(_TASK_S / max(1e-3, self._seconds)), n_waiting // (4 * n_tasks), n_waiting))


def _next_batch(waiting: deque[Any], n: int, suspects: set[Hashable]) -> list[Any]:
    """Return the next units of one task; one that may have killed its worker goes by itself."""
    batch = [waiting.popleft()]
    while waiting and len(batch) < n and not suspects & {batch[0].key, waiting[0].key}:
        batch.append(waiting.popleft())
    return batch


def _results(reference: Any, n_units: int) -> list[Any]:
    """Return the results of a task's units; each is a `Died` where its worker died."""
    import ray
    from ray.exceptions import RayError

    try:
        return list(ray.get(reference))
    except RayError as error:
        return [Died(type(error).__name__)] * n_units
