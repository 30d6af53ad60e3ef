"""Models compared on labelled rows, before the big job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from skllm_ray.batch.job import Job
from skllm_ray.batch.sampling import ask_timed, draw
from skllm_ray.errors import InputError
from skllm_ray.llm.registry import price_of_spec
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
    rows_per_s: float


def evaluate_models(jobs: Mapping[str, Job], label_column: str, sample: int = 200, seed: int = 0) -> list[Evaluation]:
    """Ask each model for the same labelled rows, drawn at random, and compare its answers with the labels.

    With several labels for a row, the column holds lists, or texts such as ``"a, b"`` or ``'["a", "b"]'``.

    Raises
    ------
    InputError
        If the task gives no labels, there is no such column, or it holds none of the candidates.
    """
    first = next(iter(jobs.values()))
    choices: Choices | None = getattr(first.task, "choices", None)
    if choices is None:
        raise InputError(
            f"{type(first.task).__name__} gives no labels to compare.", "evaluate takes tasks that classify."
        )
    manifest = first.plan()
    drawn = draw(first, manifest, list(first.units(manifest)), label_column, seed, _ENOUGH_UNITS)
    labelled = [
        (text, _true_labels(label, choices))
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
    return [_evaluate(name, job, labelled, choices) for name, job in jobs.items()]


def _evaluate(model: str, job: Job, labelled: list[tuple[str, Labels]], choices: Choices) -> Evaluation:
    from scipy.stats import binomtest

    rows, rows_per_s = ask_timed(job, [text for text, _ in labelled])
    answers = [_labels_of(job, row) for row in rows]
    truth = [labels for _, labels in labelled]
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
        usd_per_1000=_cost(job, rows),
        rows_per_s=rows_per_s,
    )


def _true_labels(told: Any, choices: Choices) -> Labels:
    if not choices.multiple or str(told) in choices.labels:
        return frozenset([str(told)])
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError:
            told = told.split(",")
    names = (str(label).strip() for label in (told if isinstance(told, list) else [told]))
    return frozenset(name for name in names if name)


def _labels_of(job: Job, row: Row[Any]) -> Labels | None:
    found = row.value
    if found is not None and isinstance(job.task, (CoTTask, MultiLabelCoTTask)):
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


def _cost(job: Job, rows: list[Any]) -> float | None:
    price = price_of_spec(job.spec)
    if price is not None and not price.input and not price.output:
        return 0.0
    costs = [row.reply.usage.cost_usd for row in rows]
    return None if any(cost is None for cost in costs) else 1000 * sum(costs) / len(costs)
