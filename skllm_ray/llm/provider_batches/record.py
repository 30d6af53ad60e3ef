"""What a provider batch is made of, and the last that is known of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Final, Literal, Self

from skllm_ray.config import Price, SecretRef
from skllm_ray.llm.provider_batches.lines import Form
from skllm_ray.llm.submissions.record import STRIKES, Submission, known_fields

State = Literal[
    "intent", "posting", "refused", "forgotten",
    "running", "cancelling", "completed", "failed", "expired", "cancelled", "deleted", "unknown",
]  # fmt: skip
"""The first four are ours, before the service knows the batch."""

ENDED: Final[frozenset[str]] = frozenset({"completed", "failed", "expired", "cancelled", "deleted"})
"""The service will not change these any more."""
_BEFORE_FILES: Final[dict[State, State]] = {
    "completed": "running",
    "expired": "running",
    "cancelled": "cancelling",
}
"""What a batch that has ended counts as while its files may still be named."""
TOO_MANY_TOKENS: Final = "token_limit_exceeded"
"""The code of a batch that failed since too many tokens were enqueued: it waits its turn."""


@dataclass(frozen=True, slots=True)
class ServerBatch:
    """A batch as its service describes it."""

    id: str
    state: State
    key: str | None = None
    """Our key, where the batch carries one."""
    error: str | None = None
    error_code: str | None = None
    created_at: float | None = None
    """Seconds since the epoch."""
    data: str | None = None
    """The service's name of what was uploaded."""
    results: tuple[str, ...] = ()
    """The service's names of the files with what came of the lines."""
    n_done: int = 0
    """Lines that have an answer."""
    n_failed: int = 0
    n_total: int = 0
    """Lines that the service counts; 0 where it tells no counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """A batch before anybody has submitted it. Frozen and picklable; it holds no credential.

    Examples
    --------
    >>> spec = BatchSpec(service="openai", model="gpt-5.4-mini", content_sha256="0" * 64, nonce="1")
    >>> len(spec.key), spec.key == BatchSpec.from_json(asdict(spec)).key
    (40, True)
    """

    service: str
    """Who answers: ``openai``, ``azure``, ``custom_url`` or ``vertex``."""
    model: str
    content_sha256: str
    """SHA-256 of the lines, in hexadecimal."""
    nonce: str
    """Tells two orders of the same lines apart."""
    endpoint: str = ""
    """What the lines ask, such as ``/v1/chat/completions``."""
    n_lines: int = 0
    n_bytes: int = 0
    tokens: int = 0
    """About how many tokens it puts into the provider's queue."""
    most_usd: float = 0.0
    """The most that it can cost."""
    price: Price | None = None
    """What its answers cost; None where that is not known before they come."""
    step: int = 0
    """Which step of a job's plan it is for."""
    forms: tuple[Form, ...] = ()
    """How answers are read, by the numbers that end the lines' names."""
    ordered_at: float = 0.0
    """When it was made up, in seconds since the epoch."""
    base_url: str | None = None
    api_version: str | None = None
    org: str | None = None
    key_ref: SecretRef | None = None
    """Where the API key is found."""
    headers: tuple[tuple[str, SecretRef], ...] = ()
    project: str | None = None
    location: str | None = None
    bucket: str | None = None
    keep_files: bool = False
    """Whether the service's files stay when what they hold is home."""
    copy: int = 0

    @property
    def delete_data(self) -> bool:
        """False: the files are removed by who takes home what they hold."""
        return False

    @property
    def key(self) -> str:
        """Identifies the batch: 40 hexadecimal digits."""
        content = {name: value for name, value in asdict(self).items() if name not in {"keep_files", "copy"}}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:40]

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Self:
        """Return what ``asdict`` made, after JSON."""
        held = known_fields(cls, told)
        held["price"] = _price(told.get("price"))
        held["key_ref"] = None if told.get("key_ref") is None else _reference(told["key_ref"])
        held["headers"] = tuple((name, _reference(one)) for name, one in told.get("headers", ()))
        held["forms"] = tuple(map(Form.from_json, told.get("forms", ())))
        return cls(**held)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderBatch(Submission):
    """A batch: what was ordered, and the last that is known of it.

    Examples
    --------
    >>> spec = BatchSpec(service="openai", model="gpt-5.4-mini", content_sha256="0" * 64, nonce="1")
    >>> ProviderBatch(spec=spec).has_ended
    False
    """

    kind: ClassVar[str] = "batch"
    command: ClassVar[str] = "skllm-ray batches"

    spec: BatchSpec
    state: State = "intent"
    error_code: str | None = None
    results: tuple[str, ...] = field(default=())
    n_done: int = 0
    n_failed: int = 0
    n_total: int = 0
    collected: bool = False
    """Whether what came of its lines is in the journals."""
    answered: int = 0
    """Lines that brought an answer, once it is collected."""
    cost_usd: float | None = None
    """What they cost, once it is collected; None where nobody knows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))

    @property
    def title(self) -> str:
        """What it is, for messages."""
        return f"a batch of {self.spec.n_lines:,} requests to {self.spec.model}"

    @property
    def has_ended(self) -> bool:
        """Whether the service will not change it any more."""
        return self.state in ENDED

    @property
    def is_live(self) -> bool:
        """Whether it may still bring answers, so that nothing else may ask for them."""
        return self.state not in {"intent", "refused", "forgotten"} and not self.collected

    def seen(self, found: ServerBatch) -> ProviderBatch:
        """Return the record with what the service tells of the batch.

        One that has ended and names no files is looked at again: some services name them a little later.
        """
        nameless = found.state in _BEFORE_FILES and not found.results
        strikes = self.strikes + 1 if nameless else 0
        return replace(
            self,
            id=found.id,
            state=_BEFORE_FILES[found.state] if nameless and strikes < STRIKES else found.state,
            error=found.error,
            error_code=found.error_code,
            created_at=found.created_at,
            data=self.data or found.data,
            results=found.results,
            n_done=found.n_done,
            n_failed=found.n_failed,
            n_total=found.n_total,
            strikes=strikes,
        )

    @classmethod
    def read_spec(cls, told: Any) -> BatchSpec:
        """Return the spec in a record."""
        return BatchSpec.from_json(told)


def _price(told: dict[str, Any] | None) -> Price | None:
    if told is None:
        return None
    return Price(**{**known_fields(Price, told), "long": _price(told.get("long"))})


def _reference(told: dict[str, Any]) -> SecretRef:
    return SecretRef(**{**known_fields(SecretRef, told), "env": tuple(told["env"])})
