"""A batch job, from its plan to its last part."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final

from skllm_ray.batch.delivery.batch_records import go_on
from skllm_ray.batch.delivery.of_job import check_delivery, delivered, set_aside
from skllm_ray.batch.input.files import Unit, Units
from skllm_ray.batch.job.driver import Outcome
from skllm_ray.batch.job.locked_run import LockedRun
from skllm_ray.batch.job.options import JobRequest
from skllm_ray.batch.job.planner import Planner, labels_of, limited, remaining_calls, wanted_rows
from skllm_ray.batch.job.pricing import Pricing
from skllm_ray.batch.job.prior import estimated, prior_of, prior_to_ask, read_prior, with_prior
from skllm_ray.batch.job.progress_display import Screen, open_screen
from skllm_ray.batch.job.result import JobResult
from skllm_ray.batch.job.terms import Terms
from skllm_ray.batch.job.watching import Keeper, locked
from skllm_ray.batch.job.worker import Call, UnitWork
from skllm_ray.batch.output.manifest import MANIFEST, Manifest, load_manifest, with_template
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import JOURNAL, SYSTEM, add_up, table_bytes
from skllm_ray.batch.promise import promise_facts
from skllm_ray.batch.storage import Folder
from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError, InputError, warn
from skllm_ray.execution.plan import Plan, part_of, steps_alone
from skllm_ray.execution.runner import run as run_rows
from skllm_ray.tasks.base import Row
from skllm_ray.tasks.label_mass import low_mass
from skllm_ray.tasks.one_label import one_label

_EMPTY: Final = "part-00000-0000000000-0000000.parquet"


class Job:
    """A job on an output.

    Parameters
    ----------
    request : JobRequest
        What the job was asked for.
    """

    def __init__(self, request: JobRequest) -> None:
        self._request = request
        self._estimator, self._options = request.estimator, request.options
        self._pricing = Pricing(self._estimator._checked_plan(), self._options)
        self.plan = self._pricing.plan
        check_delivery(self._options, self.plan)
        self._planner = Planner(request)
        self.output = self._planner.output
        self._system = self.output.below(SYSTEM)

    # --- planning -------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """Return the job's manifest: the output's, if it has one that fits; else a new one, not written yet.

        Raises
        ------
        InputError
            If the input, or a column of it, is not there.
        OutputMismatchError
            If the output belongs to another job.
        """
        return self._planner.manifest(self.plan)

    def units(self, manifest: Manifest) -> Units:
        """Return the job's units."""
        return Units(manifest.files, manifest.unit_rows, manifest.cuts)

    def left(self, manifest: Manifest) -> list[tuple[Unit, int]]:
        """Return the units that a run would do, and how many rows of each it would ask about."""
        state = OutputState(self.output, self.units(manifest))
        rows, before, wanted = dict[str, int](), 0, self._wanted(manifest)
        for unit in state.units:
            rows[unit.key] = min(unit.n_rows, wanted - before)
            before += unit.n_rows
        found = []
        for call in self._calls(manifest, state):
            failed = {} if not call.retries else {**state.summaries[call.key].errors, "missing_text": 0}
            found.append((call.unit, sum(failed.values()) if call.retries else rows[call.key]))
        return found

    @property
    def secrets(self) -> dict[str, Secret]:
        """The credentials that workers need, by fingerprint."""
        return {**self._estimator._secrets(), **self._request.storage.secrets()}

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels as the output holds them; None where the task gives none."""
        return labels_of(self._estimator)

    @property
    def by_batch(self) -> bool:
        """Whether it is delivered by its provider's batches."""
        return self._options.delivery == "batch"

    @property
    def budget_usd(self) -> float | None:
        """The most that may be spent; None for no limit."""
        return self._options.budget_usd

    @property
    def source(self) -> Folder:
        """The input's folder, or its file."""
        return self._planner.source

    def terms(self, outage_s: float | None = None) -> tuple[Terms, ...]:
        """Return the rules for each step's model."""
        return self._pricing.terms(outage_s)

    def ask(self, texts: Sequence[str], *, show: bool = True) -> list[Row[Any]]:
        """Ask about some texts, outside of any output; more than one `show` their progress."""
        return self._run_rows(texts, self.plan, show)

    def _run_rows(self, texts: Sequence[str], plan: Plan, show: bool = True) -> list[Row[Any]]:
        return run_rows(texts, plan, self._estimator._secrets(), show_progress=show and len(texts) > 1)

    @property
    def prior_texts(self) -> tuple[str, ...]:
        """The texts that are asked about before the first row, for the labels' prior; none where it is known."""
        prior = prior_to_ask(self.plan)
        return () if prior is None or read_prior(self.output) is not None else prior[1].texts

    @property
    def prior_steps(self) -> range:
        """The numbers of the steps that are asked about them."""
        prior = prior_of(self.plan)
        return range(0) if prior is None else steps_alone(self.plan, prior[0])

    def ask_prior(self) -> list[Row[Any]]:
        """Ask about `prior_texts`, outside of any output."""
        return self._run_rows(self.prior_texts, part_of(self.plan, self.prior_steps))

    def take_prior(self, rows: Sequence[Row[Any]]) -> None:
        """Take the prior that the answers to `prior_texts` tell; without any, the output's."""
        if prior_to_ask(self.plan) is not None:
            self.plan = with_prior(self.plan, estimated(rows) if rows else read_prior(self.output) or ())

    def _wanted(self, manifest: Manifest) -> int:
        return wanted_rows(manifest, self._options.limit)

    def _calls(self, manifest: Manifest, state: OutputState) -> deque[Call]:
        return remaining_calls(
            self._wanted(manifest), state, retry_before=time.time() if self._options.retry_errors else 0.0
        )

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, screen: Screen | None = None) -> JobResult:
        """Do what is left of the job, under its lock.

        Raises
        ------
        OutputInUseError
            If another run writes to the same output.
        """
        manifest = self.manifest()  # before the lock, so that a plan that fails leaves nothing behind
        planned_on = load_manifest(self._system)
        with ExitStack() as stack:
            lock = stack.enter_context(locked(self._system, self.output))
            if load_manifest(self._system) != planned_on:
                manifest = self.manifest()
            state = OutputState(self.output, self.units(manifest))
            cut_off = limited(manifest, state, self._options.limit)
            if cut_off is not manifest:
                manifest = cut_off
                state = OutputState(self.output, self.units(manifest))
            lock.check()
            manifest.save(self._system)
            go_on(self.output)
            state.tidy()
            if not state.units:  # readers of the output get its columns all the same
                self.output.write(_EMPTY, table_bytes(manifest.arrow_schema().empty_table()))
            began = time.monotonic()
            run = self._locked_run(manifest)
            keeper = Keeper(run, self.output, self.secrets, lock.token)
            with screen or open_screen(False) as shown, self._begun(planned_on):
                outcome = run(manifest, state, lock, self.secrets, shown, keeper)
            lock.check()
            state.save(force=True)
            state.read_journals()
            self._warn_low_mass(state)
            self._warn_one_label(state)
            keeper.leave(outcome)
            result = self._result(manifest, state, outcome, time.monotonic() - began)
            if result.alarm:
                warn(result.promise["audit"])
            return result

    @contextmanager
    def _begun(self, before: Manifest | None) -> Iterator[None]:
        """Let a job that is refused before it asks anything leave no manifest behind: its terms may be changed."""
        try:
            yield
        except (ConfigurationError, InputError):
            if before is None and not self.output.below(JOURNAL).names(recursive=True):
                self._system.delete(MANIFEST)
            raise

    def _warn_low_mass(self, state: OutputState) -> None:
        found = [one for one in state.summaries.values() if one.label_mass is not None]
        if found:
            median = statistics.median(one.label_mass or 0.0 for one in found)
            told = low_mass(self.plan[-1].spec.model, median, sum(one.rows for one in found))
            if told:
                warn(told)

    def _warn_one_label(self, state: OutputState) -> None:
        rows = Counter[str]()
        for one in state.summaries.values():
            rows[one.label] += one.label_rows
        if rows.total():
            (label, n), good = rows.most_common(1)[0], add_up(state.summaries.values())
            told = one_label(label, n, good.rows - sum(good.errors.values()), len(self.labels or ()))
            if told:
                warn(told)

    def result(self) -> JobResult:
        """Return how the job stands, without running anything."""
        manifest = self.manifest()
        return self._result(manifest, OutputState(self.output, self.units(manifest)), Outcome(), 0.0)

    def _locked_run(self, manifest: Manifest) -> LockedRun:
        """Return what a run does under the output's lock."""
        work = UnitWork(
            reading=self._estimator._reading(),
            plan=with_template(self.plan, manifest.template),
            manifest=replace(manifest, files=(), params=""),
            input_uri=self._planner.source_uri,
            output_uri=self._request.output,
            options=self._request.storage,
            mode="default" if self._estimator.on_error == "default" else "coerce",
            terms=self.terms(),
            priority=self._options.priority,
        )
        options = self._options.model_copy(update={"storage_options": None})  # it travels, and they may be secret
        return LockedRun(work, options, self._pricing.dearest, time.time())

    def _result(self, manifest: Manifest, state: OutputState, outcome: Outcome, seconds: float) -> JobResult:
        done = add_up(state.summaries.values())
        total = replace(state.bill, rows=done.rows, reused=done.reused, duplicates=done.duplicates, errors=done.errors)
        pending, aside = state.pending, set_aside(state)
        total.unknown_usd -= aside
        promise = promise_facts(manifest, self.output, state.summaries.values())
        return JobResult(
            output=self._request.output,
            rows_total=manifest.rows_total,
            rows_done=total.rows,
            errors=dict(total.errors),
            unreadable={**{f.path: f.error for f in manifest.files if f.error is not None}, **outcome.trouble},
            stopped=outcome.stopped,
            total=total,
            this_run=outcome.progress,
            unknown_usd=total.unknown_usd,
            set_aside_usd=aside,
            delivered=delivered(self.output, total.cost_usd),
            seconds=seconds,
            wanted=self._wanted(manifest),
            pending=pending,
            out_of_budget=outcome.kind == "budget",
            reasons=state.reasons,
            in_vain=outcome.kind == "in vain",
            fatal=outcome.kind == "fatal",
            signal=outcome.signal,
            promise={} if promise is None else promise.facts,
            alarm=promise is not None and promise.audit.alarm,
        )
