"""From rows to output columns: what an estimator makes of its answers, without the estimator.

A `Reading` travels to the workers in the estimator's place. Unpickling an estimator imports scikit-learn and scipy,
which takes about a second of a worker's time, and Ray ends idle workers and starts others; a reading needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skllm_ray.errors import JobFailedError, NotSupportedError, PartialResultError
from skllm_ray.models._base import results
from skllm_ray.models._base.inputs import Texts, as_texts, refuse_missing
from skllm_ray.tasks.base import Row
from skllm_ray.tasks.embedding import of_one_length
from skllm_ray.tasks.ner import Span, tagged

OnError = Literal["raise", "default", "coerce"]
"""What becomes of rows that fail: an exception after all rows were tried, the default, or None."""

Process: TypeAlias = Callable[[Sequence[str], Sequence[int]], Sequence[Row[Any]]]
"""Processes texts, wherever that is done; their places among the values that they come from are given too."""

ColumnTypes: TypeAlias = dict[str, "pa.DataType | None"]
"""Output columns and their types; None lets the values decide."""


@dataclass(frozen=True)
class Reading:
    """What becomes of rows. Frozen and picklable; a subclass changes what its estimator shows otherwise.

    Examples
    --------
    >>> reading = Reading("m", {"summary": pa.string()})
    >>> list(reading.output_types)[:3]
    ['summary', 'probability', 'valid']
    """

    model: str
    """The model as the estimator names it."""
    types: ColumnTypes
    """The output columns, without the details."""

    # --- usually overridden ---------------------------------------------------------------------------------------

    def reader(self) -> Callable[[Any], Any]:
        """Return the function from a row's parsed value to what the user sees."""
        return lambda value: value

    def default(self, text: str | None) -> Any:
        """Return what stands for a row without a result."""
        del text
        return None

    def columns(self, values: Sequence[Any], rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the values of the columns in `types`."""
        del rows
        return [values]

    @property
    def confidences(self) -> ColumnTypes:
        """Columns of the details that tell how sure the model was of the parts of an answer."""
        return {}

    def confidences_of(self, rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the values of the columns in `confidences`."""
        del rows
        return []

    # --- usually not overridden -----------------------------------------------------------------------------------

    @property
    def output_types(self) -> ColumnTypes:
        """The output columns, the details after them."""
        return {**self.types, **results.DETAIL_TYPES, **self.confidences}

    def predictions(self, texts: Texts, rows: Sequence[Row[Any]], mode: OnError) -> list[Any]:
        """Return what the user sees of each row."""
        read = self.reader()
        return [
            read(row.value) if row.value is not None else self._fallback(text, row, mode)
            for text, row in zip(texts.values, rows, strict=True)
        ]

    def rows(self, texts: Texts, mode: OnError, process: Process) -> list[Row[Any]]:
        """Return one row per text; only those that are there are processed.

        Raises
        ------
        JobFailedError, NotSupportedError
            If every row failed for one reason.
        PartialResultError
            With "raise", if any failed.
        """
        present = [text for text in texts.values if text is not None]
        places = range(len(present)) if len(present) == len(texts.values) else texts.present
        found = process(present, places) if present else []
        rows: list[Row[Any]] = list(found)
        if len(present) < len(texts.values):
            rows = [results.missing_row()] * len(texts.values)
            for position, row in zip(places, found, strict=True):
                rows[position] = row
        self._raise_failures(texts, rows, mode)
        return rows

    def columns_of(
        self, values: Sequence[Any], process: Process, mode: OnError, *, details: bool = True
    ) -> tuple[list[Sequence[Any]], list[Row[Any]]]:
        """Return the output columns' values for a block of a text column, and its rows."""
        texts = as_texts(values, "the text column")
        if mode == "raise":
            refuse_missing(texts, "the text column")
        rows = self.rows(texts, mode, process)
        columns = self.columns(self.predictions(texts, rows, mode), rows)
        return columns + ([*results.detail_values(rows), *self.confidences_of(rows)] if details else []), rows

    def _fallback(self, text: str | None, row: Row[Any], mode: OnError) -> Any:
        """Return what stands for a row without a valid answer."""
        return None if row.error is not None and mode == "coerce" else self.default(text)

    def _raise_failures(self, texts: Texts, rows: Sequence[Row[Any]], mode: OnError) -> None:
        """Raise where every row failed for one reason, and, with "raise", where any did."""
        failed = [row for row in rows if row.reply.error is not None and row.reply.error.kind != "missing_text"]
        if not failed:
            return
        fatal = next((row.error for row in failed if row.error is not None and row.error.fatal), None)
        if fatal is not None and len(failed) == len(texts.present):
            refusal = NotSupportedError if fatal.kind == "not_supported" else JobFailedError
            raise refusal(f"{self.model} refused every row ({fatal.kind}): {fatal.message}", fatal.hint)
        if mode == "raise":
            table = results.details(self.predictions(texts, rows, "coerce"), rows, texts.index)
            raise PartialResultError(*results.tell_failures(self.model, rows), table)


@dataclass(frozen=True)
class LabelReading(Reading):
    """One label per text."""

    by_name: Mapping[str, Any]
    """The classes by the names under which the model is asked about them."""
    fixed: Any
    """The default label."""
    drawn: Draw | None = None
    """Draws the default label in place of `fixed`, if it is to be drawn."""

    def reader(self) -> Callable[[Any], Any]:
        """Return the function from a name to the class."""
        return self.by_name.__getitem__

    def default(self, text: str | None) -> Any:
        """Return the default label."""
        return self.fixed if self.drawn is None else self.drawn(text)

    def columns(self, values: Sequence[Any], rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the labels, as texts where the column holds texts."""
        del rows
        of_text = pa.types.is_string(self.types["prediction"])
        if not of_text or all(isinstance(label, str) for label in (self.fixed, *self.by_name.values())):
            return [values]
        return [[None if value is None else str(value) for value in values]]


@dataclass(frozen=True)
class Draw:
    """Draws a class for a text, at random."""

    classes: NDArray[Any]
    probabilities: NDArray[np.float64]
    seed: int | None

    def __call__(self, text: str | None) -> Any:
        """Return the same for the same text."""
        return results.draw(text or "", self.classes, self.probabilities, self.seed)


@dataclass(frozen=True)
class LabelListReading(LabelReading):
    """Any number of labels per text."""

    def reader(self) -> Callable[[Any], Any]:
        """Return the function from labels to a list of them."""
        return list

    def default(self, text: str | None) -> Any:
        """Return the default label in a list."""
        return [super().default(text)]

    def columns(self, values: Sequence[Any], rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the lists."""
        del rows
        return [values]


@dataclass(frozen=True)
class Explained(Reading):
    """What another reading makes of a row, and the explanation of it."""

    inner: Reading

    @classmethod
    def of(cls, inner: Reading) -> Explained:
        """Return it for another reading."""
        return cls(inner.model, {**inner.types, "explanation": pa.string()}, inner)

    def reader(self) -> Callable[[Any], Any]:
        """Return the function to a pair."""
        read = self.inner.reader()
        return lambda value: [read(value[0]), value[1]]

    def default(self, text: str | None) -> Any:
        """Return the other's default, without an explanation."""
        return [self.inner.default(text), ""]

    def columns(self, values: Sequence[Any], rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the other's columns and the explanations."""
        pairs = [value or [None, None] for value in values]
        return [*self.inner.columns([what for what, _ in pairs], rows), [why for _, why in pairs]]


@dataclass(frozen=True)
class FieldReading(Reading):
    """A column for each field of a schema."""

    def columns(self, values: Sequence[Any], rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the fields' values."""
        del rows
        return [[None if value is None else value.get(name) for value in values] for name in self.types]

    @property
    def confidences(self) -> ColumnTypes:
        """The probability of each field."""
        return {"field_probabilities": pa.struct(dict.fromkeys(self.types, pa.float64()))}

    def confidences_of(self, rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the probabilities of the fields; None where they are not known."""
        return [[row.field_probabilities for row in rows]]


@dataclass(frozen=True)
class EntityReading(Reading):
    """A text with its entities marked, and the entities."""

    def predictions(self, texts: Texts, rows: Sequence[Row[Any]], mode: OnError) -> list[Any]:
        """Return the marked texts."""
        del mode
        return marked(texts, [row.value for row in rows])

    def columns(self, values: Sequence[Any], rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the marked texts and the entities."""
        return [values, [None if row.value is None else [span.to_dict() for span in row.value] for row in rows]]

    @property
    def confidences(self) -> ColumnTypes:
        """The probability of each entity."""
        return {"entity_probabilities": pa.list_(pa.float64())}

    def confidences_of(self, rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        """Return the probabilities of the entities, in their order; None where they are not known."""
        known = [row.value if row.probability is not None else None for row in rows]
        return [[None if spans is None else [span.probability for span in spans] for spans in known]]


def marked(texts: Texts, spans: Sequence[Sequence[Span] | None]) -> list[Any]:
    """Return the texts with their entities marked."""
    return [
        None if text is None or found is None else tagged(text, found)
        for text, found in zip(texts.values, spans, strict=True)
    ]


@dataclass(frozen=True)
class VectorReading(Reading):
    """A vector per text."""

    def rows(self, texts: Texts, mode: OnError, process: Process) -> list[Row[Any]]:
        """Return one row per text; a vector that is not as long as most is an error."""
        return super().rows(texts, mode, lambda *present: of_one_length(process(*present)))


@dataclass(frozen=True)
class DatasetReading:
    """What `map_dataset` gets: a reading, how failed rows are treated, and the output columns' names."""

    reading: Reading
    mode: OnError
    details: bool
    prefix: str

    @property
    def types(self) -> ColumnTypes:
        """The output columns."""
        types = self.reading.output_types if self.details else self.reading.types
        return {self.prefix + name: kind for name, kind in types.items()}

    def __call__(self, values: Sequence[Any], process: Process) -> dict[str, pa.Array]:
        """Turn a block of a text column into output columns, on a worker."""
        columns, rows = self.reading.columns_of(values, process, self.mode, details=self.details)
        if not self.details:
            results.warn_failed_block(self.reading.model, rows)
        return {name: pa.array(column, kind) for (name, kind), column in zip(self.types.items(), columns, strict=True)}
