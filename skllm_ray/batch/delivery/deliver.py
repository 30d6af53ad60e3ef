"""A run's deliveries: gather, order, await and collect, until the journals answer all that batches can answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from skllm_ray.batch.delivery.batch_records import is_cancelled
from skllm_ray.batch.delivery.collect import Collected, Collector, has_files_to_remove
from skllm_ray.batch.delivery.deadline import Deadline
from skllm_ray.batch.delivery.gather import GatherWork
from skllm_ray.batch.delivery.order import Orders, Room, Store, Waiting
from skllm_ray.batch.delivery.pace import QueueLimit
from skllm_ray.batch.delivery.queue import clear
from skllm_ray.batch.job.driver import Divide, Outcome
from skllm_ray.batch.job.interruption import Interruption
from skllm_ray.batch.job.progress_display import Screen, State
from skllm_ray.batch.job.worker import Call, UnitWork
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.progress import Progress
from skllm_ray.config import Price
from skllm_ray.errors import AmbiguousSubmission, ConfigurationError, OutputInUseError, SkllmRayError, warn
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.llm.provider_batches import ENDED, TOO_MANY_TOKENS, BatchApi, BatchService, BatchSpec, ProviderBatch
from skllm_ray.llm.submissions import RefusedError, refresh

POLLING: Final = Polling(first_s=10.0, longest_s=300.0)
_TICK_S: Final = 0.2
_FRUITLESS: Final = 3  # batches one after the other that bring no answer at all

Gather = Callable[["deque[Call]", GatherWork, Divide], Outcome]


@dataclass
class _Live:
    """A batch that is looked at."""

    record: ProviderBatch
    due: float = 0.0
    n_looks: int = 0


class _Pieces:
    """Divides units that cannot be read, and knows into what; while units are gathered, none is made shorter."""

    def __init__(self, divide: Divide) -> None:
        self._divide = divide
        self.of: dict[str, Sequence[Call]] = {}

    def __call__(self, call: Call) -> Sequence[Call]:
        self.of[call.key] = [replace(piece, resumes=True) for piece in self._divide(call)]
        return self.of[call.key]

    def shorten(self, calls: Sequence[Call], sizes: Callable[[Sequence[int]], Sequence[int]]) -> None:
        del calls, sizes


def _cancel(live: _Live, service: BatchService) -> None:
    service.cancel(live.record.id or "")
    live.record = replace(live.record, state="cancelling")
    live.due, live.n_looks = 0.0, 0


class Delivery:
    """Delivers the rows of a run by batches.

    Parameters
    ----------
    state : OutputState
        What the output holds.
    work : GatherWork
        How units are gathered.
    apis : dict of int to BatchApi
        How the batches of each step are made and read.
    records : SubmissionStore
        Where orders are kept.
    orders : Orders
        Makes them.
    open_service : callable
        Returns the open service of a batch.
    budget : tuple of float or None, Price or None
        What the output may cost, and what replies of unknown price are counted at.
    watch : tuple of Screen, State, callable
        Where progress is shown, what is shown, and what raises where the run may not go on.
    keep_watch : callable
        Called before a batch is ordered, and while one is live.
    late : tuple of Deadline or None, UnitWork or None
        When what is open is asked directly, and how that is done at a flex tier, where there is one.
    """

    def __init__(
        self,
        state: OutputState,
        work: GatherWork,
        apis: Mapping[int, BatchApi],
        records: Store,
        orders: Orders,
        open_service: Callable[[BatchSpec], BatchService],
        budget: tuple[float | None, Price | None],
        watch: tuple[Screen, State, Callable[[], None]],
        keep_watch: Callable[[], None],
        late: tuple[Deadline | None, UnitWork | None],
    ) -> None:
        self._state = state
        self._work = work
        self._apis = apis
        self._records = records
        self._orders = orders
        self._open = open_service
        self._budget_usd, self._dearest = budget
        self._screen, self._view, self._check = watch
        self._keep_watch = keep_watch
        self._collector = Collector(state.output, records, self._check)
        self._limit = QueueLimit()
        self._live: list[_Live] = []
        self._services: dict[Hashable, BatchService] = {}
        self._deadline, self._at_flex = late
        self._turned = False
        self._n_fruitless = self._n_refused = 0
        self._interruption = Interruption()
        self.outcome = Outcome()
        self.bill = Progress()
        """What the batches of this run brought."""

    def run(self, calls: deque[Call], gather: Gather, divide: Divide) -> deque[Call]:
        """Return the units that can be done now, all or, where `outcome` tells why, some of them."""
        try:
            return self._run(calls, gather, divide)
        finally:
            self._close()

    def _run(self, calls: deque[Call], gather: Gather, divide: Divide) -> deque[Call]:
        output = self._state.output
        self._live = [_Live(record) for record in self._orders.settle()]
        self._tidy()
        with Interruption() as interruption:
            self._interruption = interruption
            self._await_all(None)
        while not self._stopped() and not self._turns():
            self._state.read_journals()  # what came home since for a unit that was cut in two
            self._state.tidy()
            clear(output)
            calls = self._gather(calls, gather, divide)
            waiting = Waiting(output)
            if self._stopped() or waiting.peek() is None:
                break
            with Interruption() as interruption:
                self._interruption = interruption
                self._await_all(waiting)
        open_units = Waiting(output).units if self.outcome.kind == "budget" else set[str]()
        self.outcome.signal = self.outcome.signal or self._interruption.signal
        return deque(call for call in calls if call.key not in open_units)

    def finish(self, do: Callable[..., Outcome], work: UnitWork, calls: deque[Call]) -> Outcome:
        """Do the units that can be done, and return how the run ended."""
        outcome = self.outcome
        if outcome.kind in {"", "budget"} and calls:
            outcome = self._do(do, work, calls)
            if self.outcome.kind:
                outcome.stop(self.outcome.kind, self.outcome.stopped)
        outcome.progress = Progress()
        for part in (self._view.progress, self._view.delivered):
            outcome.progress.add(part)
        return outcome

    # --- inside ---------------------------------------------------------------------------------------------------

    def _do(self, do: Callable[..., Outcome], work: UnitWork, calls: deque[Call]) -> Outcome:
        """Do units: by a deadline, what is to be asked is asked at the flex tier, as long as there is time for it."""
        deadline, view = self._deadline, self._view

        def is_late() -> bool:
            return deadline is None or deadline.is_too_late_for_flex(view.rows_total - view.rows)

        if not self._turned or self._at_flex is None or is_late():
            return do(calls, work)
        before, left = dict(self._state.summaries), list(calls)
        outcome = do(calls, self._at_flex, is_late=is_late)
        if outcome.kind not in {"late", "outage"}:
            return outcome
        view.units_done = 0
        summaries = self._state.summaries
        return do(deque(replace(c, resumes=True) for c in left if summaries.get(c.key) is before.get(c.key)), work)

    def _stopped(self) -> bool:
        if self._interruption.signal:
            self.outcome.stop("interrupted", f"{self._interruption.reason}; {self._told_live()}")
        return bool(self.outcome.kind)

    def _tidy(self) -> None:
        """Remove the provider's files of batches that earlier runs collected."""
        for record in self._records.jobs():
            if has_files_to_remove(record):
                with suppress(SkllmRayError):
                    self._with_service(record, partial(self._collector.tidy, record))

    def _gather(self, calls: deque[Call], gather: Gather, divide: Divide) -> deque[Call]:
        """Gather the units; return them, with those that took the place of such that cannot be read."""
        calls = deque(replace(call, resumes=True) for call in calls)
        pieces = _Pieces(divide)
        self._view.delivery = "gathering requests"
        outcome = gather(deque(calls), self._work, pieces)
        self._view.units_done = 0
        self._view.delivery = ""
        if outcome.kind:
            self.outcome = outcome
        return deque(piece for call in calls for piece in (pieces.of.get(call.key) or [call]))

    def _await_all(self, waiting: Waiting | None) -> None:
        """Order what waits, as there is room for it, and look at the batches until all are home."""
        while not self._stopped():
            if self._live or waiting is not None:
                self._keep_watch()
            if self._turns():
                self._cancel_live()
            elif is_cancelled(self._state.output):
                self.outcome.stop("cancelled", f"its batches were cancelled; {self._told_live()}")
            else:
                self._order(waiting)
            if self._stopped() or not self._live:
                return
            self._wait(min(one.due for one in self._live))
            for live in [one for one in self._live if one.due <= time.monotonic()]:
                if self._stopped():
                    return
                self._look(live)

    def _turns(self) -> bool:
        """Return whether the time has come to ask directly what is open."""
        if self._deadline is not None and not self._turned:
            rows_left = self._view.rows_total - self._view.rows_before - self.bill.asked
            flex = self._at_flex is not None
            self._turned = self._deadline.is_due(rows_left, live=bool(self._live), flex=flex)
        return self._turned

    def _cancel_live(self) -> None:
        """Ask the provider to stop; what is answered is collected before the rest is asked directly."""
        for live in self._live:
            if live.record.state not in {"cancelling", *ENDED}:
                with suppress(SkllmRayError):  # it is away: asked again after the next look
                    self._with_service(live.record, partial(_cancel, live))

    def _order(self, waiting: Waiting | None) -> None:
        while waiting is not None and waiting.peek() is not None and not self.outcome.kind:
            tokens = self._limit.room([one.record for one in self._live])
            if tokens == 0 and self._live:
                return
            try:
                record = self._orders.place(waiting, Room(self._left_usd(), tokens))
            except (AmbiguousSubmission, OutputInUseError, ConfigurationError):
                raise
            except SkllmRayError as error:
                kind = "fatal" if isinstance(error, RefusedError) else "outage"
                self.outcome.stop(kind, f"{kind}: {error}")
                return
            if record is None:
                if not self._live:
                    self.outcome.stop("budget", f"the budget of {self._budget_usd:g} USD does not cover what remains")
                return
            self._live.append(_Live(record))
            self._show()
            if self._interruption.signal:
                return

    def _left_usd(self) -> float | None:
        """Return what is left of the budget; what live batches may cost is spent, as the journals tell."""
        if self._budget_usd is None:
            return None
        return self._budget_usd - OutputState(self._state.output, ()).spent_usd(self._dearest)

    def _wait(self, due: float, why: str = "") -> None:
        """Wait until a moment, unless a signal comes."""
        self._view.waiting_for = why or self._view.waiting_for
        while not self._interruption.signal and time.monotonic() < due:
            self._show()
            self._check()
            time.sleep(min(_TICK_S, max(0.0, due - time.monotonic())))
        self._view.waiting_for = "" if why else self._view.waiting_for

    def _look(self, live: _Live) -> None:
        """Look at a batch, and take it home where it has ended."""
        before = live.record
        try:
            self._with_service(before, lambda service: self._look_with(service, live))
        except ConfigurationError:  # the key is not taken any more: no waiting mends that
            raise
        except SkllmRayError as error:  # the provider is away: look again
            self._view.waiting_for = f"the provider does not answer ({error.message})"
            live.due = time.monotonic() + POLLING.pause_s(live.n_looks)
            live.n_looks += 1
            self._check()
            return
        self._view.waiting_for = ""
        news = live.record.n_done != before.n_done or live.record.state != before.state
        live.n_looks = 0 if news else live.n_looks + 1
        live.due = time.monotonic() + POLLING.pause_s(live.n_looks)
        self._show()

    def _look_with(self, service: BatchService, live: _Live) -> None:
        live.record = refresh(live.record, self._records, service)
        if live.record.has_ended:
            live.record, found = self._collector.collect(live.record, self._apis[live.record.spec.step], service)
            self._live.remove(live)
            self._take(live.record, found)

    def _take(self, record: ProviderBatch, found: Collected) -> None:
        """Count what a batch brought, and note why the run cannot go on, if it cannot."""
        self.bill.add(found.bill)
        self._view.delivered.add(found.bill)
        if found.oddities:
            warn(f"The batch {record.id} was odd: {found.oddities}.")
        if record.state == "failed" and record.error_code == TOO_MANY_TOKENS:
            self._limit.refused(record, [one.record for one in self._live])
            self._n_refused += 1
            if not self._live:  # others fill the queue
                self._wait(time.monotonic() + POLLING.pause_s(self._n_refused - 1), "the provider's queue is full")
            return
        self._n_refused = 0
        if record.state == "failed":
            self.outcome.stop("fatal", f"fatal: the provider failed the batch {record.id}: {record.error}")
        elif found.fatal:
            self.outcome.stop("fatal", f"fatal: {found.fatal}")
        self._n_fruitless = 0 if found.answered or found.failed else self._n_fruitless + 1
        if self._n_fruitless >= _FRUITLESS:
            self.outcome.stop("outage", f"outage: {self._n_fruitless} batches in succession brought no answer")

    def _with_service(self, record: ProviderBatch, do: Callable[[BatchService], Any]) -> None:
        spec = record.spec
        place = spec.service, spec.base_url, spec.org, spec.key_ref, spec.project, spec.location, spec.bucket
        if place not in self._services:
            self._services[place] = self._open(spec)
        do(self._services[place])

    def _close(self) -> None:
        while self._services:
            self._services.popitem()[1].close()

    def _told_live(self) -> str:
        n = len(self._live)
        return f"{n:,} batch{'es go' if n != 1 else ' goes'} on at the provider" if n else "no batch is live"

    def _show(self) -> None:
        records = [one.record for one in self._live]
        done, total = sum(one.n_done for one in records), sum(one.spec.n_lines for one in records)
        told = f"{len(records):,} at the provider, {done:,} of {total:,} requests done" if records else ""
        home = self.bill.asked
        self._view.delivery = ", ".join(filter(None, [told, f"{home:,} answers home" if home else ""]))
        self._screen.show(self._view)
