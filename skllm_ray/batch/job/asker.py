"""Some rows asked outside of any output, such as a sample: within a budget, where there is one."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from skllm_ray.batch.job.budget import Ledger
from skllm_ray.batch.job.journalled_plan import journalled
from skllm_ray.batch.job.prior import ask_prior
from skllm_ray.batch.job.terms import most_usd_of_texts
from skllm_ray.batch.job.unit_guard import UnitGuard, UnitStopped
from skllm_ray.batch.output.fence import Fence
from skllm_ray.batch.output.journal import Journal
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.errors import ConfigurationError
from skllm_ray.execution.block import opened_all, process
from skllm_ray.execution.plan import Block
from skllm_ray.execution.progress import progress_bar
from skllm_ray.llm.base import is_stateful
from skllm_ray.tasks.base import NOT_ALLOWED, Row

if TYPE_CHECKING:
    from skllm_ray.batch.job.job import Job

_BLOCK: Final = 64
_FIRST_PIECE: Final = 16
_PIECE_S: Final = 10.0


@dataclass
class Asked:
    """What became of the rows that were asked."""

    rows: list[Row[Any]] = field(default_factory=list)
    """One for each text, from the first on: fewer than the texts where a budget did not cover all."""
    seconds: float = 0.0
    """How long they took, but for the first one, which starts what has to be started."""
    before: list[Row[Any]] = field(default_factory=list)
    """What was asked before the first row: the labels' prior."""
    stopped: str = ""
    """Why not all were asked; empty where they were."""

    @property
    def failures(self) -> Counter[str]:
        """The rows without an answer, by kind."""
        return Counter(str(row.error.kind) for row in self.rows if row.error is not None)

    @property
    def n_invalid(self) -> int:
        """How many rows have an answer that the task cannot use."""
        return sum(row.error is None and not row.valid for row in self.rows)

    @property
    def reason(self) -> str:
        """Why the first row without an answer has none, or else why the first one of no use is; empty without such."""
        told = (f"{row.error.kind}: {row.error.message}" for row in self.rows if row.error is not None)
        useless = (row.reason or NOT_ALLOWED for row in self.rows if row.error is None and not row.valid)
        return next(told, "") or next((f"invalid_answer: {why}" for why in useless), "")

    @property
    def rows_per_s(self) -> float | None:
        """Rows per second; None where nothing tells it: one row alone, or half of the rows, or more, failed."""
        good = len(self.rows) - self.failures.total()
        if good < 2 or not self.seconds or 2 * good <= len(self.rows):
            return None
        return (good - 1) / self.seconds

    @property
    def cost_usd(self) -> float | None:
        """What the rows cost, as far as answers tell; None where they do not."""
        rows = [*self.before, *self.rows]
        costs = [row.reply.usage.cost_usd for row in rows if row.error is None or row.reply.usage.cost_usd]
        return None if any(cost is None for cost in costs) else sum(cost or 0.0 for cost in costs)


def ask_rows(jobs: Mapping[str, Job], texts: Sequence[str], budget_usd: float | None) -> dict[str, Asked]:
    """Ask each job's model about the same texts.

    With a budget they take turns, a few texts at a time, and end together before the money for the next ones is there.

    Raises
    ------
    ConfigurationError
        If the budget does not cover one text.
    """
    if budget_usd is None:
        return {name: _ask_all(job, texts) for name, job in jobs.items()}
    found = {name: Asked() for name in jobs}
    ledger = Ledger(budget_usd, keep_going=True)
    with ExitStack() as stack:
        askers = {name: stack.enter_context(_Asker(job, ledger)) for name, job in jobs.items()}
        bar = stack.enter_context(progress_bar(len(texts), "asking", show=True))
        at, size = 0, 1
        while at < len(texts) and not any(one.stopped for one in found.values()):
            some = list(texts[at : at + size])
            while some and not ledger.covers(most for one in askers.values() for most in one.most_usd(some)):
                some = some[: len(some) // 2]
            if not some:
                break
            for name, asker in askers.items():
                asker.ask(some, found[name], timed=at > 0)
            at, size = at + len(some), _BLOCK
            bar.update(len(some))
    if at < len(texts):
        told = f"the budget of {budget_usd:g} USD covers {at:,} of {len(texts):,} rows"
        if not at:
            raise ConfigurationError(
                f"budget_usd={budget_usd:g} does not cover one row at the most that it may cost.",
                "Raise it, or set a smaller bound on an answer (max_output_tokens).",
            )
        for one in found.values():
            one.stopped = one.stopped or told
    return found


def _ask_all(job: Job, texts: Sequence[str]) -> Asked:
    before = job.ask_prior()
    job.take_prior(before)
    rows = job.ask(texts[:1])  # starts what has to be started
    began = time.perf_counter()
    if all(is_stateful(step.spec) for step in job.plan):
        rows = [*rows, *_ask_in_pieces(job, texts[1:])]
    elif len(texts) > 1:
        rows = [*rows, *job.ask(texts[1:])]
    return Asked(rows, time.perf_counter() - began, before)


def _ask_in_pieces(job: Job, texts: Sequence[str]) -> list[Row[Any]]:
    """Return the rows of texts; a local model gets what takes it some seconds at a time, so that a bar can move."""
    rows: list[Row[Any]] = []
    size, began = _FIRST_PIECE, time.perf_counter()
    with progress_bar(len(texts), "asking", show=True) as bar:
        while len(rows) < len(texts):
            some = texts[len(rows) : len(rows) + size]
            rows += job.ask(some, show=False)
            bar.update(len(some))
            size = max(_FIRST_PIECE, int(_PIECE_S * len(rows) / (time.perf_counter() - began)))
    return rows


class _Asker:
    """A job's model in this process, under the rules of a budget."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job = job
        self._ledger = ledger
        self._begun = False
        self._stack = ExitStack()

    def __enter__(self) -> _Asker:
        job = self._job
        folder = open_folder(self._stack.enter_context(tempfile.TemporaryDirectory()), StorageOptions(), {})
        journal = Journal(folder, resumes=False)
        self._stack.callback(journal.close, keep=False)
        guard = self._stack.enter_context(UnitGuard(Fence(folder, ""), self._ledger.stopped))
        backends = self._stack.enter_context(opened_all(job.plan, job.secrets))
        self._terms = job.terms(outage_s=0.0)
        name = job.plan[-1].spec.model
        self._backends = journalled(job.plan, backends, journal, self._ledger, name, (self._terms, guard))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def most_usd(self, texts: Sequence[str]) -> list[float]:
        """Return the most that each text may cost."""
        texts = [*self._job.prior_texts, *texts] if not self._begun else texts
        return most_usd_of_texts(self._job.plan, self._terms, texts)

    def ask(self, texts: Sequence[str], into: Asked, *, timed: bool) -> None:
        """Ask about some texts that the budget covers."""
        began = time.perf_counter()
        try:
            if not self._begun:
                self._begun = True
                into.before += ask_prior(self._job.plan, self._backends) if self._job.prior_texts else []
                self._job.take_prior(into.before)
            into.rows += self._ask(texts)
        except UnitStopped as stop:
            into.stopped = stop.reason
        if timed:
            into.seconds += time.perf_counter() - began

    def _ask(self, texts: Sequence[str]) -> list[Row[Any]]:
        return process(Block(texts, range(len(texts))), self._job.plan, self._backends) if texts else []
