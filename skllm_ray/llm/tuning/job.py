"""What became of a tuning job."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Self

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

BEFORE_POST: Final[frozenset[State]] = frozenset({"intent", "refused", "forgotten"})
"""The service holds no job for certain: submitting is safe."""
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
class TuningJob:
    """A tuning job: what was asked, and the last that is known of it.

    Examples
    --------
    >>> spec = TuningSpec(service="openai", base_model="gpt-4.1-mini-2025-04-14", data_sha256="0" * 64)
    >>> TuningJob(spec=spec).state
    'intent'
    """

    spec: TuningSpec
    state: State = "intent"
    id: str | None = None
    """The service's identifier; None before the service has confirmed the job."""
    model: str | None = None
    """The tuned model; None before it exists."""
    error: str | None = None
    created_at: float | None = None
    """When the service took the job, in seconds since the epoch."""
    started_at: float | None = None
    finished_at: float | None = None
    billable_tokens: int | None = None
    """The tokens that the service charges for, once it tells."""
    cost_usd: float | None = None
    """What the job cost; None where the service does not tell."""
    data: str | None = None
    """The service's name of the data set; None before the upload, and after it was removed."""
    posted_at: float | None = None
    """When the one POST was about to be sent."""
    strikes: int = 0
    """Polls in a row that found the job gone, or ended without its model."""
    estimator: dict[str, Any] = field(default_factory=dict)
    """What a fitted estimator is made of again: its parameters without credentials, and its labels."""
    nonce: str = ""
    """Tells apart two writers of the same version."""
    version: int = 0
    """The store's version of this record; 0 if it was never stored."""

    @property
    def key(self) -> str:
        """The content key."""
        return self.spec.key

    @property
    def service(self) -> str:
        """Who tunes."""
        return self.spec.service

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

    def to_json(self) -> bytes:
        """Return the record for the store."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Return what :meth:`to_json` wrote; raises ``ValueError`` for anything else."""
        fields = json.loads(text)
        try:
            return cls(**{**fields, "spec": TuningSpec.from_json(fields["spec"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the record of a tuning job: {error}") from None
