"""What a backend is: a frozen spec that travels, and the client or engine that it opens where it lands.

To add a backend, write a spec and a backend, and give :mod:`skllm_ray.llm.registry` a row with its namespace. The spec
says which model answers and what the backend can do (:class:`Capabilities`); a vendor behind HTTP takes
:class:`~skllm_ray.llm.spec.ApiSpec`, a model in actors :class:`StatefulSpec`. The backend has the verbs ``complete``
and ``embed``. Nothing here knows Ray, and nobody looks for a method that a class may have or lack: what it can do is
declared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, TypeGuard

from skllm_ray.config import Price, RateLimit, Secret, SecretRef, lasting
from skllm_ray.llm.model_facts import Vendor
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply

if TYPE_CHECKING:
    from datetime import date

    from skllm_ray.llm.api.retry_policy import RetryPolicy
    from skllm_ray.llm.provider_batches.api import BatchApi

SecretResolver: TypeAlias = Callable[[SecretRef], Secret]
"""Turns a reference into the secret, on the worker; raises ``MissingKeyError``."""

Wanted: TypeAlias = Literal["label", "confidence", "log_probs", "vectors"]
"""What a call needs of its answers, where it is more, or less, than their texts: with "confidence", probabilities where
there are any, and with "log_probs", nothing without them."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What an estimator says of its model: what :mod:`skllm_ray.llm.registry` makes a spec of."""

    namespace: str
    name: str
    key: str | None = None
    """The estimator's own key; None takes the settings'."""
    org: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Extra request parameters of the backend."""

    @property
    def full_name(self) -> str:
        """The name with its namespace, by which settings know the model."""
        return f"{self.namespace}::{self.name}"


WORKERS_AT_ONCE: Final = 8
"""Blocks of an API's rows that workers ask at once; each keeps many requests in flight."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """The file that keeps a backend's replies."""

    path: str
    max_bytes: int
    """The largest size of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do, and on which terms. No field has a default: a backend that says nothing is not made.

    Examples
    --------
    >>> from skllm_ray.testing import FakeSpec
    >>> FakeSpec(lambda request: "yes").capabilities.stateful
    False
    """

    gives_log_probs: bool
    """Whether replies to classifications can have ``log_probs``. What a server does is seen when it is asked."""
    writes_labels: bool
    """Whether an answer that names a label is written, token by token, and paid for; a local model scores labels."""
    streams: bool
    """Whether ``complete_each`` tells an answer when it is there; otherwise all are told at the end."""
    takes_json_schemas: bool
    """Whether an answer can be held to a JSON schema; otherwise the prompt alone asks for its form."""
    embeds: bool
    """Whether it makes vectors of texts. A server that has no such model says so when it is asked."""
    stateful: bool
    """Whether it holds something heavy, a model, and so lives in actors. Then the spec is a `StatefulSpec`."""
    calls_at_once: int | None
    """Blocks of rows that workers ask at once; None: two for each replica of a stateful backend."""
    stays_open: bool
    """Whether an open backend is worth keeping for the next call."""
    retry: RetryPolicy | None
    """How often, and how long, the backend itself asks again; None: it never does. With one, the spec has
    `BackendSpec.with_retry`."""
    price: Price | None
    """What the model costs: the user's own price, or the provider's list price. ``Price(0)`` is a model that costs
    nothing; None is an unknown price, so that no budget can be kept."""
    cache: CacheSettings | None
    """Where its replies are kept for later calls; None keeps none."""


@lasting
@dataclass(frozen=True, slots=True)
class Placement:
    """What the actors of a stateful backend need of the cluster."""

    num_cpus: float | None = None
    """CPUs per actor; None lets the cluster's size decide."""
    num_gpus: float = 0
    """GPUs per actor; a fraction shares one."""
    min_replicas: int = 1
    """How many actors must find room."""
    max_replicas: int | None = None
    """How many actors there may be; None means one for each node that has room."""
    cpu_replicas: int = 0
    """How many actors without a GPU may work beside those with one, where CPUs are free."""
    keep_alive_s: float | None = None
    """How long idle actors outlive their driver, in seconds; None ends them with it."""
    placement_timeout_s: float | None = None
    """How long actors may wait for room before the call fails; None: a minute, or 20 where an autoscaler runs."""


class Backend(ABC):
    """An open client or engine. It answers batches."""

    @abstractmethod
    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, in order. Failures are replies with an ``error``, never exceptions."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, in order. Failures are embeddings with an ``error``, never exceptions."""

    @abstractmethod
    def close(self) -> object:
        """Free what the backend holds."""

    def complete_each(self, requests: Sequence[ChatRequest], tell: Callable[[int, Reply], None] | None) -> list[Reply]:
        """Do what `complete` does, and call `tell` with each reply and its position.

        A backend whose `Capabilities.streams` is true tells each reply when it arrives; here, all are told at the end.
        """
        replies = self.complete(requests)
        if tell is not None:
            for position, reply in enumerate(replies):
                tell(position, reply)
        return replies

    def recall(self, asked: Sequence[ChatRequest | str]) -> list[bool]:
        """Return for each request, or text to embed, whether its answer is kept here and costs nothing."""
        return [False] * len(asked)

    def keep(self, asked: Sequence[ChatRequest | str], answers: Sequence[Reply | Embedding]) -> None:  # noqa: B027  so
        """Keep answers for later calls that came by another way, such as a batch."""

    def forget(self, requests: Sequence[ChatRequest]) -> None:  # noqa: B027  most backends keep nothing
        """Keep no reply to `requests` for later calls, since the task cannot use it."""


