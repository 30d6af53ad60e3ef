"""What a running job has done and spent so far, shared by its workers: progress, the budget, and why it stops."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from skllm_ray.batch.output.progress import Progress

_FEW: Final = 16  # requests: a smaller grant is not worth a call while others may give back
_FIRST: Final = 200  # rows with a text: when all of them fail, others will
_WINDOW: Final = 5000  # rows with a text, anywhere in a run
_FAILED_SHARE: Final = 0.95


@dataclass(frozen=True)
class Snapshot:
    """The ledger, at one moment."""

    progress: Progress
    waiting_for: str
    """Why workers wait, if they do: a server that is down."""
    stopped: str
    """Why the job was told to stop, if it was."""
    ledger: str = ""
    """Names the ledger: where its process dies, another one begins to count."""
    reason: str = ""
    """Why the first failed row failed."""
    in_vain: bool = False
    """Whether the job was told to stop since nearly all rows failed."""


@dataclass(frozen=True)
class Grant:
    """How many requests a worker may send."""

    n: int
    held: bool = False
    """Whether money was set aside for them, to be confirmed when they are written down."""
    wait: bool = False
    """Whether to ask again soon: others may give back."""
    stop: bool = False


class SharedLedger(Protocol):
    """The job's ledger, wherever it is."""

    def reserve(self, worker: str, costs: list[float], model: str = "") -> Grant:
        """Ask for permission to send."""
        ...

    def confirm(self, worker: str) -> bool:
        """Ask whether the permission stands, now that the requests are written down."""
        ...

    def settle(self, worker: str, spent_usd: float, model: str = "") -> None:
        """Tell what it did cost."""
        ...

    def report(
        self, progress: Progress, *, answered: bool, reason: str = "", last: bool = False, model: str = ""
    ) -> None:
        """Tell what was done, and why the first failed row failed; waits only if it is the `last` report."""
        ...

    def wait_for(self, worker: str, reason: str) -> None:
        """Tell that this worker waits; does not wait itself."""
        ...

    def answered_within(self, seconds: float, model: str = "") -> bool:
        """Return whether the model's server answered anyone lately."""
        ...

    def stopped(self) -> str:
        """Return why the job was told to stop."""
        ...


