"""What a backend is: a frozen spec that travels, and the client or engine that it opens where it lands.

To add a backend, write a spec (which model, where it runs, which limit it shares) and a backend with the one verb
``complete`` (and ``embed``), and give :mod:`skllm_ray.llm.registry` its namespace. Nothing here knows Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from skllm_ray.config import RateLimit, Secret, SecretRef, lasting
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply

SecretResolver: TypeAlias = Callable[[SecretRef], Secret]
"""Turns a reference into the secret, on the worker; raises ``MissingKeyError``."""


@lasting
@dataclass(frozen=True, slots=True)
class Placement:
    """What one worker of a backend needs of the cluster."""

    stateful: bool = False
    """Whether the backend holds something heavy (a model) and so lives in an actor."""
    num_cpus: float | None = 0
    """CPUs per worker; None lets the cluster's size decide."""
    num_gpus: float = 0
    """GPUs per worker; a fraction shares one."""
    min_replicas: int = 1
    """Stateful backends: how many actors must find room."""
    max_replicas: int | None = None
    """Stateful backends: how many actors there may be; None means one for each node that has room."""
    batch_size: int = 256
    """Rows in a block."""
    keep_alive_s: float | None = None
    """Stateful backends: how long idle actors outlive their driver, in seconds; None ends them with it."""
    placement_timeout_s: float = 60.0
    """Stateful backends: how long actors may wait for room before the call fails."""
    stays_open: bool = True
    """Whether an open backend is worth keeping for the next call."""


@runtime_checkable
class Backend(Protocol):
    """An open client or engine. Batches are its only verb."""

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, in order. Failures are replies with an ``error``, never exceptions."""
        ...

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, in order. Failures are embeddings with an ``error``, never exceptions."""
        ...

    def close(self) -> object:
        """Free what the backend holds."""
        ...


class BackendSpec(Protocol):
    """Everything a worker needs to open a backend. Frozen and picklable; holds references to secrets, never secrets."""

    @property
    def model(self) -> str:
        """The model's name, without the namespace."""
        ...

    @property
    def placement(self) -> Placement:
        """Where it runs."""
        ...

    @property
    def limit(self) -> RateLimit | None:
        """The declared limit, if any."""
        ...

    @property
    def gives_probabilities(self) -> bool:
        """Whether replies to classifications have ``log_probs``."""
        ...

    @property
    def key(self) -> str:
        """Identifies the backend and its settings: specs with equal keys may share one open backend."""
        ...

    def check(self) -> None:
        """Raise what can be known before anything is started: a missing file, extra or credential."""
        ...

    def open(self, resolve_secret: SecretResolver) -> Backend:
        """Open the backend in this process."""
        ...


def adapt(spec: BackendSpec, requests: Sequence[ChatRequest], texts: Sequence[str]) -> list[ChatRequest]:
    """Return `requests` as the options in `spec` want them; most specs have nothing to change."""
    change = getattr(spec, "adapt", None)
    return list(requests) if change is None else list(change(requests, texts))


def adapt_texts(spec: BackendSpec, texts: Sequence[str]) -> list[str]:
    """Return `texts`, which are to be embedded, as the options in `spec` want them; most have nothing to change."""
    change = getattr(spec, "adapt_texts", None)
    return list(texts) if change is None else list(change(texts))
