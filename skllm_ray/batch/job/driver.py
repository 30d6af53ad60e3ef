"""A run of a job: its units are given to workers, their results are taken, and progress is shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

from skllm_ray.batch.job.budget import Ledger, Snapshot
from skllm_ray.batch.job.interruption import Interruption
from skllm_ray.batch.job.progress_display import Screen, State
from skllm_ray.batch.job.worker import Call, Unfinished, UnitWork
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import UnitSummary
from skllm_ray.batch.output.progress import Progress
from skllm_ray.batch.output.timeline import save_timeline
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.config import Price, Secret
from skllm_ray.errors import ClusterError
from skllm_ray.execution.assignment import pieces
from skllm_ray.execution.block import Backends
from skllm_ray.execution.metrics import count
from skllm_ray.execution.unit_runner import Failed, Shared, UnitRunner
from skllm_ray.execution.unit_tasks import Died, Moved

_MANY: Final = 8  # units for each task: then the end is far away
_STOPS: Final = frozenset({"fatal", "outage", "budget", "storage", "overtaken"})


@dataclass
class Outcome:
    """How a run ended."""

    kind: str = ""
    """What stopped it: "fatal", "outage", "budget", "storage", "crashed", "overtaken", "in vain", "late",
    "cancelled" or "interrupted".

    Empty where nothing did."""
    stopped: str = ""
    """The same in words."""
    signal: int = 0
    """The signal that interrupted it; 0 where none did."""
    trouble: dict[str, str] = field(default_factory=dict)
    """Units that are not done, with the reason."""
    progress: Progress = field(default_factory=Progress)

    def stop(self, kind: str, reason: str) -> bool:
        """Note why the run ends; return whether this is the first reason."""
        if self.kind:
            return False
        self.kind, self.stopped = kind, reason
        return True


@dataclass(frozen=True)
class Budget:
    """How much an output may cost, and what its ledger is made of: now, and again where its process dies."""

    output_uri: str
    options: StorageOptions
    usd: float | None
    price: Price | None
    keep_going: bool = False
    """Whether the job goes on though nearly all rows fail."""

    def __call__(self, secrets: Mapping[str, Secret]) -> Ledger:
        """Return a ledger that knows what the parts and journals tell: it is never less than what was spent."""
        if self.usd is None:
            return Ledger(keep_going=self.keep_going)
        output = open_folder(self.output_uri, self.options, secrets)
        return Ledger(self.usd, OutputState(output, ()).spent_usd(self.price), keep_going=self.keep_going)


class Divide(Protocol):
    """Cuts units into smaller ones."""

    def __call__(self, call: Call) -> Sequence[Call]:
        """Return what takes the place of a unit that cannot be read; nothing where it cannot be divided."""
        ...

    def shorten(self, calls: Sequence[Call], sizes: Callable[[Sequence[int]], Sequence[int]]) -> Sequence[Call] | None:
        """Return units to do in place of `calls`, cut into as many pieces each as `sizes` tells; None to leave them."""
        ...


def work_off(
    calls: deque[Call],
    work: UnitWork,
    budget: Budget,
    secrets: Mapping[str, Secret],
    n_tasks: int | None,
    state: OutputState,
    divide: Divide,
    watch: tuple[Screen, State, Callable[[], None]],
    is_late: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Do units until none is left or the job must stop.

    Parameters
    ----------
    calls : deque of Call
        What is to be done.
    work : UnitWork
        How.
    budget : Budget
        What it may cost.
    secrets : mapping of str to str
        Credentials by fingerprint.
    n_tasks : int or None
        Units at once.
    state : OutputState
        Gets the summaries of the units that are done.
    divide : Divide
        Cuts units: one that cannot be read, and the last ones.
    watch : tuple of Screen, State, callable
        Where progress is shown, what is shown, and what raises where the run may not go on.
    is_late : callable, optional
        Returns whether what is left must be done in another way.
    """
    view = watch[1]
    runner = UnitRunner(_Function(work), work.plan, secrets, n_tasks, view.rows_total - view.rows, work.priority)
    return _Loop(calls, runner, budget, state, watch, is_late).run(divide)


