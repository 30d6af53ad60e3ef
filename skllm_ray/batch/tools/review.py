"""Rows of an output that a person should look at, and what becomes of their corrections."""

from __future__ import annotations

import csv
import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from skllm_ray.batch.tools.neighbours import nearest
from skllm_ray.batch.tools.part_rows import short
from skllm_ray.batch.tools.reviewed_output import ReviewedOutput, ReviewRow, text_of
from skllm_ray.batch.tools.scores import accuracy_interval
from skllm_ray.cascade import random_keys
from skllm_ray.errors import ConfigurationError, InputError

COLUMNS: Final = (
    "row", "why", "text", "label", "probability", "fast_label", "error", "neighbours", "correct_label",
)  # fmt: skip
"""What a table for review holds."""
_POOL: Final = 5_000
_MOST: Final = (200, 50)
"""Rows to look at, and random ones, unless told otherwise."""
_SHARE: Final = (5, 20)
"""Of a small output then no more than one row in as many: nobody wants to look at all."""
_SHOWN: Final = 120


@dataclass(frozen=True)
class Corrections:
    """What people said of rows of an output.

    Its `texts` and `labels` go into ``fit`` of a few-shot classifier, of a classifier with a ``label_prior`` (whose
    prior they then tell), and into :meth:`DistilledClassifier.of_labels`.
    """

    rows: list[str]
    """Where they stand: the part and the row in it."""
    texts: list[str]
    labels: list[Any]
    """The true label of each; of tasks with several, a list."""
    answers: list[str | None]
    """What the model had said."""
    why: list[str]
    """Why the row was looked at."""

    @property
    def n_changed(self) -> int:
        """Rows whose answer was wrong."""
        return sum(not right for right in self._right())

    @property
    def changes(self) -> list[tuple[str | None, str, int]]:
        """Return what was answered, what is true in its place, and how often, the commonest first."""
        triples = zip(self.answers, self.labels, self._right(), strict=True)
        counts = Counter((answer, text_of(label) or "") for answer, label, right in triples if not right)
        return [(answer, label, n) for (answer, label), n in counts.most_common()]

    @property
    def accuracy(self) -> tuple[float, float, float, int] | None:
        """How often the job's answers are right: the share, its 95% interval, and of how many rows.

        From the rows that were drawn at random alone: the others were chosen because they are hard. None without any.
        """
        right = [one for one, why in zip(self._right(), self.why, strict=True) if why == "random"]
        if not right:
            return None
        low, high = accuracy_interval(sum(right), len(right))
        return sum(right) / len(right), low, high, len(right)

    @property
    def shares(self) -> dict[str, float]:
        """How often each label is true, among the rows that were drawn at random; among all, where there are none."""
        drawn = [one for one, why in zip(self.labels, self.why, strict=True) if why == "random"] or self.labels
        counts = Counter(label for one in drawn for label in (one if isinstance(one, list) else [one]))
        return {str(label): n / len(drawn) for label, n in counts.most_common()}

    def facts(self) -> dict[str, str]:
        """Return it in words."""
        found = {"reviewed": f"{len(self.rows):,} rows", "corrected": f"{self.n_changed:,} of them"}
        for why in dict.fromkeys(self.why):
            right = [one for one, other in zip(self._right(), self.why, strict=True) if other == why]
            found[f"right, {why}"] = f"{sum(right):,} of {len(right):,}"
        if self.accuracy is not None:
            share, low, high, n = self.accuracy
            found["right in all"] = f"{share:.1%} (95% interval {low:.1%} to {high:.1%}, from {n:,} random rows)"
        shares = list(self.shares.items())[:10]
        found["true labels"] = ", ".join(f"{label} {share:.0%}" for label, share in shares)
        return found

    def write_examples(self, path: str) -> None:
        """Write texts and labels as CSV, as ``skllm-ray run few-shot --examples`` takes them."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            told = (", ".join(label) if isinstance(label, list) else label for label in self.labels)
            writer.writerows(zip(self.texts, told, strict=True))

    def _right(self) -> list[bool]:
        pairs = zip(self.answers, self.labels, strict=True)
        return [
            answer is not None
            and (set(answer.split(", ")) == set(label) if isinstance(label, list) else answer == label)
            for answer, label in pairs
        ]


def review(
    output: str,
    *,
    n_rows: int | None = None,
    n_random: int | None = None,
    seed: int = 0,
    storage_options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return rows of an output that are worth a look: disputed, without an answer, uncertain; and some at random.

    The random ones tell how good all answers are; the others are where most mistakes are found. Rows that were
    corrected before are left out.

    Parameters
    ----------
    output : str
        The job's output folder.
    n_rows : int or None, default=None
        How many rows to return besides the random ones; None takes 200, of a small output a fifth of its rows. A half
        at most are those about which a cascade's two models disagree, a quarter at most those without a valid answer,
        and the others those with the lowest probability.
    n_random : int or None, default=None
        How many random rows; None takes 50, of a small output a twentieth of its rows.
    seed : int, default=0
        Which random rows.
    storage_options : mapping or None, default=None
        What opens the output's filesystem.

    Returns
    -------
    DataFrame
        With the columns ``row``, ``why``, ``text``, ``label``, ``probability``, ``fast_label``, ``error``,
        ``neighbours`` (the texts of the output that are most like it, by their words, and their labels) and
        ``correct_label``, which is empty: fill it in, with "=" where the label is right, and give the table to
        `correct`.

    Raises
    ------
    InputError
        If there is no job in `output`, it gives no labels, or its parts do not hold the texts.
    """
    for name, value in (("n_rows", n_rows), ("n_random", n_random)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ConfigurationError(f"{name} must be an int of at least 0, or None; got {value!r}.")
    opened = ReviewedOutput.open(output, storage_options)
    known = opened.corrected()
    chosen = _Chosen(n_rows, n_random)
    at = 0
    for found in opened.rows():
        keys = random_keys(seed, "review", np.arange(at, at + len(found)))
        at += len(found)
        for one, key in zip(found, keys.tolist(), strict=True):
            if one.row not in known and one.text.strip():
                chosen.add(one, int(key))
    rows = chosen.rows()
    near = nearest([one.text for _, one in rows], [one.text for one in chosen.pool])
    table = [
        [one.row, why, one.text, one.label, one.probability, one.fast_label, one.error, _told(others, chosen.pool), ""]
        for (why, one), others in zip(rows, near, strict=True)
    ]
    return pd.DataFrame(table, columns=list(COLUMNS))


def correct(
    output: str, table: str | pd.DataFrame | None = None, *, storage_options: Mapping[str, Any] | None = None
) -> Corrections:
    """Take corrections back, keep them beside the output, and return all that there are.

    Parameters
    ----------
    output : str
        The job's output folder.
    table : str, DataFrame or None, default=None
        What `review` returned, or a CSV file of it, with ``correct_label`` filled in: a candidate label, "=" where the
        label is right, and nothing where nobody looked. Labels of a task with several have commas between them. None
        takes nothing new.
    storage_options : mapping or None, default=None
        What opens the output's filesystem.

    Returns
    -------
    Corrections
        Of this table and of those before; a row's last correction holds. Texts and answers come from the output, so
        that a spreadsheet may have changed the table's other columns.

    Raises
    ------
    InputError
        If a row is not one of the output, or a label is no candidate; nothing is kept then.
    """
    opened = ReviewedOutput.open(output, storage_options)
    told = {} if table is None else _corrections_in(table)
    known = {**opened.corrected(), **told}
    wanted = set(known)
    found = {one.row: one for rows in opened.rows() for one in rows if one.row in wanted}
    missing = sorted(wanted - set(found))
    if missing:
        raise InputError(
            f"table: the output has no row {missing[0]!r}{f', and {len(missing) - 1:,} more' if missing[1:] else ''}.",
            "Take the column `row` as review wrote it; other columns may change.",
        )
    labels = {row: opened.label_of(one["label"], found[row]) for row, one in known.items()}
    if told:
        opened.keep({row: {**known[row], "label": text_of(labels[row])} for row in known})
    rows = [row for row in known if labels[row] is not None]
    return Corrections(
        rows,
        [found[row].text for row in rows],
        [labels[row] for row in rows],
        [found[row].label for row in rows],
        [str(known[row]["why"]) for row in rows],
    )


def labelled_texts(
    output: str, corrections: Corrections, *, most: int = 50_000, storage_options: Mapping[str, Any] | None = None
) -> tuple[list[str], list[str]]:
    """Return texts of an output and their labels, corrected where they were, to train a student on.

    Parameters
    ----------
    output : str
        The job's output folder.
    corrections : Corrections
        As `correct` returns them.
    most : int, default=50000
        How many rows, at most; of a larger output a random sample, and all that were corrected.
    storage_options : mapping or None, default=None
        What opens the output's filesystem.

    Raises
    ------
    InputError
        If a row may have several labels: a student learns one.
    """
    opened = ReviewedOutput.open(output, storage_options)
    if opened.several:
        raise InputError(f"output={output!r} has several labels for a row, and a student learns one.")
    corrected = dict(zip(corrections.rows, corrections.labels, strict=True))
    kept: list[tuple[float, int, ReviewRow]] = []
    at = 0
    for found in opened.rows():
        keys = random_keys(0, "student", np.arange(at, at + len(found))).tolist()
        for i, (one, key) in enumerate(zip(found, keys, strict=True)):
            if one.text.strip() and (one.label is not None or one.row in corrected):
                _push(kept, -1.0 if one.row in corrected else float(key), at + i, one, most)
        at += len(found)
    rows = sorted(kept, key=lambda told: -told[1])
    return [one.text for _, _, one in rows], [str(corrected.get(one.row, one.label)) for _, _, one in rows]


# --- inside -------------------------------------------------------------------------------------------------------


class _Chosen:
    """Of the rows that come by, those to be looked at, in bounded memory."""

    def __init__(self, n_rows: int | None, n_random: int | None) -> None:
        self._asked = n_rows, n_random
        self._n = _MOST[0] if n_rows is None else n_rows
        self._n_random = _MOST[1] if n_random is None else n_random
        self._by_why: dict[str, list[tuple[float, int, ReviewRow]]] = {"disputed": [], "no answer": [], "uncertain": []}
        self._random: list[tuple[float, int, ReviewRow]] = []
        self._count = 0

    def add(self, one: ReviewRow, key: int) -> None:
        """Look at a row; `key` is a random number for it."""
        self._count += 1
        _push(self._random, key, self._count, one, self._n_random + _POOL)
        if one.label is None or one.error is not None:
            _push(self._by_why["no answer"], key, self._count, one, self._n + self._n_random)
        elif one.is_disputed:
            _push(self._by_why["disputed"], key, self._count, one, self._n + self._n_random)
        elif np.isfinite(one.probability):
            _push(self._by_why["uncertain"], one.probability, self._count, one, self._n + self._n_random)

    @property
    def pool(self) -> list[ReviewRow]:
        """Random rows with a label, among which neighbours are looked for."""
        return [one for _, _, one in sorted(self._random, reverse=True) if one.label is not None]

    def rows(self) -> list[tuple[str, ReviewRow]]:
        """Return the rows, each with why it is there."""
        n_rows, n_random = (
            min(most, max(1, self._count // share)) if asked is None else asked
            for asked, most, share in zip(self._asked, _MOST, _SHARE, strict=True)
        )
        drawn = [one for _, _, one in sorted(self._random, reverse=True)[:n_random]]
        taken, texts = {one.row for one in drawn}, {one.text for one in drawn}
        found: list[tuple[str, ReviewRow]] = []
        most = {"disputed": n_rows // 2, "no answer": n_rows // 4, "uncertain": n_rows}
        for why, rows in self._by_why.items():
            left = min(most[why], n_rows - len(found))
            for _, _, one in sorted(rows, reverse=True):
                if left and one.row not in taken and one.text not in texts:
                    found.append((why, one))
                    taken.add(one.row)
                    texts.add(one.text)
                    left -= 1
        return found + [("random", one) for one in drawn]


def _push(heap: list[tuple[float, int, ReviewRow]], key: float, at: int, one: ReviewRow, most: int) -> None:
    """Keep the rows with the smallest keys."""
    if len(heap) < most:
        heapq.heappush(heap, (-key, -at, one))
    elif most and -key > heap[0][0]:
        heapq.heapreplace(heap, (-key, -at, one))


def _corrections_in(table: str | pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return a table's corrections by row."""
    if isinstance(table, str):
        try:
            table = pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise InputError(f"table={table!r} cannot be read: {reason}.") from None
    for name in ("row", "correct_label"):
        if name not in table:
            raise InputError(f"table has no column {name!r}.", f"Columns: {', '.join(map(str, table.columns))}.")
    why = table["why"] if "why" in table else ["" for _ in range(len(table))]
    found = {}
    for row, label, reason in zip(table["row"], table["correct_label"], why, strict=True):
        if isinstance(label, str) and label.strip():
            found[str(row)] = {"label": label.strip(), "why": str(reason)}
    return found


def _told(neighbours: list[tuple[int, float]], pool: list[ReviewRow]) -> str:
    return " | ".join(
        f"{pool[place].label} ({like:.2f}): {short(pool[place].text, _SHOWN)}" for place, like in neighbours
    )
