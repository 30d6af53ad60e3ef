"""What a batch job is told: an estimator, and how to read, write and spend.

`JobOptions` is the one list of a job's options. The job file's keys and the command line's flags are its fields, and
`skllm_ray.batch.run` passes its arguments on by their names. It is a pydantic model, since pydantic makes the checks,
the messages and the JSON schema of a job file, and the openai package needs it anyway. The signature of `run` is
written out, so that editors show it; a test compares it with the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Protocol, Self

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from skllm_ray.batch.storage import StorageOptions
from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError
from skllm_ray.execution.plan import Plan
from skllm_ray.tasks.base import Row, Task

KeepReplies = Literal["none", "errors", "all"]
Delivered = Literal["direct", "batch"]
OneOrMore = Annotated[
    list[str],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""A list of texts; one text stands for a list of it."""

PRIVATE: Final = frozenset({"storage_options", "request_options", "gpt_url"})
"""Options that may hold a credential: what was given there is never shown."""
_MUST_BE: Final = {
    "priority": "an int of at least 0",
    "int_type": "an int of at least 1",
    "float_type": "a number of at least 0",
    "bool_type": "True or False",
    "string_type": "a str",
    "list_type": "a list of column names",
    "dict_type": "a mapping",
}
"""By pydantic's type of error."""


class RowReading(Protocol):
    """What becomes of an estimator's rows; it travels to the workers in the estimator's place."""

    @property
    def types(self) -> dict[str, pa.DataType | None]:
        """The output columns without the details; None for values that have no type of their own."""
        ...

    @property
    def output_types(self) -> dict[str, pa.DataType | None]:
        """The same with the details."""
        ...

    def columns_of(
        self, values: Sequence[Any], process: Any, mode: Any, *, details: bool = True
    ) -> tuple[list[Sequence[Any]], list[Row[Any]]]:
        """Return the output columns' values for a block of texts, and its rows."""
        ...


class BatchEstimator(Protocol):
    """What a batch job needs of an estimator; all of this library have it."""

    model: str
    on_error: str

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters."""
        ...

    def _task(self) -> Task[Any]: ...

    def _checked_plan(self) -> Plan: ...

    def _secrets(self) -> dict[str, Secret]: ...

    def _reading(self) -> RowReading: ...


class JobOptions(BaseModel):
    """How a job reads, writes and spends. `skllm_ray.batch.run` documents each option at length.

    Examples
    --------
    >>> JobOptions.of({"limit": 10}).limit
    10
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_column: str = Field("text", description="The column with the texts.")
    text_template: str | None = Field(None, description="Makes the text of several columns: '{title}: {body}'.")
    keep_columns: OneOrMore | None = Field(None, description="Columns of the input that are kept; all by default.")
    filename_column: str | None = Field(None, description="A column of this name tells each row's file.")
    output_prefix: str = Field("", description="Put before the names of the new columns.")
    keep_replies: KeepReplies = Field("none", description="Which raw answers are kept.")
    limit: int | None = Field(None, ge=1, description="Stop after so many rows, the first ones; later runs go on.")
    retry_errors: bool = Field(False, description="Ask the failed rows of finished parts again.")
    budget_usd: float | None = Field(None, ge=0, description="The most that the output may cost, in US dollars.")
    input_price: float | None = Field(None, ge=0, description="US dollars per million prompt tokens.")
    output_price: float | None = Field(None, ge=0, description="US dollars per million completion tokens.")
    max_output_tokens: int | None = Field(None, ge=1, description="The largest answer.")
    workers: int | None = Field(None, ge=1, description="How many parts are worked on at once.")
    unit_rows: int | None = Field(None, ge=1, description="Rows in a part, at most.")
    priority: int = Field(0, ge=0, description="Among jobs that share a local model: the higher is served first.")
    wait_for_server_s: float = Field(600.0, ge=0, description="How long a dead server is waited for, in seconds.")
    delivery: Delivered = Field("direct", description="Ask row by row, or by the provider's batches, at half price.")
    deadline: str | None = Field(
        None, description="By when all is to be done, from the first run on: 8h, 30min. Then rows are asked directly."
    )
    batch_price_share: float | None = Field(
        None, ge=0, le=1, description="What a batch costs of the direct price: 0.5 at OpenAI, Azure and Vertex AI."
    )
    keep_remote_files: bool = Field(False, description="Leave the batches' files at the provider.")
    keep_going: bool = Field(False, description="Go on though nearly all rows fail.")
    storage_options: dict[str, Any] | None = Field(None, description="What opens the filesystem.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the options that a Python call gives; nothing is converted, as it is in a job file.

        Raises
        ------
        ConfigurationError
            Naming the first option that cannot be.
        """
        try:
            return cls.model_validate(dict(given), strict=True)
        except ValidationError as error:
            raise ConfigurationError(_complaint(error.errors()[0])) from None


def _complaint(error: Any) -> str:
    name, *inside = error["loc"]
    context = error.get("ctx", {})
    kind = {0: "float_type", 1: "int_type"}.get(context.get("ge"), error["type"])
    if inside:
        kind = "dict_type" if name in PRIVATE else "list_type"
    given = type(error["input"]).__name__ if name in PRIVATE else repr(error["input"])
    must_be = _MUST_BE.get(name) or _MUST_BE.get(kind) or context.get("expected", "an option")
    return f"{name} must be {must_be}; got {given}."


@dataclass(frozen=True)
class JobRequest:
    """What a job was asked for."""

    estimator: BatchEstimator
    """Fitted."""
    inputs: tuple[str, ...]
    """Files, folders or patterns, all on one filesystem."""
    output: str
    """A folder."""
    options: JobOptions
    """How to read, write and spend."""
    storage: StorageOptions
    """What opens the filesystems."""
