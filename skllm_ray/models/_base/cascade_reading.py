"""What becomes of the rows of a cascade of two language models, on a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skllm_ray.execution.plan import label_probability
from skllm_ray.models._base.reading import ColumnTypes, Explained, OnError, Process, Reading
from skllm_ray.tasks.base import Row


@dataclass(frozen=True)
class CascadeReading(Reading):
    """The strong one's columns, and those that tell how a label came about."""

    strong: Reading
    score: Callable[[Sequence[Row[Any]]], NDArray[np.float64]] = label_probability
    """By what fast labels are kept."""

    @classmethod
    def of(cls, strong: Reading) -> CascadeReading:
        """Return it for the strong one's reading; both have the labels under the same names."""
        return cls(strong.model, strong.types, strong)

    @property
    def output_types(self) -> ColumnTypes:
        """The output columns, the details and what tells how a label came about after them."""
        label = self.types["prediction"]
        return {**self.strong.output_types, "stage": pa.string(), "score": pa.float64(), "fast_label": label}

    def columns_of(
        self, values: Sequence[Any], process: Process, mode: OnError, *, details: bool = True
    ) -> tuple[list[Sequence[Any]], list[Row[Any]]]:
        """Return the output columns' values for a block of a text column, and its rows."""
        explains = isinstance(self.strong, Explained)
        labels_alone = self.strong.inner if isinstance(self.strong, Explained) else self.strong

        def in_the_strong_ones_form(texts: Sequence[str], places: Sequence[int]) -> Sequence[Row[Any]]:
            found = process(texts, places)
            return [_unexplained(row) for row in found] if explains else found

        columns, rows = self.strong.columns_of(values, in_the_strong_ones_form, mode, details=details)
        first = [_fast(row, explains=explains) for row in rows]
        known = [one for one in first if one is not None]
        scores = iter(self.score(known).tolist())
        read = labels_alone.reader()
        labels = [read(one.value) if one is not None and one.value is not None else None for one in first]
        more = [[row.stage or None for row in rows], [None if one is None else next(scores) for one in first]]
        return [*columns, *more, *labels_alone.columns(labels, rows)], rows


def _unexplained(row: Row[Any]) -> Row[Any]:
    """Return a row with a fast label in the form of one with an explanation, which it has not."""
    return replace(row, value=(row.value, None)) if row.stage == "fast" and row.value is not None else row


def _fast(row: Row[Any], *, explains: bool) -> Row[Any] | None:
    """Return what the fast model said, a label alone; None where it was not asked."""
    if row.stage != "fast":
        return row.replaced
    return replace(row, value=row.value[0]) if explains and row.value is not None else row
