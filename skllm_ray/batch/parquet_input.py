"""Parquet as input: planned from the footers, read by row group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from skllm_ray.batch.storage import Folder
from skllm_ray.batch.units import MOST_ROWS, InputFile, Unit

_WHOLE_BYTES: Final = 16 << 20  # a row group that is decoded whole for any of its slices


def scan_parquet(folder: Folder, file: InputFile) -> tuple[InputFile, pa.Schema]:
    """Return the rows of each row group, and the columns."""
    with folder.filesystem.open_input_file(file.path) as source:
        parquet = pq.ParquetFile(source)
        told = parquet.metadata
        groups = [told.row_group(i) for i in range(told.num_row_groups)]
        n_bytes = sum(group.total_byte_size for group in groups)
        rows = tuple(group.num_rows for group in groups)
        schema = parquet.schema_arrow
    return replace(file, groups=rows, n_rows=sum(rows), n_bytes=n_bytes), schema


def read_parquet(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows."""
    del schema
    with folder.filesystem.open_input_file(unit.path) as source:
        parquet = pq.ParquetFile(source)
        held = [name for name in columns if name in parquet.schema_arrow.names]
        parts = [
            _of_group(parquet, (unit.path, unit.file), group, skip, rows, held) for group, skip, rows in unit.groups
        ]
    return pa.concat_tables(parts)


_decoded: dict[Any, pa.Table] = {}
"""The row group that this process decoded last."""


def _of_group(
    parquet: pq.ParquetFile, identity: tuple[Any, ...], group: int, skip: int, rows: int, columns: Sequence[str]
) -> pa.Table:
    """Return rows of a row group; decoding ends with the last that is wanted."""
    if not columns:
        return pa.table({"": pa.nulls(rows)})
    told = parquet.metadata.row_group(group)
    if rows == told.num_rows or told.total_byte_size <= _WHOLE_BYTES:
        key = (identity, group, tuple(columns))
        if key not in _decoded:  # the next unit is often of the same row group
            _decoded.clear()
            _decoded[key] = parquet.read_row_group(group, list(columns), use_threads=False)
        return _decoded[key].slice(skip, rows)
    found, at = [], 0
    for batch in parquet.iter_batches(MOST_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
        first, last = max(skip, at), min(skip + rows, at + batch.num_rows)
        if first < last:
            found.append(batch.slice(first - at, last - first))
        at += batch.num_rows
        if at >= skip + rows:
            break
    return pa.Table.from_batches(found)
