"""Rows of a job's input, drawn at random without reading all of it, and what a model says of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from skllm_ray.batch.input.files import Unit, absent_column, read
from skllm_ray.batch.input.text_template import template_fields, texts_of
from skllm_ray.batch.job.job import Job
from skllm_ray.batch.output.manifest import Manifest, read_schema

_UNITS: Final = 8
_ROWS: Final = 20_000


@dataclass(frozen=True)
class Sample:
    """Rows of some units."""

    texts: list[str | None]
    extra: list[Any]
    """The values of the column that was asked for besides."""
    missing: float
    """Share of the rows that have no text."""
    unique: float
    """Share of the other rows whose text is the first of its kind in its unit."""


def draw(
    job: Job,
    manifest: Manifest,
    units: Sequence[Unit],
    column: str | None = None,
    seed: int = 0,
    n_units: int = _UNITS,
) -> Sample:
    """Return the rows of some of the units, all equally likely, in a random order."""
    chosen = random.Random(seed).sample(units, min(n_units, len(units)))
    texts: list[str | None] = []
    extra: list[Any] = []
    n_rows = n_missing = n_unique = 0
    for unit in chosen:
        found, values = _rows_of(job, manifest, unit, column)
        present = [text for text in found if text is not None and text.strip()]
        n_rows += len(found)
        n_missing += len(found) - len(present)
        n_unique += len(set(present))
        texts += found
        extra += values
        if n_rows >= _ROWS:
            break
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    present_rows = max(1, n_rows - n_missing)
    return Sample(
        [texts[i] for i in order],
        [extra[i] for i in order],
        n_missing / max(1, n_rows),
        n_unique / present_rows,
    )


def _rows_of(job: Job, manifest: Manifest, unit: Unit, column: str | None) -> tuple[list[str | None], Sequence[Any]]:
    schema = read_schema(manifest.input_schema)
    template = manifest.text_template
    names = sorted(template_fields(template)) if template else [manifest.text_column or ""]
    if column is not None and column not in schema.names:
        raise absent_column("label_column", column, schema.names)
    wanted = list(dict.fromkeys([*names, *([column] if column else [])]))
    table = read(job.source, unit, wanted, schema)
    texts = texts_of(table, manifest.text_column, template)
    return texts, table.column(column).to_pylist() if column else [None] * len(texts)
