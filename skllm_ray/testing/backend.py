"""A backend without a server, for tests of code that uses this library."""

from __future__ import annotations

import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skllm_ray.config import RateLimit
from skllm_ray.llm.base import WORKERS_AT_ONCE, Backend, BackendSpec, Capabilities, SecretResolver
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError, Usage


class FakeBackend(Backend):
    """A backend in this process that answers as a function says.

    Parameters
    ----------
    answer : callable
        Takes a `ChatRequest`; returns the answer's text or a `RowError`.
    latency_s : float, default=0
        How long a call of `complete` takes, in seconds.

    Attributes
    ----------
    n_requests : int
        Requests so far.
    closed : bool
        Whether `close` was called.

    Examples
    --------
    >>> backend = FakeBackend(lambda request: request.messages[-1]["content"].upper())
    >>> backend.complete([ChatRequest(({"role": "user", "content": "hello"},))])[0].text
    'HELLO'
    """

    def __init__(self, answer: Callable[[ChatRequest], str | RowError], latency_s: float = 0) -> None:
        self.answer = answer
        self.latency_s = latency_s
        self.n_requests = 0
        self.closed = False

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, in order."""
        self.n_requests += len(requests)
        if self.latency_s:
            time.sleep(self.latency_s)
        return [self._reply(request) for request in requests]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return a unit vector of 64 dimensions per text: its words, hashed. Like texts lie close together."""
        self.n_requests += len(texts)
        return [Embedding(_hashed_words(text), model="fake") for text in texts]

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def _reply(self, request: ChatRequest) -> Reply:
        answer = self.answer(request)
        if isinstance(answer, RowError):
            return Reply(error=answer, model="fake")
        n_prompt = sum([len(message["content"]) for message in request.messages]) // 4
        return _fake_reply(answer, n_prompt)


@lru_cache(maxsize=4096)
def _fake_reply(answer: str, n_prompt: int) -> Reply:
    return Reply(answer, usage=Usage(n_prompt, len(answer) // 4), model="fake")


def _hashed_words(text: str) -> NDArray[np.float32]:
    buckets = [zlib.crc32(word.encode("utf-8", "replace")) % 64 for word in text.lower().split()] or [0]
    vector = np.bincount(buckets, minlength=64).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


@dataclass(frozen=True)
class FakeSpec(BackendSpec):
    """The spec of a `FakeBackend`; it travels to workers as far as `answer` pickles (Ray's cloudpickle takes lambdas).

    Every `FakeSpec` is a backend of its own: two with the same arguments have different keys, copies the same.

    Examples
    --------
    >>> spec = FakeSpec(lambda request: "yes", batch_size=8)
    >>> spec.open(None).complete([])
    []
    """

    answer: Callable[[ChatRequest], str | RowError]
    batch_size: int = 256
    """Kept for callers of the first release; blocks have 256 rows."""
    latency_s: float = 0
    limit: RateLimit | None = field(default=None, kw_only=True)
    """The declared limit; nothing enforces it."""
    key: str = field(default_factory=lambda: f"fake-{uuid.uuid4().hex}", kw_only=True)
    """Identifies the backend."""

    @property
    def model(self) -> str:
        """Always ``"fake"``."""
        return "fake"

    @property
    def capabilities(self) -> Capabilities:
        """It answers with texts alone, all at once, and embeds. Nobody knows its price."""
        return Capabilities(
            gives_log_probs=False,
            writes_labels=True,
            streams=False,
            takes_json_schemas=True,
            embeds=True,
            stateful=False,
            calls_at_once=WORKERS_AT_ONCE,
            stays_open=True,
            retry=None,
            price=None,
            cache=None,
        )

    @property
    def identity(self) -> str:
        """What `key` says."""
        return self.key

    def check(self) -> None:
        """Accept everything."""

    def open(self, resolve_secret: SecretResolver) -> FakeBackend:  # noqa: ARG002  the protocol's signature
        """Open the backend in this process."""
        return FakeBackend(self.answer, self.latency_s)
