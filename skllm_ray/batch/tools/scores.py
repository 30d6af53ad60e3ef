"""How good answers are, measured against the truth: figures alone, free of models, files and screens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Labels = frozenset[str]
"""A row's labels; one where the task asks for one."""
Pairs = Mapping[tuple[Labels, Labels | None], int]
"""How many rows have a truth and an answer; None where there is no valid answer."""

_LEVEL: Final = 0.95
_BINS: Final = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class LabelScore:
    """How good the answers are for one label."""

    label: str
    rows: int
    """Rows with this label in truth."""
    precision: float | None
    """Share of the answers with this label that are right; None where no answer has it."""
    recall: float | None
    """Share of the rows with this label that are answered with it; None where no row has it."""
    f1: float
    """The harmonic mean of both; 0 where either is 0 or None."""
    recall_low: float | None = None
    """The lower end of the recall's 95% interval (Wilson's); None where there is no recall."""
    recall_high: float | None = None


@dataclass(frozen=True)
class Confusion:
    """A mistake, and how often it was made."""

    truth: str
    answer: str | None
    """None where there was no valid answer."""
    rows: int


@dataclass(frozen=True)
class CertaintyBin:
    """The rows whose answer has a probability in a range, and how many of them are right."""

    low: float
    high: float
    rows: int
    probability: float
    """The mean of the answers' probabilities."""
    accuracy: float


