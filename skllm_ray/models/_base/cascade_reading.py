"""What becomes of the rows of a cascade of two language models, on a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from skllm_ray.execution.plan import label_probability
from skllm_ray.models._base.reading import ColumnTypes, OnError, Process, Reading
from skllm_ray.tasks.base import Row


@dataclass(frozen=True)
class CascadeReading(Reading):
    """The strong one's columns, and those that tell how a label came about."""

    strong: Reading

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
        columns, rows = self.strong.columns_of(values, process, mode, details=details)
        first = [row if row.stage == "fast" else row.replaced for row in rows]
        known = [one for one in first if one is not None]
        scores = iter(label_probability(known).tolist())
        read = self.strong.reader()
        labels = [read(one.value) if one is not None and one.value is not None else None for one in first]
        more = [[row.stage or None for row in rows], [None if one is None else next(scores) for one in first]]
        return [*columns, *more, *self.strong.columns(labels, rows)], rows
