"""Parquet as input: planned from the footers, read by row group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skllm_ray.batch.input.column_types import Bounds
from skllm_ray.batch.input.exact import children
from skllm_ray.batch.input.slices import MOST_ROWS, InputFile, Look, Unit
from skllm_ray.batch.storage import Folder

_WHOLE_BYTES: Final = 16 << 20  # a row group that is decoded whole for any of its slices
_BUFFER_BYTES: Final = 4 << 20
_BATCH_ROWS: Final = 65_536
_SPARK: Final = b"org.apache.spark.version"


def scan_parquet(folder: Folder, file: InputFile) -> Look:
    """Return the rows of each row group, and the columns."""
    with folder.filesystem.open_input_file(file.path) as source:
        parquet = _open(source)
        told = parquet.metadata
        groups = [told.row_group(i) for i in range(told.num_row_groups)]
        n_bytes = sum(group.total_byte_size for group in groups)
        rows = tuple(group.num_rows for group in groups)
        schema = parquet.schema_arrow
        for name in _doubtful_times(parquet):
            schema = schema.set(schema.get_field_index(name), pa.field(name, _type_of_times(source, name)))
    found = replace(file, groups=rows, n_rows=sum(rows), n_bytes=n_bytes)
    return Look(found, schema, partial(_bounds, folder, file.path))


def read_parquet(folder: Folder, unit: Unit, columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a unit's rows."""
    del schema
    with folder.filesystem.open_input_file(unit.path) as source:
        parquet = _open(source)
        held = [name for name in columns if name in parquet.schema_arrow.names]
        doubtful = set(_doubtful_times(parquet)) & set(held)
        found = _read(parquet, unit, held)
        if doubtful:
            finer = _read(_open(source, "ns"), unit, sorted(doubtful), "ns")
            for name in doubtful:
                exact = _exact_times(found.column(name).combine_chunks(), finer.column(name).combine_chunks())
                found = found.set_column(found.column_names.index(name), name, exact)
    return found


def _open(source: pa.NativeFile, times: str = "us") -> pq.ParquetFile:
    """Open a file whose 96-bit times are read in a unit; a row group is streamed, not fetched at once."""
    return pq.ParquetFile(source, coerce_int96_timestamp_unit=times, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _read(parquet: pq.ParquetFile, unit: Unit, columns: Sequence[str], times: str = "us") -> pa.Table:
    identity = unit.path, unit.file, times
    parts = [_of_group(parquet, identity, group, skip, rows, columns) for group, skip, rows in unit.groups]
    return pa.concat_tables(parts)


_decoded: dict[Any, pa.Table] = {}
"""The row groups that this process decoded last: two, as 96-bit times are read in two ways."""
_MOST_DECODED: Final = 2


def _of_group(
    parquet: pq.ParquetFile, identity: tuple[Any, ...], group: int, skip: int, rows: int, columns: Sequence[str]
) -> pa.Table:
    """Return rows of a row group; decoding ends with the last that is wanted."""
    if not columns:
        return pa.table({"": pa.nulls(rows)})
    told = parquet.metadata.row_group(group)
    if rows == told.num_rows or told.total_byte_size <= _WHOLE_BYTES:
        key = (identity, group, tuple(columns))
        whole = _decoded.get(key)  # the next unit is often of the same row group
        if whole is None:
            whole = parquet.read_row_group(group, list(columns), use_threads=False)
            for old in list(_decoded)[: len(_decoded) + 1 - _MOST_DECODED]:  # other threads may do the same
                _decoded.pop(old, None)
            _decoded[key] = whole
        return whole.slice(skip, rows)
    found, at = [], 0
    batch_rows = min(MOST_ROWS, rows)  # a unit of few rows has wide ones
    for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=list(columns), use_threads=False):
        first, last = max(skip, at), min(skip + rows, at + batch.num_rows)
        if first < last:
            found.append(batch.slice(first - at, last - first))
        at += batch.num_rows
        if at >= skip + rows:
            break
    return pa.Table.from_batches(found)


# --- bounds -------------------------------------------------------------------------------------------------------


