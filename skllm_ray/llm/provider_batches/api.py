"""What a provider offers for batches: lines to write, answers to read, and the service that takes and gives files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from skllm_ray.config import Price, Secret
from skllm_ray.llm.provider_batches.lines import FileLimits, Form, LineResult
from skllm_ray.llm.provider_batches.record import BatchSpec, ProviderBatch, ServerBatch
from skllm_ray.tasks.base import ChatRequest


class BatchApi(ABC):
    """How one model's batches are made and read. It holds no credential.

    Attributes
    ----------
    limits : FileLimits
        How much one file may hold.
    is_asked_singly : bool
        Whether the same model answers single requests too: an Azure deployment for batches does not.
    embeds : bool
        Whether batches make vectors.
    """

    limits = FileLimits()
    is_asked_singly: bool = True
    embeds: bool = True

    @abstractmethod
    def price(self, share: float | None = None) -> Price | None:
        """Return what answers cost, where `share` is the user's own; None where it is not known."""

    @abstractmethod
    def knows(self, asked: ChatRequest | str) -> bool:
        """Return whether this process has seen such a request answered, so that what the server refuses is known."""

    @abstractmethod
    def line(self, name: str, asked: ChatRequest | str) -> bytes | None:
        """Return the line that asks a request or embeds a text; None for one that must not be sent so."""

    @abstractmethod
    def name_of(self, told: Mapping[str, Any]) -> str:
        """Return the name in a line of the results; empty where there is none."""

    @abstractmethod
    def read(self, told: Mapping[str, Any], form: Form, price: Price | None) -> LineResult:
        """Return what came of a line: an answer as the direct way reads it, with what it cost."""

    @abstractmethod
    def order(self, *, embeds: bool, **content: Any) -> BatchSpec:
        """Return the spec of a batch of this model; `content` are the fields that tell its lines."""


class BatchService(Protocol):
    """The verbs of `skllm_ray.llm.submissions.Service`, and what the results need."""

    def check(self) -> None:
        """Raise ``NotSupportedError`` where the server has no batches, and what else would make one fail."""
        ...

    def upload(self, data: Path, key: str) -> str:
        """Send a file of lines, check that it arrived whole, return its name there."""
        ...

    def find(self, key: str) -> ServerBatch | None:
        """Return the batch that carries `key`, or None."""
        ...

    def create(self, spec: BatchSpec, data: str) -> ServerBatch:
        """Send the one POST."""
        ...

    def get(self, job_id: str) -> ServerBatch | None:
        """Return a batch, or None if the service knows it no more."""
        ...

    def cancel(self, job_id: str) -> None:
        """Ask the service to stop; a batch that has ended already is no error."""
        ...

    def results(self, batch: ProviderBatch) -> Iterator[bytes]:
        """Yield the lines of a batch's results as they come in, always in the same order."""
        ...

    def remove(self, data: str) -> None:
        """Remove a file; one that is gone already is no error."""
        ...

    def remove_uploads(self, key: str) -> None:
        """Remove what was uploaded for a batch that was never submitted."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def open_batch_service(spec: BatchSpec, secrets: Mapping[str, Secret]) -> BatchService:
    """Open the service of a batch in this process."""
    if spec.service == "vertex":
        from skllm_ray.llm.vertex.batch_service import VertexBatches

        return VertexBatches(spec)
    from skllm_ray.llm.gpt.clients.openai.batch_service import OpenAIBatches

    return OpenAIBatches(spec, secrets)