@dataclass(frozen=True)
class Difference:
    """How much more rows one candidate has right than another, of the same rows."""

    other: str
    """The candidate that it is compared with."""
    difference: float
    """Its accuracy less the other's."""
    low: float
    """The lower end of the difference's 95% interval."""
    high: float
    better: int
    """Rows that it alone has right."""
    worse: int
    """Rows that the other alone has right."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def pairs_of(truth: Sequence[Labels], answers: Sequence[Labels | None]) -> Counter[tuple[Labels, Labels | None]]:
    """Return how many rows have each truth with each answer."""
    return Counter(zip(truth, answers, strict=True))


def label_scores(pairs: Pairs) -> list[LabelScore]:
    """Return the scores of each label that stands in the truth or in an answer, the commonest in truth first.

    Examples
    --------
    >>> a, b = frozenset("a"), frozenset("b")
    >>> [(one.label, one.precision, one.recall) for one in label_scores(pairs_of([a, a, b], [a, b, b]))]
    [('a', 1.0, 0.5), ('b', 0.5, 1.0)]
    """
    in_truth: Counter[str] = Counter()
    in_answers: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for (true, answer), rows in pairs.items():
        found = answer or Labels()
        in_truth.update(dict.fromkeys(true, rows))
        in_answers.update(dict.fromkeys(found, rows))
        right.update(dict.fromkeys(true & found, rows))
    names = sorted(in_truth | in_answers, key=lambda label: (-in_truth[label], label))
    return [_score(label, in_truth[label], in_answers[label], right[label]) for label in names]


def _score(label: str, in_truth: int, in_answers: int, right: int) -> LabelScore:
    low, high = accuracy_interval(right, in_truth) if in_truth else (None, None)
    return LabelScore(
        label,
        in_truth,
        right / in_answers if in_answers else None,
        right / in_truth if in_truth else None,
        2 * right / (in_truth + in_answers),
        low,
        high,
    )


def macro_f1(scores: Sequence[LabelScore]) -> float:
    """Return the mean of the labels' F1, as scikit-learn's ``f1_score(average="macro")`` does; 0 without labels."""
    return sum(one.f1 for one in scores) / max(1, len(scores))


def majority_share(pairs: Pairs) -> float:
    """Return the accuracy of whoever always answers what is true most often."""
    of_truth: Counter[Labels] = Counter()
    for (true, _), rows in pairs.items():
        of_truth[true] += rows
    return max(of_truth.values()) / of_truth.total()


def right_rows(pairs: Pairs) -> int:
    """Return how many rows have the right answer."""
    return sum(rows for (true, answer), rows in pairs.items() if true == answer)


def accuracy_interval(right: int, rows: int) -> tuple[float, float]:
    """Return the 95% interval of an accuracy (Wilson's)."""
    from scipy.stats import binomtest

    interval = binomtest(right, rows).proportion_ci(_LEVEL, "wilson")
    return float(interval.low), float(interval.high)


def top_confusions(pairs: Pairs, n: int = 10) -> list[Confusion]:
    """Return the commonest mistakes, of rows with one label each; rows without a valid answer are one of them."""
    wrong = [
        Confusion(_name(true), None if answer is None else _name(answer), rows)
        for (true, answer), rows in pairs.items()
        if true != answer
    ]
    return sorted(wrong, key=lambda one: (-one.rows, one.truth, one.answer or ""))[:n]


def _name(labels: Labels) -> str:
    return ", ".join(sorted(labels))


class CertaintyCounts:
    """How often answers are right, by their probability, counted a block of rows at a time."""

    def __init__(self) -> None:
        self._rows, self._right = (np.zeros(len(_BINS) - 1, np.int64) for _ in range(2))
        self._sums = np.zeros(len(_BINS) - 1)

    def add(self, probabilities: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> None:
        """Count some rows; those whose probability is not from 0 to 1 are left out."""
        known = (probabilities >= 0) & (probabilities <= 1)
        places = np.digitize(probabilities[known], _BINS[1:-1])
        self._rows += self._count(places)
        self._right += self._count(places, right[known]).astype(np.int64)
        self._sums += self._count(places, probabilities[known])

    def bins(self) -> list[CertaintyBin]:
        """Return the ranges that hold rows, the lowest first."""
        return [
            CertaintyBin(low, high, int(n), float(total / n), float(right / n))
            for (low, high), n, total, right in zip(pairwise(_BINS), self._rows, self._sums, self._right, strict=True)
            if n
        ]

    @staticmethod
    def _count(places: npt.NDArray[np.int64], weights: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        return np.bincount(places, weights, minlength=len(_BINS) - 1)


def certainty(probabilities: Sequence[float], right: Sequence[bool]) -> list[CertaintyBin]:
    """Return how often answers are right, by their probability; nothing where no answer has one.

    Parameters
    ----------
    probabilities : sequence of float
        Of each answer, from 0 to 1; what is not finite is left out.
    right : sequence of bool
        Whether each answer is right.
    """
    counts = CertaintyCounts()
    counts.add(np.asarray(probabilities, float), np.asarray(right, bool))
    return counts.bins()


def calibration_error(bins: Sequence[CertaintyBin]) -> float | None:
    """Return the expected calibration error over the bins, from 0 to 1; None without any.

    Source: M. Pakdaman Naeini, G. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning", AAAI 2015.
    """
    n = sum(one.rows for one in bins)
    return sum(one.rows * abs(one.probability - one.accuracy) for one in bins) / n if n else None


def paired_difference(other: str, theirs: Sequence[bool], ours: Sequence[bool]) -> Difference:
    """Return how two candidates differ on the same rows, with an interval that knows that the rows are the same.

    Half a row is added to each cell of the table of both: A. Agresti, Y. Min, "Simple improved confidence intervals for
    comparing matched proportions", Statistics in Medicine 24 (2005), p. 729.

    Parameters
    ----------
    other : str
        The name of the candidate that is compared with.
    theirs, ours : sequence of bool
        Which rows each of them has right.

    Examples
    --------
    >>> found = paired_difference("a", [True] * 80 + [False] * 20, [True] * 100)
    >>> round(found.difference, 2), found.better, found.worse, found.is_clear
    (0.2, 20, 0, True)
    """
    better = sum(our and not their for our, their in zip(ours, theirs, strict=True))
    worse = sum(their and not our for our, their in zip(ours, theirs, strict=True))
    n = len(ours)
    b, c, of = better + 0.5, worse + 0.5, n + 2
    centre = (b - c) / of
    half = NormalDist().inv_cdf(0.5 + _LEVEL / 2) * ((b + c - (b - c) ** 2 / of) ** 0.5) / of
    return Difference(other, (better - worse) / n, max(-1.0, centre - half), min(1.0, centre + half), better, worse)