class _Loop:
    """Goes on until no unit is left or the job must stop, and shows how it stands."""

    def __init__(
        self,
        calls: deque[Call],
        runner: UnitRunner,
        budget: Budget,
        state: OutputState,
        watch: tuple[Screen, State, Callable[[], None]],
        is_late: Callable[[], bool],
    ) -> None:
        self._is_late = is_late
        self._calls = calls
        self._runner = runner
        self._budget_usd = budget.usd
        self._state = state
        self._screen, self._view, self._check = watch
        self._shared = runner.share(budget)
        self._view.n_tasks, self._view.n_units = runner.n_tasks, len(calls)
        self._outcome = Outcome()

    def run(self, divide: Divide) -> Outcome:
        runner, shared, outcome = self._runner, self._shared, self._outcome
        # In this process, units and this loop take turns, so that a signal must tell the units itself.
        tell = None if runner.status_poller else partial(shared.call, "stop")
        with Interruption(tell) as interruption, closing(self._results()) as results:
            for result in results:
                if result is not None:
                    self._take(*result, divide)
                self._check()
                self._state.save()
                snapshot = _snapshot(shared)
                if snapshot is None:
                    outcome.stop(
                        "crashed", "the process that keeps the job's counts and budget died, and does not start"
                    )
                    break
                if self._is_late():
                    outcome.stop("late", "the deadline leaves no time for the flex tier")
                if _is_to_stop(outcome, snapshot, interruption):
                    self._calls.clear()
                    if not snapshot.stopped:
                        shared.tell("stop", outcome.stopped)
                self._view.status = runner.status_poller.look() if runner.status_poller else self._view.status
                self._shorten(divide)
                self._show(snapshot)
        self._keep_timeline()
        outcome.signal = interruption.signal  # it may have come with the last unit
        self._show(_snapshot(shared))
        outcome.progress = self._view.progress
        return outcome

    def _results(self) -> Generator[tuple[Any, Any] | None, None, None]:
        view = self._view
        return self._runner.run(
            self._calls, self._shared, self._again, lambda: (view.rows_total - view.rows, view.progress.rows)
        )

    def _shorten(self, divide: Divide) -> None:
        """Cut the last units smaller, so that all replicas of a local model have work until the end."""
        self._view.n_tasks = self._runner.n_tasks
        if not self._runner.is_elastic or not self._calls or len(self._calls) > _MANY * self._runner.n_tasks:
            return
        shorter = divide.shorten(self._calls, partial(pieces, slots=self._runner.n_tasks))
        if shorter is not None:
            self._view.n_units += len(shorter) - len(self._calls)
            self._calls.clear()
            self._calls.extend(shorter)

    def _keep_timeline(self) -> None:
        """Write down when replicas came and went, for the report."""
        poller = self._runner.status_poller
        if poller is not None:
            poller.look()
            save_timeline(self._state.output, poller.timeline)

    def _again(self, call: Call) -> Call:
        self._shared.tell("forget", call.key)
        return replace(call, resumes=True)

    def _take(self, call: Call, result: Any, divide: Divide) -> None:
        """Take a unit's result, or the units that stand in place of one that cannot be read."""
        self._view.units_done += 1
        pieces = divide(call) if _is_unreadable(result) and not self._outcome.kind else ()
        self._calls.extend(pieces)
        self._view.n_units += len(pieces)
        if not pieces:
            _note(call, result, self._state, self._outcome, self._budget_usd)

    def _show(self, snapshot: Snapshot | None) -> None:
        self._view.see(snapshot)
        self._screen.show(self._view)


