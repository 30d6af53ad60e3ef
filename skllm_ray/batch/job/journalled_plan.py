"""The backends of a job's plan, all under the job's rules and in one journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skllm_ray.batch.job.budget import SharedLedger
from skllm_ray.batch.job.journalled_backend import JournalledBackend
from skllm_ray.batch.job.terms import Terms
from skllm_ray.batch.job.unit_guard import UnitGuard
from skllm_ray.batch.output.journal import Journal
from skllm_ray.execution.plan import Plan, row_step
from skllm_ray.llm.base import Backend
from skllm_ray.tasks.embedding import EmbeddingTask


def journalled(
    plan: Plan,
    backends: Sequence[Backend],
    journal: Journal,
    ledger: SharedLedger,
    worker: str,
    rules: tuple[Sequence[Terms], UnitGuard],
    *,
    counts_rows: bool = True,
    make: Callable[..., JournalledBackend] = lambda _, *given, **more: JournalledBackend(*given, **more),
) -> list[JournalledBackend]:
    """Return a plan's backends under the job's rules: answers go into the journal, and costs are reserved first.

    `make` makes each of them, of its step's number and what a `JournalledBackend` takes.
    """
    terms, guard = rules
    number, last = row_step(plan), len(plan) - 1
    kinds = [isinstance(step.task, EmbeddingTask) for step in plan]
    marks = [kinds[:n].count(kind) for n, kind in enumerate(kinds)]  # the first of each kind has none, as ever
    return [
        make(
            n,
            backend,
            journal,
            ledger,
            worker,
            terms[n],
            guard,
            model=plan[n].spec.model,
            mark=f"\0{marks[n]}\0" if marks[n] else "",
            counts_rows=counts_rows and n == number,
            fails_rows=n == last,
        )
        for n, backend in enumerate(backends)
    ]
