"""Models compared on labelled rows, before the big job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from skllm_ray.batch.job.asker import Asked, ask_rows
from skllm_ray.batch.job.job import Job
from skllm_ray.batch.tools.sampling import draw
from skllm_ray.config import Price
from skllm_ray.errors import InputError
from skllm_ray.tasks.base import Choices, Row
from skllm_ray.tasks.cot import CoTTask, MultiLabelCoTTask

_ENOUGH_UNITS: Final = 64
_LEVEL: Final = 0.95

Labels = frozenset[str]
"""A row's labels; one where the task asks for one."""


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a sample."""

    model: str
    rows: int
    accuracy: float
    """Share of the rows whose label, or whose whole set of labels, is right."""
    low: float
    """The lower end of the accuracy's 95% interval (Wilson's)."""
    high: float
    failed: int
    """Rows without a valid answer; they count as wrong."""
    foreign: int
    """Rows with a true label that is no candidate, so that no answer can be right."""
    labels: list[str]
    confusion: list[list[int]]
    """Rows are the truth, columns the answers; the last column is for rows without one. Empty with several labels."""
    f1: float | None
    """With several labels: the F1 score of all labels of all rows together."""
    usd_per_1000: float | None
    rows_per_s: float | None
    """None where most rows failed."""
    errors: int = 0
    """Rows without any answer; they are among those that failed."""
    reason: str = ""
    """Why the first of them has none."""
    stopped: str = ""
    """Why fewer rows were asked than were to be."""

    @property
    def mostly_failed(self) -> bool:
        """Whether more than half of the rows have no answer, so that the figures say little of the model."""
        return 2 * self.errors > self.rows


def evaluate_models(jobs: Mapping[str, Job], label_column: str, sample: int = 200, seed: int = 0) -> list[Evaluation]:
    """Ask each model for the same labelled rows, drawn at random, and compare its answers with the labels.

    With several labels for a row, the column holds lists, or texts such as ``"a, b"`` or ``'["a", "b"]'``.

    Raises
    ------
    InputError
        If the task gives no labels, there is no such column, or it holds none of the candidates.
    """
    first = next(iter(jobs.values()))
    choices: Choices | None = getattr(
        first.plan[-1].task, "choices", None
    )  # only tasks that give labels have the field
    if choices is None:
        raise InputError(
            f"{type(first.plan[-1].task).__name__} gives no labels to compare.", "evaluate takes tasks that classify."
        )
    manifest = first.manifest()
    drawn = draw(first, manifest, list(first.units(manifest)), label_column, seed, _ENOUGH_UNITS)
    names = dict(zip(manifest.labels or (), choices.labels, strict=False))  # by what the column may hold in their place
    labelled = [
        (text, _true_labels(label, choices, names))
        for text, label in zip(drawn.texts, drawn.extra, strict=True)
        if text is not None and text.strip() and label is not None
    ][:sample]
    if not labelled:
        raise InputError(f"label_column={label_column!r} holds no labels beside a text.", "Name the column with them.")
    found = {label for _, labels in labelled for label in labels}
    if found and not found & set(choices.labels):
        raise InputError(
            f"label_column={label_column!r} holds none of the candidate labels, but such as {min(found)[:80]!r}.",
            f"Candidates: {', '.join(choices.labels)}.",
        )
    asked = ask_rows(jobs, [text for text, _ in labelled], first.budget_usd)
    n_rows = min(len(one.rows) for one in asked.values())
    if not n_rows:
        raise InputError(f"No row was asked: {next(one.stopped for one in asked.values() if one.stopped)}.")
    truth = [labels for _, labels in labelled[:n_rows]]
    return [_evaluate(name, job, truth, asked[name], choices) for name, job in jobs.items()]


def _evaluate(model: str, job: Job, truth: list[Labels], asked: Asked, choices: Choices) -> Evaluation:
    from scipy.stats import binomtest

    answers = [_labels_of(job, row) for row in asked.rows[: len(truth)]]
    right = sum(answer == labels for answer, labels in zip(answers, truth, strict=True))
    interval = binomtest(right, len(truth)).proportion_ci(_LEVEL, "wilson")
    names = sorted({label for labels in (*truth, *answers) for label in labels or ()})
    return Evaluation(
        model=model,
        rows=len(truth),
        accuracy=right / len(truth),
        low=float(interval.low),
        high=float(interval.high),
        failed=sum(answer is None for answer in answers),
        foreign=sum(not labels <= set(choices.labels) for labels in truth),
        labels=names,
        confusion=[] if choices.multiple else _confusion(truth, answers, names),
        f1=_f1(truth, answers) if choices.multiple else None,
        usd_per_1000=_cost(job, asked),
        rows_per_s=asked.rows_per_s,
        errors=asked.failures.total(),
        reason=asked.reason,
        stopped=asked.stopped,
    )


def _true_labels(told: Any, choices: Choices, names: Mapping[str, str]) -> Labels:
    if not choices.multiple or str(told) in choices.labels:
        return frozenset([names.get(str(told), str(told))])
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError:
            told = told.split(",")
    several = (str(label).strip() for label in (told if isinstance(told, list) else [told]))
    return frozenset(label for label in several if label)


def _labels_of(job: Job, row: Row[Any]) -> Labels | None:
    found = row.value
    if found is not None and isinstance(job.plan[-1].task, (CoTTask, MultiLabelCoTTask)):
        found = found[0]  # beside it stands the explanation
    if found is None:
        return None
    return frozenset([found] if isinstance(found, str) else found)


def _f1(truth: Sequence[Labels], answers: Sequence[Labels | None]) -> float:
    both = sum(len(labels & (answer or frozenset())) for labels, answer in zip(truth, answers, strict=True))
    either = sum(map(len, truth)) + sum(len(answer or ()) for answer in answers)
    return 2 * both / either if either else 1.0


def _confusion(truth: Sequence[Labels], answers: Sequence[Labels | None], labels: list[str]) -> list[list[int]]:
    place = {frozenset([label]): i for i, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for label, answer in zip(truth, answers, strict=True):
        counts[place[label]][len(labels) if answer is None else place[answer]] += 1
    return counts


def _cost(job: Job, asked: Asked) -> float | None:
    if all(step.spec.capabilities.price == Price(0.0) for step in job.plan):
        return 0.0
    cost, good = asked.cost_usd, len(asked.rows) - asked.failures.total()
    return None if cost is None or not good else 1000 * cost / good