def _bounds(folder: Folder, path: str, name: str) -> Bounds | None:
    """Return the least and the largest whole number of a column, by the footer; None where it does not tell."""
    with folder.filesystem.open_input_file(path) as source:
        told = pq.read_metadata(source)
    at = next((i for i in range(told.num_columns) if told.schema.column(i).path == name), None)
    if at is None or "." in name:
        return None
    least, most = [], []
    for group in range(told.num_row_groups):
        held = told.row_group(group)
        found = held.column(at).statistics
        if held.num_rows == 0 or (found is not None and found.has_null_count and found.null_count == held.num_rows):
            continue
        if found is None or not found.has_min_max:
            return None
        least.append(found.min)
        most.append(found.max)
    return (min(least), max(most)) if least else (0, 0)


# --- 96-bit times -------------------------------------------------------------------------------------------------
# Spark, Hive and Impala write times as a day and nanoseconds, from the year -290,000 on. Arrow reads them in one unit:
# in nanoseconds far dates become others, in microseconds the last three digits are lost; neither is told. Spark's have
# whole microseconds. Those of others are read both ways, which tells both.


def _doubtful_times(parquet: pq.ParquetFile) -> list[str]:
    """Return the columns whose 96-bit times may have nanoseconds."""
    told = parquet.metadata
    if _SPARK in (told.metadata or {}):
        return []
    schema = parquet.schema
    leaves = (schema.column(i) for i in range(len(schema.names)))
    paths = {leaf.path for leaf in leaves if leaf.physical_type == "INT96"}
    names = parquet.schema_arrow.names
    return [name for name in names if any(path == name or path.startswith(f"{name}.") for path in paths)]


def _type_of_times(source: pa.NativeFile, name: str) -> pa.DataType:
    """Return the type that tells a column's times exactly: what all of its values need."""
    micro, nano = _open(source), _open(source, "ns")
    kind = micro.schema_arrow.field(name).type
    options: dict[str, Any] = {"columns": [name], "use_threads": False}
    pairs = zip(micro.iter_batches(_BATCH_ROWS, **options), nano.iter_batches(_BATCH_ROWS, **options), strict=True)
    found = [_needs(one.column(name), other.column(name)) for one, other in pairs]
    needs_nano, fits_nano = any(one for one, _ in found), all(one for _, one in found)
    if needs_nano and not fits_nano and pa.types.is_nested(kind):
        raise ValueError(f"column {name!r}: nested times are far and have nanoseconds; no type has room for both")
    return kind if not needs_nano else nano.schema_arrow.field(name).type if fits_nano else pa.string()


def _leaves(array: pa.Array) -> list[pa.Array]:
    if not pa.types.is_nested(array.type):
        return [array]
    return [leaf for child in children(array) for leaf in _leaves(child)]


def _needs(micro: pa.Array, nano: pa.Array) -> tuple[bool, bool]:
    """Return whether some of the times have nanoseconds, and whether all can be told in nanoseconds."""
    needs, fits = False, True
    for one, other in zip(_leaves(micro), _leaves(nano), strict=True):
        if pa.types.is_timestamp(one.type):
            numbers = one.drop_null().cast(pa.int64()).to_numpy()
            finer = other.drop_null().cast(pa.int64()).to_numpy()
            needs = needs or bool((numbers * 1000 != finer).any())  # both wrap round alike
            fits = fits and bool((finer // 1000 == numbers).all())
    return needs, fits


def _exact_times(micro: pa.Array, nano: pa.Array) -> pa.Array:
    """Return times, read both ways, in the coarsest form that tells them all: else texts with nine digits."""
    needs, fits = _needs(micro, nano)
    if not needs or fits:
        return nano if needs else micro
    numbers, finer = (pc.fill_null(one.cast(pa.int64()), 0).to_numpy() for one in (micro, nano))
    rest = pa.array([f"{digits:03d}" for digits in (finer - numbers * 1000).tolist()], pa.string())
    return pc.binary_join_element_wise(micro.cast(pa.string()), rest, "")
