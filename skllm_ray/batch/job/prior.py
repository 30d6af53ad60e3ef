"""The labels' prior of a job: asked for once, before the first row, and written down beside the parts.

It is done as a unit is: under the budget, journalled, again where its worker dies. What it cost stands in its own file,
as with a part. Every later row, and every later run, takes the prior from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from skllm_ray.batch.job.driver import Outcome
from skllm_ray.batch.job.journalled_backend import JournalledBackend
from skllm_ray.batch.job.worker import Begun, Call, UnitWork
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import PRIOR, PRIOR_PART, OldPart, UnitSummary
from skllm_ray.batch.storage import Folder
from skllm_ray.errors import ConfigurationError, JobFailedError, OutputMismatchError
from skllm_ray.execution.block import process
from skllm_ray.execution.plan import Block, Plan, part_of, steps_alone
from skllm_ray.llm.base import Backend
from skllm_ray.tasks.base import Row, RowError
from skllm_ray.tasks.classification import ZeroShotTask
from skllm_ray.tasks.prior import LabelPrior, estimate_prior

_LABEL: Final = "label"
_PROBABILITY: Final = "probability"


@dataclass(frozen=True)
class PriorUnit:
    """Stands for a unit of the input: the texts that the prior is estimated from."""

    n_rows: int
    key: str = PRIOR
    part_name: str = PRIOR_PART
    path: str = "label_prior"
    start: int = 0
    groups: tuple[Any, ...] = ()


@dataclass(frozen=True)
class PriorWork(UnitWork):
    """Asks for the labels' prior."""

    _counts_rows: ClassVar[bool] = False

    def read(self, call: Call, secrets: Any) -> pa.Table:
        """Return no rows: the texts are the prior's own."""
        del call, secrets
        return pa.table({})

    def ask(self, begun: Begun, backends: list[JournalledBackend]) -> None:
        """Ask about the prior's texts."""
        del begun
        ask_prior(self.plan, backends)

    def _answers(
        self,
        call: Call,
        table: pa.Table,
        old: OldPart | None,
        backends: list[JournalledBackend],
    ) -> tuple[pa.Table, list[Row[Any]]]:
        del call, table, old
        rows = ask_prior(self.plan, backends)
        return self._prior_table(estimated(rows)), rows

    def write_down(self, output: Folder, probabilities: Sequence[float]) -> UnitSummary:
        """Write a prior that cost nothing, so that every run of the output takes the same."""
        summary = UnitSummary(PRIOR, PriorUnit.path, model=self.manifest.model)
        part = self._serialise(self._prior_table(probabilities), summary)
        output.write(PRIOR_PART, part)
        return replace(summary, size=part.size)

    def _prior_table(self, probabilities: Sequence[float]) -> pa.Table:
        return pa.table({_LABEL: list(self.manifest.labels or ()), _PROBABILITY: list(probabilities)})

    def _counts(self, table: pa.Table) -> dict[str, Any]:
        """Count nothing: these are no rows of the output."""
        del table
        return {}


def prior_of(plan: Plan) -> tuple[int, LabelPrior] | None:
    """Return the number of the step that takes a prior out, and the prior; None where none does.

    Raises
    ------
    ConfigurationError
        If several steps do: an output holds one prior.
    """
    tasks = [(number, step.task) for number, step in enumerate(plan)]
    found = [(n, task.prior) for n, task in tasks if isinstance(task, ZeroShotTask) and task.prior is not None]
    if len(found) > 1:
        raise ConfigurationError(
            "label_prior is set for two models of one job, and an output holds one prior.", "Leave one of them out."
        )
    return found[0] if found else None


def prior_to_ask(plan: Plan) -> tuple[int, LabelPrior] | None:
    """Return the same where the prior is to be asked for before the first row; None where it is known."""
    found = prior_of(plan)
    return found if found is not None and found[1].probabilities is None else None


def ask_prior(plan: Plan, backends: Sequence[Backend]) -> list[Row[Any]]:
    """Ask about the texts that the prior is estimated from; return no rows where it is known."""
    found = prior_to_ask(plan)
    if found is None:
        return []
    numbers = steps_alone(plan, found[0])
    return process(Block(found[1].texts), part_of(plan, numbers), [backends[number] for number in numbers])


def with_prior(plan: Plan, probabilities: Sequence[float]) -> Plan:
    """Return a plan that takes this prior out."""
    found = prior_of(plan)
    if found is None:
        return plan
    number, prior = found
    task: Any = plan[number].task
    task = replace(task, prior=replace(prior, probabilities=tuple(probabilities)))
    return tuple(replace(step, task=task) if n == number else step for n, step in enumerate(plan))


def estimated(rows: Sequence[Row[Any]]) -> tuple[float, ...]:
    """Return the prior that the answers to its texts tell.

    Raises
    ------
    JobFailedError
        If most of them tell nothing.
    """
    found = estimate_prior(rows)
    if isinstance(found, RowError):
        raise JobFailedError(f"label_prior cannot be estimated ({found.kind}: {found.message})", found.hint)
    return found


def read_prior(output: Folder) -> tuple[float, ...] | None:
    """Return the prior that an output was begun with; None where there is none.

    Raises
    ------
    OutputMismatchError
        If it is damaged: another one must not take its place.
    """
    try:
        with output.filesystem.open_input_file(output.at(PRIOR_PART)) as source:
            return tuple(pq.read_table(source)[_PROBABILITY].to_pylist())
    except FileNotFoundError:
        return None
    except (OSError, KeyError, pa.ArrowException) as error:
        raise OutputMismatchError(
            f"{output.at(PRIOR_PART)}, which holds the labels' prior of the output's rows, cannot be read "
            f"({type(error).__name__}).",
            "Bring it back from a copy, or write to another output.",
        ) from None


def ready_work(
    work: UnitWork,
    output: Folder,
    state: OutputState,
    check: Callable[[], None],
    ask: Callable[[deque[Call], UnitWork], Outcome],
) -> UnitWork | Outcome:
    """Return the work with the labels' prior that all rows of the output take, or how the run ended before.

    Parameters
    ----------
    work : UnitWork
        What every unit needs.
    output : Folder
        The output: what it has been begun with holds.
    state : OutputState
        Gets the summary.
    check : callable
        Raises where the run does not hold the output any more.
    ask : callable
        Does what it is given as units are done.
    """
    of_plan = prior_of(work.plan)
    if of_plan is None:
        return work
    prior, found = of_plan[1], read_prior(output)
    if found is None:
        own = PriorWork(**{one.name: getattr(work, one.name) for one in fields(work)})
        if prior.probabilities is None:
            lost = state.lost.get(PRIOR)
            before = lost.progress.bill() if lost else None
            unit = PriorUnit(len(prior.texts))
            outcome = ask(deque([Call(unit, PRIOR in state.journals, before=before)]), own)
            found = read_prior(output)
            if outcome.kind or found is None:
                return outcome
        else:  # the estimator brought it with it
            found = prior.probabilities
            check()
            state.add(own.write_down(output, found))
    return replace(work, plan=with_prior(work.plan, found))
