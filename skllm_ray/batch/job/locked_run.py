"""What a run does while it holds the output's lock: a value, so that a watcher can do it after the driver's death."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final

from skllm_ray.batch.delivery.batch_records import is_cancelled
from skllm_ray.batch.delivery.of_job import delivery_of, refuse_live_batches
from skllm_ray.batch.input.files import Unit, Units, cut_file
from skllm_ray.batch.job.certified_sample import certified_work
from skllm_ray.batch.job.driver import Budget, Divide, Outcome, work_off
from skllm_ray.batch.job.options import JobOptions
from skllm_ray.batch.job.planner import remaining_calls, wanted_rows
from skllm_ray.batch.job.prior import ready_work
from skllm_ray.batch.job.progress_display import Screen, State, open_screen
from skllm_ray.batch.job.worker import Call, UnitWork
from skllm_ray.batch.output.lock import OutputLock
from skllm_ray.batch.output.manifest import Manifest, load_manifest
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.storage import Folder, open_folder
from skllm_ray.config import Price, Secret

PASSES: Final = frozenset({"interrupted", "outage", "crashed", "storage"})
"""Why a run may end that could go on later, without anybody's help."""


def nobody() -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class LockedRun:
    """A run of a job.

    Parameters
    ----------
    work : UnitWork
        What every unit needs, but the run's token.
    options : JobOptions
        How to spend and to deliver.
    dearest : Price or None
        What replies of unknown price are counted at.
    began_at : float
        When the run began, in seconds since 1970: what failed since is not asked again by who goes on with it.
    """

    work: UnitWork
    options: JobOptions
    dearest: Price | None
    began_at: float

    def __call__(
        self,
        manifest: Manifest,
        state: OutputState,
        lock: OutputLock,
        secrets: Mapping[str, Secret],
        screen: Screen,
        keep_watch: Callable[[], None] = nobody,
    ) -> Outcome:
        """Do what is left of the job; `keep_watch` is called before a batch is ordered, and while one is live."""
        given, uri, output = self.options, self.work.output_uri, state.output
        wanted = wanted_rows(manifest, given.limit)
        calls = remaining_calls(wanted, state, retry_before=self.began_at if given.retry_errors else 0.0)
        if not calls:
            return Outcome()
        if given.delivery == "direct":
            refuse_live_batches(output, uri)
        view = State(manifest.model, wanted, min(wanted, state.rows_done))
        state.expect(call.key for call in calls if call.retries)
        divide = _Divider(manifest, output.below(SYSTEM), lock)
        way = _Way(self, state, secrets, divide, (screen, view, lock.check), keep_watch)
        ready = ready_work(replace(self.work, token=lock.token), output, state, lock.check, way.deliver)
        if isinstance(ready, UnitWork):
            source = open_folder(self.work.input_uri, self.work.options, secrets)
            spent = 0.0 if given.budget_usd is None else OutputState(output, ()).spent_usd(self.dearest)
            left = None if given.budget_usd is None else given.budget_usd - spent
            ready = certified_work(ready, (source, output, manifest), state, left, way.deliver)
        return ready if isinstance(ready, Outcome) else way.deliver(calls, ready)

    def again(self, secrets: Mapping[str, Secret]) -> Outcome:
        """Take the output's lock, and do what is left of the job, unless another one has been begun there meanwhile.

        Raises
        ------
        OutputInUseError
            If another run holds the output.
        """
        output = open_folder(self.work.output_uri, self.work.options, secrets)
        system = output.below(SYSTEM)
        with OutputLock(system, watches=True) as lock:
            manifest = load_manifest(system)
            if manifest is None or manifest.created != self.work.manifest.created or is_cancelled(output):
                return Outcome()
            state = OutputState(output, Units(manifest.files, manifest.unit_rows, manifest.cuts))
            state.tidy()
            with open_screen(False) as screen:
                outcome = self(manifest, state, lock, secrets, screen)
            lock.check()
            state.save(force=True)
            return outcome


