"""Models compared on labelled rows, before the big job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from skllm_ray.batch.job import Job
from skllm_ray.batch.sampling import draw
from skllm_ray.errors import InputError
from skllm_ray.llm.registry import price_of_spec

_ENOUGH_UNITS: Final = 64
_LEVEL: Final = 0.95


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a sample."""

    model: str
    rows: int
    accuracy: float
    low: float
    """The lower end of the accuracy's 95% interval (Wilson's)."""
    high: float
    failed: int
    """Rows without a valid answer; they count as wrong."""
    labels: list[str]
    confusion: list[list[int]]
    """Rows are the truth, columns the answers; the last column is for rows without one."""
    usd_per_1000: float | None
    rows_per_s: float


def evaluate_models(jobs: Mapping[str, Job], label_column: str, sample: int = 200, seed: int = 0) -> list[Evaluation]:
    """Ask each model for the same labelled rows, drawn at random, and compare its answers with the labels.

    Raises
    ------
    InputError
        If there is no such column, or it holds no labels.
    """
    first = next(iter(jobs.values()))
    drawn = draw(first, first.plan(), label_column, seed, _ENOUGH_UNITS)
    labelled = [
        (text, str(label))
        for text, label in zip(drawn.texts, drawn.extra, strict=True)
        if text is not None and text.strip() and label is not None
    ][:sample]
    if not labelled:
        raise InputError(f"label_column={label_column!r} holds no labels beside a text.", "Name the column with them.")
    return [_evaluate(name, job, labelled) for name, job in jobs.items()]


def _evaluate(model: str, job: Job, labelled: list[tuple[str, str]]) -> Evaluation:
    from scipy.stats import binomtest

    texts = [text for text, _ in labelled]
    job.ask(texts[:1])  # starts what has to be started
    began = time.perf_counter()
    rows = job.ask(texts)
    seconds = time.perf_counter() - began
    found = [row.value[0] if isinstance(row.value, (tuple, list)) and row.value else row.value for row in rows]
    answers = [None if value is None else str(value) for value in found]
    truth = [label for _, label in labelled]
    right = sum(answer == label for answer, label in zip(answers, truth, strict=True))
    interval = binomtest(right, len(truth)).proportion_ci(_LEVEL, "wilson")
    labels = sorted({*truth, *(answer for answer in answers if answer is not None)})
    return Evaluation(
        model=model,
        rows=len(truth),
        accuracy=right / len(truth),
        low=float(interval.low),
        high=float(interval.high),
        failed=sum(answer is None for answer in answers),
        labels=labels,
        confusion=_confusion(truth, answers, labels),
        usd_per_1000=_cost(job, rows),
        rows_per_s=len(truth) / seconds,
    )


def _confusion(truth: list[str], answers: list[str | None], labels: list[str]) -> list[list[int]]:
    place = {label: i for i, label in enumerate(labels)}
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
