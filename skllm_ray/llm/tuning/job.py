"""What became of a tuning job."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal, Self

from skllm_ray.llm.submissions.record import STRIKES, Submission
from skllm_ray.llm.tuning.spec import TuningSpec

State = Literal[
    "intent",
    "posting",
    "refused",
    "forgotten",
    "queued",
    "pending",
    "running",
    "paused",
    "updating",
    "cancelling",
    "succeeded",
    "partially_succeeded",
    "failed",
    "cancelled",
    "expired",
    "deleted",
    "unknown",
]
"""The first four are ours, before the service knows the job; the others are the service's."""

ENDED: Final[frozenset[State]] = frozenset(
    {"succeeded", "partially_succeeded", "failed", "cancelled", "expired", "deleted"}
)
"""The service will not change these any more."""
USABLE: Final[frozenset[State]] = frozenset({"succeeded", "partially_succeeded"})
"""States in which there should be a tuned model."""


@dataclass(frozen=True, slots=True)
class ServerJob:
    """A job as its service describes it."""

    id: str
    """The service's own identifier."""
    state: State
    key: str | None = None
    """Our key, where the job carries one."""
    base_model: str = ""
    model: str | None = None
    """The tuned model: an endpoint at Vertex AI, a model's name elsewhere."""
    error: str | None = None
    created_at: float | None = None
    """Seconds since the epoch."""
    started_at: float | None = None
    finished_at: float | None = None
    billable_tokens: int | None = None
    """The tokens that the service charges for, once it tells."""
    data: str | None = None
    """The service's name of the data set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningJob(Submission):
    """A tuning job: what was asked, and the last that is known of it.

    Examples
    --------
    >>> spec = TuningSpec(service="openai", base_model="gpt-4.1-mini-2025-04-14", data_sha256="0" * 64)
    >>> TuningJob(spec=spec).state
    'intent'
    """

    kind: ClassVar[str] = "tuning"
    command: ClassVar[str] = "skllm-ray tune"

    spec: TuningSpec
    state: State = "intent"
    model: str | None = None
    """The tuned model; None before it exists."""
    started_at: float | None = None
    finished_at: float | None = None
    billable_tokens: int | None = None
    """The tokens that the service charges for, once it tells."""
    cost_usd: float | None = None
    """What the job cost; None where the service does not tell."""
    estimator: dict[str, Any] = field(default_factory=dict)
    """What a fitted estimator is made of again: its parameters without credentials, and its labels."""

    @property
    def title(self) -> str:
        """What it is, for messages."""
        return f"a tuning job of {self.base_model}"

    @property
    def base_model(self) -> str:
        """The model that is tuned."""
        return self.spec.base_model

    @property
    def has_ended(self) -> bool:
        """Whether the job will not change any more. A success ends when its model is known."""
        if self.state in USABLE:
            return self.model is not None or self.error is not None
        return self.state in ENDED

    @property
    def is_usable(self) -> bool:
        """Whether there is a tuned model to predict with."""
        return self.state in USABLE and self.model is not None

    def seen(self, found: ServerJob) -> Self:
        """Return the record with what the service tells of the job."""
        strikes = self.strikes + 1 if found.state in USABLE and found.model is None else 0
        error = found.error
        if strikes >= STRIKES:  # an endpoint may appear a little after its job's success
            strikes, error = 0, error or "The job succeeded, but the service gives no tuned model to predict with."
        return replace(
            self,
            id=found.id,
            state=found.state,
            model=found.model or self.model,
            error=error,
            created_at=found.created_at or self.created_at,
            started_at=found.started_at or self.started_at,
            finished_at=found.finished_at or self.finished_at,
            billable_tokens=found.billable_tokens or self.billable_tokens,
            data=self.data or (None if self.id else found.data),
            strikes=strikes,
        )

    @classmethod
    def read_spec(cls, told: dict[str, Any]) -> TuningSpec:
        """Return the spec that is a part of the record."""
        return TuningSpec.from_json(told)