class Ledger:
    """Counts what workers report; never lets reservations and spending together pass the budget.

    Parameters
    ----------
    budget_usd : float or None
        What may be spent; None for no limit.
    spent_usd : float, default=0
        What earlier runs on the same output spent, or may have spent.
    keep_going : bool, default=False
        Whether to go on though nearly all rows fail.
    """

    def __init__(self, budget_usd: float | None = None, spent_usd: float = 0.0, *, keep_going: bool = False) -> None:
        self._lock = threading.Lock()
        self._budget_usd = budget_usd
        self._spent_usd = spent_usd
        self._reserved: dict[str, float] = {}
        self._progress = Progress()
        self._waiting: dict[str, str] = {}
        self._stopped = ""
        self._answered_at: dict[str, float] = {}
        self._name = uuid.uuid4().hex
        self._settled: Counter[str] = Counter()
        self._resumes = spent_usd > 0
        self._proven: set[str] = set()
        """Models whose price was seen: before, each worker sends one request, and looks."""
        self._failures = None if keep_going else Failures()
        self._reason = ""

    def reserve(self, worker: str, costs: list[float], model: str = "") -> Grant:
        """Set aside the most that some of a worker's next requests may cost; it holds one reservation at a time."""
        with self._lock:
            if self._stopped:
                return Grant(0, stop=True)
            if self._budget_usd is None:
                return Grant(len(costs))
            others = [held for name, held in self._reserved.items() if name != worker]
            left = self._budget_usd - self._spent_usd - sum(others)
            granted = 0.0
            n = 0
            for cost in costs:
                if granted + cost > left:
                    break
                granted += cost
                n += 1
            if n < min(_FEW, len(costs)):
                return Grant(0, wait=bool(others), stop=not others)
            if self._settled[model] < _FEW and not (self._resumes or model in self._proven):
                n, granted = 1, costs[0]
            self._reserved[worker] = granted
            return Grant(n, held=True)

    def covers(self, costs: Iterable[float]) -> bool:
        """Return whether what is left covers some requests at the most that they can cost."""
        with self._lock:
            if self._budget_usd is None:
                return True
            return sum(costs) <= self._budget_usd - self._spent_usd - sum(self._reserved.values())

    def confirm(self, worker: str) -> bool:
        """Return whether a worker's reservation stands, now that its requests are written down.

        It does not where this ledger was made from the output after the death of another: it may lack what was not
        written down yet.
        """
        with self._lock:
            return worker in self._reserved

    def settle(self, worker: str, spent_usd: float, model: str = "") -> None:
        """Turn a worker's reservation into what its requests did cost.

        One that is not known here was counted as spent, as a whole, when this ledger was made from the output.
        """
        with self._lock:
            if self._reserved.pop(worker, None) is not None:
                self._spent_usd += spent_usd
                self._settled[model] += 1
                self._proven.update([model] if spent_usd > 0 else [])

    def forget(self, unit: str) -> None:
        """Count as spent what a dead worker had set aside for a unit: its requests may have been paid for."""
        with self._lock:
            for worker in [worker for worker in self._reserved if worker.startswith(f"{unit} ")]:
                self._spent_usd += self._reserved.pop(worker)
            for worker in [worker for worker in self._waiting if worker.startswith(f"{unit} ")]:
                del self._waiting[worker]

    def report(
        self, progress: Progress, *, answered: bool, reason: str = "", last: bool = False, model: str = ""
    ) -> None:
        """Add what a worker did since its last report; `answered` where the server gave an answer."""
        del last
        with self._lock:
            self._progress.add(progress)
            self._reason = self._reason or reason
            if answered:
                self._answered_at[model] = time.monotonic()
            if self._failures is not None and self._failures.add(progress):
                told = f". The first reason: {self._reason}" if self._reason else ""
                self._stopped = self._stopped or f"{self._failures.told}{told}"

    def wait_for(self, worker: str, reason: str) -> None:
        """Note that a worker waits for a server, or with an empty `reason` that it does not any more."""
        with self._lock:
            if reason:
                self._waiting[worker] = reason
            else:
                self._waiting.pop(worker, None)

    def answered_within(self, seconds: float, model: str = "") -> bool:
        """Return whether the model's server answered any worker within the last `seconds`; within infinity: ever."""
        with self._lock:
            return time.monotonic() - self._answered_at.get(model, -math.inf) < seconds

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
            in_vain = self._failures is not None and bool(self._failures.told)
            return Snapshot(copy, waiting, self._stopped, self._name, self._reason, in_vain)


class Failures:
    """Tells when a job is in vain: its first 200 rows with a text all fail, or 95% of any 5,000.

    Attributes
    ----------
    told : str
        Why it is in vain; empty where it is not.
    """

    def __init__(self) -> None:
        self.told = ""
        self._rows = self._failed = 0
        self._recent: deque[tuple[int, int]] = deque()
        self._in_recent = [0, 0]

    def add(self, progress: Progress) -> bool:
        """Take what became of some rows; return whether the job is in vain."""
        missing = progress.errors["missing_text"]
        rows, failed = progress.rows - missing, sum(progress.errors.values()) - missing
        self._rows += rows
        self._failed += failed
        self._recent.append((rows, failed))
        self._in_recent = [self._in_recent[0] + rows, self._in_recent[1] + failed]
        while self._in_recent[0] - self._recent[0][0] >= _WINDOW:
            rows, failed = self._recent.popleft()
            self._in_recent = [self._in_recent[0] - rows, self._in_recent[1] - failed]
        n, bad = self._in_recent
        if self._rows >= _FIRST and self._failed >= self._rows:
            self.told = self.told or f"all of the first {self._rows:,} rows with a text failed"
        elif n >= _WINDOW and bad >= _FAILED_SHARE * n:
            self.told = self.told or f"{bad:,} of {n:,} rows in succession failed"
        return bool(self.told)
