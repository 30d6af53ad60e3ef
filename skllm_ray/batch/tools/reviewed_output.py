"""The rows of a job's output, as a person reviews them, and where their corrections are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow.parquet as pq

from skllm_ray.batch.input.files import Units
from skllm_ray.batch.input.text_template import texts_of
from skllm_ray.batch.output.manifest import Manifest, load_manifest
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.storage import Folder, StorageOptions, open_folder
from skllm_ray.batch.tools.part_rows import PartColumns, PartRows
from skllm_ray.batch.tools.truth import true_labels
from skllm_ray.errors import InputError

KEPT: Final = f"{SYSTEM}/corrections.json"
"""Where an output's corrections are."""
_SAME: Final = "="


@dataclass(frozen=True)
class ReviewRow:
    """A row of an output."""

    row: str
    text: str
    label: str | None
    probability: float
    fast_label: str | None
    error: str | None

    @property
    def is_disputed(self) -> bool:
        """Whether the fast and the strong model of a cascade give it different labels."""
        return self.label is not None and self.fast_label is not None and self.fast_label != self.label


@dataclass(frozen=True)
class ReviewedOutput:
    """A job's output that gives labels and holds texts."""

    folder: Folder
    manifest: Manifest
    columns: PartColumns
    candidates: tuple[str, ...]

    @classmethod
    def open(cls, output: str, storage_options: Mapping[str, Any] | None) -> ReviewedOutput:
        """Open it, or raise what is wrong with it."""
        options = StorageOptions.of(storage_options)
        folder = open_folder(output, options, options.secrets())
        manifest = load_manifest(folder.below(SYSTEM))
        if manifest is None:
            raise InputError(f"output={output!r} holds no job of skllm-ray.", "Name the folder that `run` wrote to.")
        columns = PartColumns.of(asdict(manifest))
        if columns.labels is None:
            raise InputError(f"output={output!r}: {manifest.task} gives no labels to review.")
        if not columns.of_text <= set(manifest.keep_columns):
            raise InputError(
                f"output={output!r}: its parts do not hold the texts ({', '.join(sorted(columns.of_text))}).",
                "Run into another output with --keep-columns that name them.",
            )
        return cls(folder, manifest, columns, columns.labels)

    def rows(self) -> Iterator[list[ReviewRow]]:
        """Yield the rows of each part."""
        units = Units(self.manifest.files, self.manifest.unit_rows, self.manifest.cuts)
        there = OutputState(self.folder, units).summaries
        for unit in units:
            if unit.key not in there:
                continue
            with self.folder.filesystem.open_input_file(self.folder.at(unit.part_name)) as source:
                table = pq.read_table(source)
            part = PartRows(table, self.columns)
            texts = texts_of(table, self.columns.text, self.columns.template)
            answers = [None] * part.n_rows if part.answers is None else part.answers.to_pylist()
            name = self.columns.prefix + "fast_label"
            fast = table.column(name).to_pylist() if name in table.column_names else [None] * part.n_rows
            columns = zip(
                texts, answers, part.probabilities.tolist(), fast, part.errors.to_pylist(), part.valid.tolist(),
                strict=True,
            )  # fmt: skip
            yield [
                ReviewRow(
                    f"{unit.part_name}:{i}", text or "", answer if valid else None, probability, text_of(other),
                    error or (None if valid else "invalid_answer"),
                )
                for i, (text, answer, probability, other, error, valid) in enumerate(columns)
            ]  # fmt: skip

    def corrected(self) -> dict[str, dict[str, Any]]:
        """Return what was corrected before, by row."""
        try:
            told: dict[str, dict[str, Any]] = json.loads(self.folder.read(KEPT))
        except FileNotFoundError:
            return {}
        return told

    def keep(self, corrections: Mapping[str, Mapping[str, Any]]) -> None:
        """Write all corrections down."""
        self.folder.write(KEPT, json.dumps(corrections, ensure_ascii=False, indent=1).encode())

    def label_of(self, told: str, one: ReviewRow) -> Any:
        """Return the label that a cell names; None where it says that a missing answer is right."""
        several = self.several
        if told == _SAME:
            told = one.label or ""
            if not told:
                return None
        found = true_labels(told, self.candidates, {}, several=several)
        foreign = sorted(found - set(self.candidates))
        if foreign:
            raise InputError(
                f"correct_label={foreign[0]!r} of the row {one.row} is no candidate.",
                f"Candidates: {', '.join(self.candidates)}. Write = where the label is right.",
            )
        return sorted(found) if several else next(iter(found))

    @property
    def several(self) -> bool:
        """Whether a row may have several labels."""
        kind = self.manifest.arrow_schema().field(self.columns.answer).type
        return str(kind).startswith("list")


def text_of(label: Any) -> str | None:
    """Return a label, or several with commas between them, as text."""
    if label is None:
        return None
    return ", ".join(map(str, label)) if isinstance(label, list | tuple) else str(label)