@dataclass(frozen=True)
class _Way:
    """How units are done: asked directly, or delivered by batches."""

    run: LockedRun
    state: OutputState
    secrets: Mapping[str, Secret]
    divide: Divide
    watch: tuple[Screen, State, Callable[[], None]]
    keep_watch: Callable[[], None]

    def deliver(self, calls: deque[Call], work: UnitWork) -> Outcome:
        """Do units as the options say; before the rows, also those of the labels' prior and of a cascade's sample."""
        given, view = self.run.options, self.watch[1]
        if given.delivery == "direct":
            outcome = self.do(calls, work)
        else:
            terms = self.state, given, self.secrets, self.run.dearest
            delivery = delivery_of(work, *terms, self.watch, self.keep_watch)
            outcome = delivery.finish(self.do, work, delivery.run(calls, self.do, self.divide))
        view.units_done = 0
        return outcome

    def do(self, calls: deque[Call], work: UnitWork, divide: Divide | None = None, **more: Any) -> Outcome:
        """Do units on the workers."""
        run, given = self.run, self.run.options
        budget = Budget(work.output_uri, work.options, given.budget_usd, run.dearest, given.keep_going)
        terms = budget, self.secrets, given.workers, self.state, divide or self.divide, self.watch
        return work_off(calls, work, *terms, **more)


class _Divider:
    """Lets a row group that cannot be read cost itself alone: its neighbours become units of their own."""

    def __init__(self, manifest: Manifest, system: Folder, lock: OutputLock) -> None:
        self._manifest = manifest
        self._system = system
        self._lock = lock

    def __call__(self, call: Call) -> list[Call]:
        """Return what takes the place of a unit that cannot be read; nothing where it cannot be divided."""
        unit, manifest = call.unit, self._manifest
        if len(unit.groups) < 2 or call.retries:
            return []
        starts = accumulate((rows for _, _, rows in unit.groups[:-1]), initial=unit.start)
        manifest = replace(manifest, cuts=(*manifest.cuts, *((unit.number, start) for start in starts)))
        self._lock.check()
        manifest.save(self._system)  # before there are parts of such units
        self._manifest = manifest
        return [Call(one, call.resumes) for one in self._within(unit)]

    def shorten(self, calls: Sequence[Call], sizes: Callable[[Sequence[int]], Sequence[int]]) -> list[Call] | None:
        """Return units to do in place of `calls`, cut into as many pieces each as `sizes` tells; None to leave them.

        What may have a journal, and what is mended, stays whole, and so does what is no slice of a file.
        """
        fresh = [isinstance(call.unit, Unit) and not (call.resumes or call.retries or call.before) for call in calls]
        counts = sizes([call.unit.n_rows if is_fresh else 1 for call, is_fresh in zip(calls, fresh, strict=True)])
        cuts = [
            (call.unit.number, call.unit.start + call.unit.n_rows * i // n)
            for call, n in zip(calls, counts, strict=True)
            for i in range(1, n)
        ]
        if not cuts:
            return None
        manifest = replace(self._manifest, cuts=(*self._manifest.cuts, *cuts))
        self._lock.check()
        manifest.save(self._system)  # before there are parts of such units
        self._manifest = manifest
        return [
            one
            for call, n in zip(calls, counts, strict=True)
            for one in ([call] if n == 1 else [Call(unit) for unit in self._within(call.unit)])
        ]

    def _within(self, unit: Unit) -> list[Unit]:
        """Return the units that take the place of one, by the manifest's cuts."""
        file = self._manifest.files[unit.number]
        cuts = [row for number, row in self._manifest.cuts if number == unit.number]
        end = unit.start + unit.n_rows
        return [
            one for one in cut_file(file, unit.number, self._manifest.unit_rows, cuts) if unit.start <= one.start < end
        ]
