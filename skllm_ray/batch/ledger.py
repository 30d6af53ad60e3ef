"""What a running job has done and spent so far, shared by its workers: progress, the budget, and the word to stop."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

_FEW: Final = 16  # requests: a smaller grant is not worth a call while others may give back


@dataclass
class Progress:
    """Counts since the job's beginning, or since the last report of a worker."""

    rows: int = 0
    asked: int = 0
    """Requests that were sent."""
    reused: int = 0
    """Rows whose reply was there already: from an interrupted run."""
    duplicates: int = 0
    """Rows whose text another row had."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    """Replies of unknown price."""
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, other: Progress) -> None:
        """Add another's counts."""
        for name in ("rows", "asked", "reused", "duplicates", "prompt_tokens", "completion_tokens", "cached_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.cost_usd += other.cost_usd
        self.unpriced += other.unpriced
        self.errors.update(other.errors)


@dataclass(frozen=True)
class Snapshot:
    """The ledger, at one moment."""

    progress: Progress
    waiting_for: str
    """Why workers wait, if they do: a server that is down."""
    stopped: str
    """Why the job was told to stop, if it was."""
    exhausted: bool


@dataclass(frozen=True)
class Grant:
    """How many requests a worker may send."""

    n: int
    wait: bool = False
    """Whether to ask again soon: others may give back."""
    stop: bool = False


class Ledger:
    """Counts what workers report; never lets reservations and spending together pass the budget.

    Parameters
    ----------
    budget_usd : float or None
        What may be spent; None for no limit.
    spent_usd : float, default=0
        What earlier runs on the same output spent, or may have spent.
    """

    def __init__(self, budget_usd: float | None = None, spent_usd: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._budget_usd = budget_usd
        self._spent_usd = spent_usd
        self._reserved: dict[str, float] = {}
        self._progress = Progress()
        self._waiting: dict[str, str] = {}
        self._stopped = ""
        self._exhausted = False
        self._answered_at = 0.0

    def reserve(self, worker: str, costs: list[float]) -> Grant:
        """Set aside the most that some of a worker's next requests may cost; it holds one reservation at a time."""
        with self._lock:
            if self._stopped:
                return Grant(0, stop=True)
            if self._budget_usd is None:
                return Grant(len(costs))
            left = self._budget_usd - self._spent_usd - sum(self._reserved.values())
            granted = 0.0
            n = 0
            for cost in costs:
                if granted + cost > left:
                    break
                granted += cost
                n += 1
            if n < min(_FEW, len(costs)):
                if self._reserved:
                    return Grant(0, wait=True)
                self._exhausted = True
                return Grant(0, stop=True)
            self._reserved[worker] = granted
            return Grant(n)

    def settle(self, worker: str, spent_usd: float) -> None:
        """Turn a worker's reservation into what its requests did cost."""
        with self._lock:
            self._reserved.pop(worker, None)
            self._spent_usd += spent_usd

    def forget(self, unit: str) -> None:
        """Count as spent what a dead worker had set aside for a unit: nobody knows what came of its requests."""
        with self._lock:
            for worker in [worker for worker in self._reserved if worker.startswith(f"{unit} ")]:
                self._spent_usd += self._reserved.pop(worker)
            for worker in [worker for worker in self._waiting if worker.startswith(f"{unit} ")]:
                del self._waiting[worker]

    def report(self, progress: Progress, *, answered: bool) -> None:
        """Add what a worker did since its last report; `answered` where the server gave an answer."""
        with self._lock:
            self._progress.add(progress)
            if answered:
                self._answered_at = time.monotonic()

    def wait_for(self, worker: str, reason: str) -> None:
        """Note that a worker waits for a server, or with an empty `reason` that it does not any more."""
        with self._lock:
            if reason:
                self._waiting[worker] = reason
            else:
                self._waiting.pop(worker, None)

    def answered_within(self, seconds: float) -> bool:
        """Return whether the server answered any worker within the last `seconds`."""
        with self._lock:
            return time.monotonic() - self._answered_at < seconds

    def stop(self, reason: str) -> None:
        """Tell all workers to begin nothing more; the first reason stands."""
        with self._lock:
            self._stopped = self._stopped or reason

    def stopped(self) -> str:
        """Return why the job was told to stop; empty if it was not."""
        with self._lock:
            return self._stopped

    def snapshot(self) -> Snapshot:
        """Return all of it."""
        with self._lock:
            copy = Progress()
            copy.add(self._progress)
            waiting = next(iter(self._waiting.values()), "")
            return Snapshot(copy, waiting, self._stopped, self._exhausted)