class BackendSpec(ABC):
    """Everything a worker needs to open a backend. Frozen and picklable; holds references to secrets, never secrets."""

    __slots__ = ()

    if TYPE_CHECKING:  # while it runs, a property here would become the default of a dataclass field of its name

        @property
        @abstractmethod
        def model(self) -> str:
            """The model's name, as messages show it."""

        @property
        @abstractmethod
        def key(self) -> str:
            """Identifies the backend and its settings: specs with equal keys may share one open backend."""

        @property
        @abstractmethod
        def limit(self) -> RateLimit | None:
            """The declared limit, if any."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the backend can do."""

    @property
    @abstractmethod
    def identity(self) -> str | tuple[str, ...]:
        """What an answer depends on besides the question. Caches and the manifests of batch jobs hold it."""

    @abstractmethod
    def check(self) -> None:
        """Raise what can be known before anything is started: a missing file, extra or credential."""

    @abstractmethod
    def open(self, resolve_secret: SecretResolver) -> Backend:
        """Open the backend in this process."""

    # --- what most backends have no need to change -------------------------------------------------------------------

    def at_flex(self) -> Self | None:
        """Return the spec at its provider's flex tier, cheaper and slower; None where it has none, or names a tier."""
        return None

    @property
    def credential(self) -> SecretRef | None:
        """Where a worker finds the key; None for a backend without one."""
        return None

    @property
    def vendor(self) -> Vendor | None:
        """Whose rules of flex tiers, batches and cached input hold; None where none are known."""
        return None

    def adapt(self, requests: Sequence[ChatRequest], texts: Sequence[str]) -> list[ChatRequest]:  # noqa: ARG002
        """Return `requests`, made of `texts`, as the spec's options want them."""
        return list(requests)

    def adapt_texts(self, texts: Sequence[str]) -> list[str]:
        """Return `texts`, which are to be embedded, as the spec's options want them."""
        return list(texts)

    def asked_for(self, wanted: Wanted) -> BackendSpec:  # noqa: ARG002
        """Return the spec for a call that wants more than texts, or less: a label alone, probabilities, vectors."""
        return self

    def with_retry(self, retry: RetryPolicy) -> BackendSpec:
        """Return the spec with another policy of asking again."""
        raise TypeError(f"{type(self).__name__} declares capabilities.retry and has no with_retry({retry}).")

    def with_price(self, price: Price) -> BackendSpec:  # noqa: ARG002
        """Return the spec with the user's own price; what is not paid for stays as it is."""
        return self

    def batch_api(self) -> BatchApi | None:
        """Return how the model's batches are made and read; None where its provider has none."""
        return None

    def most_output_tokens(self, bound: int | None) -> int | None:
        """Return the most tokens that an answer may have and may have to be paid for, where a request allows `bound`.

        None is no limit. Where a server refuses or ignores every limit, a request whose ``limit_is_hard`` is not sent.
        """
        return bound

    def count_prompt_tokens(self, requests: Sequence[ChatRequest]) -> list[int] | None:  # noqa: ARG002
        """Return the tokens of each prompt by the model's own tokenizer; None where it is not at hand."""
        return None

    def context_tokens(self) -> int | None:
        """Return how many tokens a prompt and its answer may have; None where it is not known."""
        return None

    def end_notice(self, today: date) -> str | None:  # noqa: ARG002
        """Return what to say of a model that its provider has turned off, or will."""
        return None


class StatefulSpec(BackendSpec):
    """A backend that holds a model and lives in actors. Its `Capabilities.stateful` is true."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        @abstractmethod
        def placement(self) -> Placement:
            """What its actors need of the cluster."""

        @property
        @abstractmethod
        def packages(self) -> tuple[str, ...]:
            """The distributions that a worker needs in the driver's versions, besides this library and Ray."""

    @property
    def files(self) -> tuple[str, str] | None:
        """The model's name on a hub and the folder for what is downloaded; None where nothing has to be."""
        return None

    @abstractmethod
    def for_replica(self, n_threads: int) -> Self:
        """Return the spec that one replica opens, with its share of the machine."""

    def without_gpu(self) -> Self:
        """Return the spec of a replica on CPUs beside those with GPUs."""
        return self


def is_stateful(spec: BackendSpec) -> TypeGuard[StatefulSpec]:
    """Return whether `spec` lives in actors."""
    return spec.capabilities.stateful
