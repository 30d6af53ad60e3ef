"""A user's Ray Dataset: the columns that an estimator makes, beside those that are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import ray.data

from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.execution import session
from skllm_ray.execution.block import BLOCK_ROWS
from skllm_ray.execution.dataset import Connected
from skllm_ray.execution.garbage import rarely_collected
from skllm_ray.execution.plan import Block, Plan, needs_positions
from skllm_ray.execution.secrets import fetch_secrets
from skllm_ray.execution.worker_check import compare_workers
from skllm_ray.tasks.base import Row

Process = Callable[[Sequence[str], Sequence[int]], list[Row[Any]]]
"""Processes some texts, whose places among the values that they come from are given too."""
ToColumns = Callable[[list[Any], Process], Mapping[str, pa.Array]]
"""Turns the values of a text column into output columns; it gets a function that processes texts."""


def map_dataset(
    dataset: ray.data.Dataset,
    text_column: str,
    to_columns: ToColumns,
    plan: Plan,
    secrets: Mapping[str, Secret],
) -> ray.data.Dataset:
    """Return a lazy Dataset with the columns of `dataset` and those that `to_columns` makes.

    The model is started at once, so that what cannot work is told here; rows are asked for as the result is consumed.

    Raises
    ------
    ConfigurationError
        If a step takes sampled rows: the rows of a Dataset have no positions.
    """
    if needs_positions(plan):
        raise ConfigurationError(
            "A sample is drawn by the rows' positions, and the rows of a Dataset have none.",
            "Draw it beforehand, or use a batch job, whose rows have.",
        )
    session.ensure()
    compare_workers(plan)
    work = Connected.connect(plan, dict(secrets))
    return dataset.map_batches(
        _add_columns,  # type: ignore[arg-type]
        fn_kwargs={"job": _Job(work, to_columns, text_column)},
        batch_size=BLOCK_ROWS,
        batch_format="pyarrow",
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=work.in_flight),
        zero_copy_batch=True,
    )


def column_names(dataset: ray.data.Dataset) -> list[str] | None:
    """Return the names of the columns where they are known without reading the data."""
    if not isinstance(dataset, ray.data.Dataset):
        raise TypeError(f"ds must be a Ray Dataset; got {type(dataset).__name__}. For other inputs there is predict.")
    schema = dataset.schema(fetch_if_missing=False)
    return None if schema is None else list(schema.names)


@dataclass(frozen=True)
class _Job:
    """What is done with each block.

    Ray Data carries it with the operator: each of its tasks, which does many blocks, unpickles it once. A reference to
    it would have to be resolved for each block, and Ray keeps an object for as long as the driver lives whose reference
    was pickled.
    """

    work: Connected
    to_columns: ToColumns
    text_column: str

    @cached_property
    def secrets(self) -> dict[str, Secret]:
        """What the driver handed over: asked for once for each task."""
        return fetch_secrets() if None in self.work.pools else {}

    def process(self, texts: Sequence[str], places: Sequence[int]) -> list[Row[Any]]:
        """Process the texts of one block."""
        del places
        return self.work.process(Block(texts), self.secrets)


def _add_columns(batch: pa.Table, job: _Job) -> pa.Table:
    """Process one block of a user's Dataset on a worker."""
    if job.text_column not in batch.column_names:
        raise InputError(
            f"The Dataset has no column {job.text_column!r}.", f"Columns: {', '.join(batch.column_names)}."
        )
    with rarely_collected():
        columns = job.to_columns(batch[job.text_column].to_pylist(), job.process)
    for name, values in columns.items():
        if name in batch.column_names:
            raise InputError(f"The Dataset has a column {name!r} already.", "Pass output_prefix='…' to rename ours.")
        batch = batch.append_column(name, values)
    return batch
