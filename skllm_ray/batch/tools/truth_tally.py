"""A job's answers against the true labels in a column of its parts, counted part by part."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from skllm_ray.batch.tools.part_rows import PartColumns, PartRows
from skllm_ray.batch.tools.scores import (
    CertaintyBin,
    CertaintyCounts,
    Confusion,
    Labels,
    LabelScore,
    accuracy_interval,
    calibration_error,
    label_scores,
    macro_f1,
    majority_share,
    right_rows,
    top_confusions,
)
from skllm_ray.batch.tools.truth import true_labels

_STEPS: Final = 200
_SHOWN: Final = 5
_MISTAKES: Final = 15
ALL: Final = None
"""In place of a label: all rows."""


@dataclass(frozen=True)
class Judged:
    """The rows of a part beside the truth."""

    truths: list[str | None]
    """The true labels as texts; None where they are not told."""
    verdicts: npt.NDArray[np.int8]
    """1 where the answer is right, 0 where it is wrong, -1 where that is not known."""


class TruthTally:
    """How good the answers of a job are.

    Parameters
    ----------
    column : str
        The parts' column with the true labels.
    columns : PartColumns
        What the other columns are called.
    renamed : mapping of str to str, default=None
        What the column calls otherwise: what it holds, and the label.
    """

    def __init__(self, column: str, columns: PartColumns, renamed: Mapping[str, str] | None = None) -> None:
        self.column = column
        self._renamed = renamed or {}
        self._known = frozenset(columns.labels or ())
        self.pairs: Counter[tuple[Labels, Labels | None]] = Counter()
        self.unlabelled = 0
        """Rows whose truth is not told; they count nowhere."""
        self.by_confidence: dict[str | None, npt.NDArray[np.int64]] = defaultdict(
            lambda: np.zeros((2, _STEPS), np.int64)
        )
        """By answer: how many rows are wrong and right, by the probability of their answer; of all rows under `ALL`."""
        self._certainty = CertaintyCounts()

    def add(self, part: PartRows) -> Judged:
        """Count a part, and return how its rows were judged."""
        truths, answers = self._truths(part), _answers(part)
        self.pairs.update((truth, answer) for truth, answer in zip(truths, answers, strict=True) if truth is not None)
        verdicts = np.array(
            [-1 if truth is None else int(truth == answer) for truth, answer in zip(truths, answers, strict=True)],
            np.int8,
        )
        self.unlabelled += int((verdicts < 0).sum())
        sure = part.probabilities
        told = (verdicts >= 0) & part.valid & (sure >= 0) & (sure <= 1)
        self._certainty.add(sure[told], verdicts[told] == 1)
        steps = np.minimum((np.where(told, sure, 0) * _STEPS).astype(int), _STEPS - 1)
        self._count(ALL, steps[told], verdicts[told])
        if not part.several:
            names = np.array([next(iter(answer)) if answer else "" for answer in answers], object)
            for name in set(names[told].tolist()):
                chosen = told & (names == name)
                self._count(name, steps[chosen], verdicts[chosen])
        return Judged([None if truth is None else _joined(truth) for truth in truths], verdicts)

    # --- what the page shows --------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows with a truth."""
        return self.pairs.total()

    @property
    def right(self) -> int:
        """Rows with the right answer."""
        return right_rows(self.pairs)

    @property
    def foreign(self) -> int:
        """Rows with a true label that is no candidate."""
        return sum(rows for (truth, _), rows in self.pairs.items() if not truth <= self._known)

    @property
    def foreign_labels(self) -> str:
        """The true labels that are no candidates, the commonest first, and how many rows have each."""
        counts: Counter[str] = Counter()
        for (truth, _), rows in self.pairs.items():
            counts.update(dict.fromkeys(truth - self._known, rows))
        shown = ", ".join(f"{label[:80]!r} ({rows:,})" for label, rows in counts.most_common(_SHOWN))
        return shown + (f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else "")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy."""
        return accuracy_interval(self.right, self.rows)

    @property
    def baseline(self) -> float:
        """The accuracy of whoever always answers the commonest label."""
        return majority_share(self.pairs)

    @property
    def scores(self) -> list[LabelScore]:
        """Each label's precision, recall and F1."""
        return label_scores(self.pairs)

    @property
    def macro_f1(self) -> float:
        """The mean of the labels' F1."""
        return macro_f1(self.scores)

    @property
    def confusions(self) -> list[Confusion]:
        """The commonest mistakes."""
        return top_confusions(self.pairs, _MISTAKES)

    @property
    def certainty(self) -> list[CertaintyBin]:
        """How often answers are right, by their probability."""
        return self._certainty.bins()

    @property
    def calibration_error(self) -> float | None:
        """How far probabilities are from the share of right answers."""
        return calibration_error(self.certainty)

    def matrix(self) -> tuple[list[str], list[list[int]]]:
        """Return the labels, and how often each truth (a row) has each answer, or none (the last column)."""
        names = sorted({_joined(one) for pair in self.pairs for one in pair if one is not None})
        place = {name: i for i, name in enumerate(names)}
        found = [[0] * (len(names) + 1) for _ in names]
        for (truth, answer), rows in self.pairs.items():
            column = len(names) if answer is None else place[_joined(answer)]
            found[place[_joined(truth)]][column] += rows
        return names, found

    def precision_recall(self, label: str | None) -> tuple[list[float], list[float]]:
        """Return the recall and the precision of the answers with each least probability, the surest first.

        Parameters
        ----------
        label : str or None
            The answer that it is about; None for all answers together.
        """
        wrong, right = (np.cumsum(counts[::-1]) for counts in self.by_confidence[label])
        kept = wrong + right
        of = self.rows if label is ALL else sum(rows for (truth, _), rows in self.pairs.items() if label in truth)
        some = kept > 0
        return (right[some] / max(1, of)).tolist(), (right[some] / kept[some]).tolist()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _truths(self, part: PartRows) -> list[Labels | None]:
        told = part.table.column(self.column)
        if not part.several:
            told = _as_texts(told)
        several, names = part.several, self._renamed
        return [
            None if cell is None else true_labels(cell, self._known, names, several=several)
            for cell in told.to_pylist()
        ]

    def _count(self, label: str | None, steps: npt.NDArray[Any], verdicts: npt.NDArray[Any]) -> None:
        for verdict in (0, 1):
            self.by_confidence[label][verdict] += np.bincount(steps[verdicts == verdict], minlength=_STEPS)


def _joined(labels: Labels) -> str:
    return ", ".join(sorted(labels))


def _as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of labels as texts, null where there is none; 1.0, as pandas writes a 1 beside gaps, is 1."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        if pc.all(pc.equal(pc.floor(column), column)).as_py():
            column = column.cast(pa.int64())
    texts = column.cast(pa.string())
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)


def _answers(part: PartRows) -> list[Labels | None]:
    """Return each row's labels; None where there is no valid answer."""
    found = [] if part.labels is None else part.labels.to_pylist()
    return [
        None if told is None or not valid else frozenset(filter(None, told) if isinstance(told, list) else [told])
        for told, valid in zip(found, part.valid.tolist(), strict=True)
    ]
