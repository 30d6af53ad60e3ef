"""The rows that a report lets its reader search, as data inside the page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pyarrow as pa

from skllm_ray.batch.input.slices import Unit
from skllm_ray.batch.tools.part_rows import PartColumns, PartRows, short
from skllm_ray.batch.tools.truth_tally import Judged

_TEXT: Final = 400
_CELL: Final = 80
_EXTRA: Final = 3
_NOT_JSON_IN_HTML: Final = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


class Names:
    """Texts that stand in many rows, written once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str | None) -> int:
        """Return the text's place in the list; -1 of None."""
        if text is None:
            return -1
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


@dataclass(frozen=True)
class _Kept:
    key: float
    """Random: of all rows, those with the smallest are kept."""
    cells: tuple[Any, ...]


class RowSample:
    """Some rows of a job, all equally likely to be kept, in the order of the input.

    Parameters
    ----------
    columns : PartColumns
        What the columns of the parts are called.
    most : int
        How many rows are kept.
    truth : str or None
        The column with the true labels, if any: it is told as such, and not once more.
    corrected : mapping of str to str, default={}
        The labels that people gave rows, by the part and the row in it.
    """

    def __init__(
        self, columns: PartColumns, most: int, truth: str | None = None,
        corrected: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self._columns, self._most, self._truth, self._corrected = columns, most, truth, corrected
        self._random = np.random.default_rng(0)
        self._kept: list[_Kept] = []
        self._bar = 1.0
        self.labels, self.errors, self.reasons, self.files = (Names() for _ in range(4))
        self.extra: list[str] = []
        self._of_input: list[str] = []
        self.seen = 0
        self.has_probabilities = False

    def add(self, unit: Unit, part: PartRows, keep_columns: Sequence[str], judged: Judged | None) -> None:
        """Look at a part.

        Parameters
        ----------
        unit : Unit
            Whose part it is.
        part : PartRows
            The part.
        keep_columns : sequence of str
            The input's columns that it holds.
        judged : Judged or None
            Its rows beside the truth; None where no column tells it.
        """
        if not self._kept:
            passed_over = {*self._columns.of_text, self._truth}
            self._of_input = [name for name in keep_columns if name not in passed_over][:_EXTRA]
            self.extra = [*self._of_input, *(["corrected by people"] if self._corrected else [])]
        self.seen += part.n_rows
        self.has_probabilities = self.has_probabilities or not np.isnan(part.probabilities).all()
        keys = self._random.random(part.n_rows)
        rows = np.flatnonzero(keys < self._bar).tolist()
        if not rows:
            return
        cells = self._cells(unit, part, rows, judged or Judged([None] * part.n_rows, np.full(part.n_rows, -1, np.int8)))
        self._kept += [_Kept(float(keys[row]), one) for row, one in zip(rows, cells, strict=True)]
        if len(self._kept) > 2 * self._most:
            self._thin()

    def data(self) -> str:
        """Return the rows as JSON that may stand inside a page's script element."""
        self._thin()
        rows = [kept.cells for kept in self._kept]
        names = ("file", "row", "text", "answer", "truth", "verdict", "probability", "error", "reason", "extra")
        told = {
            "names": {
                "labels": self.labels.texts,
                "errors": self.errors.texts,
                "reasons": self.reasons.texts,
                "files": self.files.texts,
                "extra": self.extra,
            },
            **dict(zip(names, map(list, zip(*rows, strict=True)) if rows else [[] for _ in names], strict=True)),
        }
        return json.dumps(told, ensure_ascii=False, separators=(",", ":")).translate(_NOT_JSON_IN_HTML)

    @property
    def n_rows(self) -> int:
        """How many rows are kept."""
        return min(len(self._kept), self._most)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _cells(self, unit: Unit, part: PartRows, rows: list[int], judged: Judged) -> list[tuple[Any, ...]]:
        taken = pa.array(rows, pa.int64())
        answers = [None] * len(rows) if part.answers is None else part.answers.take(taken).to_pylist()
        errors, reasons = part.errors.take(taken).to_pylist(), part.reasons.take(taken).to_pylist()
        extra = [part.table.column(name).take(taken).to_pylist() for name in self._of_input]
        if self._corrected:
            extra.append([self._corrected.get(f"{unit.part_name}:{row}") for row in rows])
        file = self.files.place(short(unit.path))
        sure = part.probabilities
        return [
            (
                file,
                unit.start + row + 1,
                text,
                self.labels.place(_shown(answer)),
                self.labels.place(_shown(judged.truths[row])),
                int(judged.verdicts[row]),
                round(float(sure[row]), 4) if 0 <= sure[row] <= 1 else None,
                self.errors.place(error),
                self.reasons.place(_shown(reason)),
                [short(column[i], _CELL) for column in extra],
            )
            for i, (row, text, answer, error, reason) in enumerate(
                zip(rows, part.texts(rows, _TEXT), answers, errors, reasons, strict=True)
            )
        ]

    def _thin(self) -> None:
        """Keep the rows with the smallest keys, in the order in which they came."""
        if len(self._kept) > self._most:
            self._bar = sorted(kept.key for kept in self._kept)[self._most]
            self._kept = [kept for kept in self._kept if kept.key < self._bar]


def _shown(text: str | None) -> str | None:
    return None if text is None else short(text)


def script() -> tuple[str, str]:
    """Return the page's script, and its hash: nothing else in the page may run."""
    source = resources.files(__package__).joinpath("explorer.js").read_text("utf-8")
    return source, base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
