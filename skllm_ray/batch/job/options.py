"""What a batch job is told: an estimator, and how to read, write and spend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa

from skllm_ray.config import Secret
from skllm_ray.tasks.base import Row, Task

KeepReplies = Literal["none", "errors", "all"]


class BatchEstimator(Protocol):
    """What a batch job needs of an estimator; all of this library have it."""

    model: str
    on_error: str

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters."""
        ...

    def _task(self) -> Task[Any]: ...

    def _checked_spec(self) -> Any: ...

    def _secrets(self) -> dict[str, Secret]: ...

    def _output_types(self) -> dict[str, pa.DataType | None]: ...

    def _column_types(self) -> dict[str, pa.DataType | None]: ...

    def _columns_of(
        self, values: list[Any], process: Any, mode: Any, *, details: bool = True
    ) -> tuple[list[Sequence[Any]], list[Row[Any]]]: ...


@dataclass(frozen=True)
class JobOptions:
    """How a job reads, writes and spends. `skllm_ray.batch.run` documents each."""

    text_column: str | None = "text"
    text_template: str | None = None
    keep_columns: tuple[str, ...] | None = None
    output_prefix: str = ""
    keep_replies: KeepReplies = "none"
    limit: int | None = None
    retry_errors: bool = False
    filename_column: str | None = None
    unit_rows: int | None = None
    workers: int | None = None
    budget_usd: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    max_output_tokens: int | None = None
    outage_s: float = 600.0
    keep_going: bool = False
