"""A part of a job's output, as its report reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from skllm_ray.batch.input.text_template import template_fields, texts_of
from skllm_ray.plain_text import printable

_SHOWN: Final = 200
_READ_AHEAD: Final = 4


@dataclass(frozen=True)
class PartColumns:
    """What the columns of a job's parts are called."""

    prefix: str
    text: str | None
    template: str | None
    answer: str
    labels: tuple[str, ...] | None
    """The candidates; None where the task gives no labels."""

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self:
        """Return those of the job with this manifest, as plain data."""
        prefix, labels = str(manifest["output_prefix"]), manifest["labels"]
        answer = prefix + str(manifest["prediction_columns"][0])
        return cls(
            prefix,
            manifest["text_column"],
            manifest["text_template"],
            answer,
            None if labels is None else tuple(map(str, labels)),
        )

    @property
    def of_text(self) -> frozenset[str]:
        """The columns that make a row's text."""
        return template_fields(self.template) if self.template else frozenset([str(self.text)])


class PartRows:
    """The rows of a part.

    Parameters
    ----------
    table : pyarrow.Table
        The part.
    columns : PartColumns
        What its columns are called.
    """

    def __init__(self, table: pa.Table, columns: PartColumns) -> None:
        self.table, self._columns = table, columns

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return int(self.table.num_rows)

    @cached_property
    def errors(self) -> pa.ChunkedArray:
        """Why rows have no answer; null where they have one."""
        return self._of_job("error_kind")

    @cached_property
    def reasons(self) -> pa.ChunkedArray:
        """The same in words."""
        return self._of_job("error")

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Which rows have an answer that is one of those allowed."""
        found: npt.NDArray[np.bool_] = pc.fill_null(self._of_job("valid"), False).to_numpy().astype(bool)
        return found

    @cached_property
    def labels(self) -> pa.ChunkedArray | None:
        """The answers, as labels or lists of labels; None where they are something else, such as vectors."""
        found = self.table.column(self._columns.answer)
        if pa.types.is_list(found.type):
            return found if pa.types.is_string(found.type.value_type) else None
        if pa.types.is_string(found.type) or pa.types.is_integer(found.type):
            return found.cast(pa.string())
        return None

    @cached_property
    def answers(self) -> pa.ChunkedArray | None:
        """The answers as texts, several labels with commas between them; None as above."""
        if self.labels is None or not self.several:
            return self.labels
        return pc.binary_join(self.labels, ", ")

    @property
    def several(self) -> bool:
        """Whether a row may have several labels."""
        return self.labels is not None and pa.types.is_list(self.labels.type)

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """How sure the model was; NaN where it did not tell."""
        found: npt.NDArray[np.float64] = pc.fill_null(self._of_job("probability"), float("nan")).to_numpy()
        return found

    def has_texts(self) -> bool:
        """Return whether the part holds the columns that make the texts."""
        return self._columns.of_text <= set(self.table.column_names)

    def texts(self, rows: Sequence[int], most: int = _SHOWN) -> list[str]:
        """Return the beginnings of some rows' texts; they are empty where the part does not hold the texts."""
        if not self.has_texts():
            return ["" for _ in rows]
        some = self.table.select(sorted(self._columns.of_text)).take(pa.array(rows, pa.int64()))
        return [short(text, most) for text in texts_of(some, self._columns.text, self._columns.template)]

    def _of_job(self, name: str) -> pa.ChunkedArray:
        return self.table.column(f"{self._columns.prefix}{name}")


def counts(column: Any) -> list[tuple[str, int]]:
    """Return how often each value stands in a column, nulls left out."""
    found = pc.value_counts(column.drop_null()).to_pylist()
    return [(str(one["values"]), int(one["counts"])) for one in found]


def short(text: object, most: int = _SHOWN) -> str:
    """Return the beginning of a text in one line, without control characters."""
    found = " ".join(printable("" if text is None else text)[: _READ_AHEAD * most].split())
    return found if len(found) <= most else found[: most - 1] + "…"
