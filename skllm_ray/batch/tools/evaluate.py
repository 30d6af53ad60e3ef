"""Models compared on labelled rows, before the big job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from skllm_ray.batch.job.asker import Asked, ask_rows
from skllm_ray.batch.job.job import Job
from skllm_ray.batch.tools.sampling import draw
from skllm_ray.batch.tools.scores import (
    CertaintyBin,
    Confusion,
    Difference,
    Labels,
    LabelScore,
    accuracy_interval,
    calibration_error,
    certainty,
    label_scores,
    macro_f1,
    majority_share,
    paired_difference,
    pairs_of,
    top_confusions,
)
from skllm_ray.batch.tools.truth import true_labels
from skllm_ray.config import Price
from skllm_ray.errors import InputError
from skllm_ray.execution.plan import label_probability
from skllm_ray.tasks.base import Choices, Row
from skllm_ray.tasks.cot import CoTTask, MultiLabelCoTTask
from skllm_ray.tasks.one_label import one_label

_ENOUGH_UNITS: Final = 64


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
    baseline: float = 0.0
    """The accuracy of whoever always answers the commonest label, or set of labels."""
    macro_f1: float = 0.0
    """The mean of the labels' F1."""
    scores: list[LabelScore] = field(default_factory=list)
    """Each label's precision, recall and F1, the commonest label first."""
    confusions: list[Confusion] = field(default_factory=list)
    """The commonest mistakes; none with several labels."""
    certainty: list[CertaintyBin] = field(default_factory=list)
    """How often answers are right, by their probability; empty where the model tells no probability."""
    calibration_error: float | None = None
    """How far probabilities are from the share of right answers, in the mean; None where there are none."""
    one_label: str = ""
    """A warning where nearly all answers are one label, and the truth is not."""
    against_first: Difference | None = None
    """How it differs from the first of those that were compared; None for the first itself."""

    @property
    def mostly_failed(self) -> bool:
        """Whether more than half of the rows have no answer, so that the figures say little of the model."""
        return 2 * self.errors > self.rows


@dataclass(frozen=True)
class Comparison:
    """What several models, prompts, or sets of labels say of the same labelled rows."""

    evaluations: list[Evaluation]
    texts: list[str]
    truth: dict[str, list[Labels]]
    """The true labels, as each candidate calls them."""
    answers: dict[str, list[Labels | None]]
    """Each candidate's answers; None where there is no valid one."""
    probabilities: dict[str, list[float]]
    """Each candidate's probabilities of its answers; -inf where there is none."""


def compare_models(
    jobs: Mapping[str, Job],
    label_column: str,
    sample: int = 200,
    seed: int = 0,
    renamed: Mapping[str, Mapping[str, str]] | None = None,
) -> Comparison:
    """Ask about the same labelled rows, drawn at random, in several ways, and compare the answers with the labels.

    With several labels for a row, the column holds lists, or texts such as ``"a, b"`` or ``'["a", "b"]'``.

    Parameters
    ----------
    jobs : mapping of str to Job
        What is compared, by name: jobs of several models, prompts or sets of labels over the same input.
    label_column : str
        The input's column with the true labels.
    sample : int, default=200
        How many rows each is asked about, at most.
    seed : int, default=0
        Which rows.
    renamed : mapping of str to mapping of str to str, default=None
        For jobs whose labels are called otherwise than in the column, by name: what it holds, and the label.

    Raises
    ------
    InputError
        If a task gives no labels, there is no such column, or it holds none of a job's labels.
    """
    first, several = next(iter(jobs.values())), {name: _choices(job) for name, job in jobs.items()}
    manifest = first.manifest()
    drawn = draw(first, manifest, first.units(manifest), label_column, seed, _ENOUGH_UNITS)
    labelled = [
        (text, told)
        for text, told in zip(drawn.texts, drawn.extra, strict=True)
        if text is not None and text.strip() and told is not None
    ][:sample]
    if not labelled:
        if not manifest.rows_total:
            raise InputError("input: there are no rows in it.", "Name files with rows.")
        raise InputError(f"label_column={label_column!r} holds no labels beside a text.", "Name the column with them.")
    texts, cells = [text for text, _ in labelled], [told for _, told in labelled]
    truths = {
        name: _truth(cells, choices, jobs[name].labels or (), (renamed or {}).get(name, {}), label_column)
        for name, choices in several.items()
    }
    asked = ask_rows(jobs, texts, first.budget_usd)
    n_rows = min(len(one.rows) for one in asked.values())
    if not n_rows:
        raise InputError(f"No row was asked: {next(one.stopped for one in asked.values() if one.stopped)}.")
    truths = {name: truth[:n_rows] for name, truth in truths.items()}
    answers = {name: [_labels_of(job, row) for row in asked[name].rows[:n_rows]] for name, job in jobs.items()}
    probabilities = {name: label_probability(asked[name].rows[:n_rows]).tolist() for name in jobs}
    found = [
        _evaluate(name, job, truths[name], answers[name], asked[name], several[name], probabilities[name])
        for name, job in jobs.items()
    ]
    return Comparison(_compared(found, truths, answers), texts[:n_rows], truths, answers, probabilities)