def _is_to_stop(outcome: Outcome, snapshot: Snapshot, interruption: Interruption) -> bool:
    """Return whether the run ends, for what became of its units or for a reason of its own, which is noted."""
    if interruption.signal:
        outcome.stop("interrupted", interruption.reason)
    if snapshot.in_vain:
        outcome.stop("in vain", snapshot.stopped)
    return bool(outcome.kind)


def _is_unreadable(result: Any) -> bool:
    return isinstance(result, Unfinished) and result.kind == "unreadable"


def _note(call: Call, result: Any, state: OutputState, outcome: Outcome, budget_usd: float | None) -> None:
    """Take a unit's result."""
    if isinstance(result, UnitSummary):
        state.add(result)
        audited = 0 if call.retries else result.stages.get("audit", 0) - result.audit_failed
        count(result.model, audited={"agreed": audited - result.audit_differs, "differed": result.audit_differs})
        return
    name = f"{call.unit.path} rows {call.unit.start:,} to {call.unit.start + call.unit.n_rows - 1:,}"
    if isinstance(result, (Died, Failed)):
        outcome.trouble[name] = f"the process that worked on it ended: {result.reason}"
        return
    stop: Unfinished = result
    if _is_unreadable(stop):
        outcome.trouble[name] = stop.reason
    elif stop.kind == "budget":
        outcome.stop(stop.kind, f"the budget of {budget_usd:g} USD does not cover what remains")
    elif stop.kind in _STOPS:
        outcome.stop(stop.kind, f"{stop.kind}: {stop.reason}")


def _snapshot(shared: Shared) -> Snapshot | None:
    try:
        found: Snapshot = shared.call("snapshot")
    except ClusterError:
        return None
    return found


@dataclass(frozen=True)
class _Function:
    """What a worker does with a unit: the shared object gets the methods of a ledger."""

    work: UnitWork

    def __call__(self, call: Call, backends: Backends, shared: Shared, secrets: Mapping[str, Secret]) -> Any:
        result = self.work(call, backends, LedgerHandle(shared), secrets)
        return Moved() if isinstance(result, Unfinished) and result.kind == "moved" else result


class LedgerHandle:
    """The job's ledger, from anywhere; what is reported is counted for Prometheus too."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def reserve(self, worker: str, costs: list[float], model: str = "") -> Any:
        """Ask for permission to send."""
        return self._shared.call("reserve", worker, costs, model)

    def confirm(self, worker: str) -> bool:
        """Ask whether the permission stands."""
        return bool(self._shared.call("confirm", worker))

    def settle(self, worker: str, spent_usd: float, model: str = "") -> None:
        """Tell what it did cost."""
        self._shared.call("settle", worker, spent_usd, model)

    def report(
        self, progress: Progress, *, answered: bool, reason: str = "", last: bool = False, model: str = ""
    ) -> None:
        """Tell what was done."""
        from skllm_ray.execution.metrics import count

        failed = sum(progress.errors.values())
        fresh = max(0, progress.rows - progress.reused - progress.duplicates - failed)
        count(
            model,
            rows={"ok": fresh, "reused": progress.reused, "duplicate": progress.duplicates, "error": failed},
            tokens={
                "prompt": progress.prompt_tokens,
                "completion": progress.completion_tokens,
                "cached": progress.cached_tokens,
            },
            errors=dict(progress.errors),
            cost_usd=progress.cost_usd,
        )
        tell = self._shared.call if last else self._shared.tell
        tell("report", progress, answered=answered, reason=reason, model=model)

    def wait_for(self, worker: str, reason: str) -> None:
        """Tell that this worker waits."""
        self._shared.tell("wait_for", worker, reason)

    def answered_within(self, seconds: float, model: str = "") -> bool:
        """Return whether the model's server answered anyone lately."""
        return bool(self._shared.call("answered_within", seconds, model))

    def stopped(self) -> str:
        """Return why the job was told to stop."""
        return str(self._shared.call("stopped"))