def _choices(job: Job) -> Choices:
    task = job.plan[-1].task
    found: Choices | None = getattr(task, "choices", None)  # only tasks that give labels have the field
    if found is None:
        raise InputError(f"{type(task).__name__} gives no labels to compare.", "evaluate takes tasks that classify.")
    return found


def _truth(
    cells: Sequence[Any], choices: Choices, labels: Sequence[str], renamed: Mapping[str, str], column: str
) -> list[Labels]:
    """Return the true labels of some rows, as a job calls them."""
    names = dict(zip(labels, choices.labels, strict=False))  # by what the column may hold in their place
    found = [true_labels(told, choices.labels, {**names, **renamed}, several=choices.multiple) for told in cells]
    seen = {label for labels in found for label in labels}
    if seen and not seen & set(choices.labels):
        raise InputError(
            f"label_column={column!r} holds none of the candidate labels, but such as {min(seen)[:80]!r}.",
            f"Candidates: {', '.join(choices.labels)}. renamed_labels tells which of them the column names otherwise.",
        )
    return found


def _compared(
    found: list[Evaluation], truths: Mapping[str, list[Labels]], answers: Mapping[str, Sequence[Labels | None]]
) -> list[Evaluation]:
    """Return the evaluations, each but the first with how it differs from the first."""
    first, *others = found
    right = {name: _right(truths[name], theirs) for name, theirs in answers.items()}
    return [
        first,
        *(
            replace(one, against_first=paired_difference(first.model, right[first.model], right[one.model]))
            for one in others
        ),
    ]


def _right(truth: Sequence[Labels], answers: Sequence[Labels | None]) -> list[bool]:
    return [answer == labels for answer, labels in zip(answers, truth, strict=True)]


def _evaluate(
    model: str,
    job: Job,
    truth: list[Labels],
    answers: list[Labels | None],
    asked: Asked,
    choices: Choices,
    probabilities: list[float],
) -> Evaluation:
    is_right = _right(truth, answers)
    low, high = accuracy_interval(sum(is_right), len(truth))
    pairs = pairs_of(truth, answers)
    scores, bins = label_scores(pairs), certainty(probabilities, is_right)
    names = sorted({label for labels in (*truth, *answers) for label in labels or ()})
    return Evaluation(
        model=model,
        rows=len(truth),
        accuracy=sum(is_right) / len(truth),
        low=low,
        high=high,
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
        baseline=majority_share(pairs),
        macro_f1=macro_f1(scores),
        scores=scores,
        confusions=[] if choices.multiple else top_confusions(pairs),
        certainty=bins,
        calibration_error=calibration_error(bins),
        one_label=_one_label(truth, answers, len(choices.labels)),
    )


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


def _one_label(truth: list[Labels], answers: list[Labels | None], n_candidates: int) -> str:
    given = Counter(next(iter(answer)) for answer in answers if answer and len(answer) == 1)
    if not given:
        return ""
    label, n = given.most_common(1)[0]
    is_true = one_label(label, sum(labels == {label} for labels in truth), len(truth), n_candidates)
    return "" if is_true else one_label(label, n, len(truth), n_candidates)


def _cost(job: Job, asked: Asked) -> float | None:
    if all(step.spec.capabilities.price == Price(0.0) for step in job.plan):
        return 0.0
    cost, good = asked.cost_usd, len(asked.rows) - asked.failures.total()
    return None if cost is None or not good else 1000 * cost / good
