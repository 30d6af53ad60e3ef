"""The files and batches of an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from skllm_ray.config import Secret, resolve_secret
from skllm_ray.errors import ConfigurationError, JobFailedError, NotSupportedError
from skllm_ray.llm.api.redaction import redact
from skllm_ray.llm.gpt.clients.openai.remote_files import RemoteFiles, classify, key_of, open_client
from skllm_ray.llm.provider_batches.record import BatchSpec, ProviderBatch, ServerBatch, State
from skllm_ray.llm.submissions import OutcomeUnknownError, RefusedError

if TYPE_CHECKING:
    from openai.types import Batch

METADATA: Final = "skllm_ray_key"
"""The metadata in which a batch carries its key."""

_PAGE: Final = 100
_SKEW_S: Final = 300.0  # how far a server's clock may be behind ours
_STATES: Final[dict[str, State]] = {
    "validating": "running",
    "in_progress": "running",
    "finalizing": "running",
    "completed": "completed",
    "failed": "failed",
    "expired": "expired",
    "cancelling": "cancelling",
    "cancelled": "cancelled",
}


class OpenAIBatches:
    """The batches of an OpenAI-compatible server, and the files for them.

    Parameters
    ----------
    spec : BatchSpec
        Names the server.
    secrets : mapping of str to Secret
        Credentials by fingerprint.
    """

    def __init__(self, spec: BatchSpec, secrets: Mapping[str, Secret]) -> None:
        self._spec = spec
        key = key_of(spec, lambda reference: resolve_secret(reference, secrets))
        headers = {name: resolve_secret(reference, secrets) for name, reference in spec.headers}
        self._client = open_client(spec, key, headers)
        self._redact = partial(redact, secrets=[key, *headers.values()], texts=[])
        self._remote = RemoteFiles(self._client, "batch", self._raise, self._redact)

    def check(self) -> None:
        """Raise unless batches can be listed with this key."""
        import openai

        try:
            self._client.batches.list(limit=1)
        except (openai.NotFoundError, openai.APIResponseValidationError):
            raise NotSupportedError(
                f"{self._where} has no batches.", "Ask it directly: leave out delivery='batch'."
            ) from None
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            if isinstance(error, openai.APIStatusError) and error.status_code in {405, 501}:
                raise NotSupportedError(
                    f"{self._where} has no batches.", "Ask it directly: leave out delivery='batch'."
                ) from None
            self._raise(error)

    def upload(self, data: Path, key: str) -> str:
        """Send a file of lines, or find it from an earlier try; compare how much arrived."""
        file, size = self._remote.upload(data, key), data.stat().st_size
        if file.bytes != size:
            self._remote.remove(file.id)
            raise JobFailedError(f"{file.bytes:,} of {size:,} bytes arrived at {self._where}.", "Try again.")
        return file.id

    def find(self, key: str) -> ServerBatch | None:
        """Return the oldest batch with our metadata, of those since shortly before it was ordered."""
        found: ServerBatch | None = None
        try:
            for batch in self._client.batches.list(limit=_PAGE):
                if batch.created_at and batch.created_at < self._spec.ordered_at - _SKEW_S:
                    break  # they come newest first
                if (batch.metadata or {}).get(METADATA) == key:
                    found = self._read(batch)
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)
        return found

    def create(self, spec: BatchSpec, data: str) -> ServerBatch:
        """Send the one POST: the client was opened without retries."""
        import openai

        endpoint: Any = spec.endpoint
        try:
            batch: Any = self._client.batches.create(
                input_file_id=data, endpoint=endpoint, completion_window="24h", metadata={METADATA: spec.key}
            )
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            message = classify(error, self._redact).message
            status = error.status_code if isinstance(error, openai.APIStatusError) else 0
            if 400 <= status < 500 and status not in {408, 409}:
                raise RefusedError(f"{self._where} refused the batch: {message}") from None
            raise OutcomeUnknownError(message) from None
        if isinstance(batch, str) or not batch.to_dict().get("id"):  # the SDK returns a page as it is
            raise OutcomeUnknownError("The server's answer names no batch.")
        return self._read(batch)

    def get(self, job_id: str) -> ServerBatch | None:
        """Return a batch, or None if the server knows it no more."""
        import openai

        try:
            return self._read(self._client.batches.retrieve(job_id))
        except openai.NotFoundError:
            return None
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)

    def cancel(self, job_id: str) -> None:
        """Ask the server to stop."""
        import openai

        try:
            self._client.batches.cancel(job_id)
        except (openai.BadRequestError, openai.ConflictError, openai.NotFoundError):
            return  # it ended before, or is gone
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)

    def results(self, batch: ProviderBatch) -> Iterator[bytes]:
        """Yield the lines of a batch's result files as they come in."""
        try:
            for name in batch.results:
                with self._client.files.with_streaming_response.content(name) as response:
                    yield from _lines(response.iter_bytes())
        except GeneratorExit:
            raise
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)

    def remove(self, data: str) -> None:
        """Delete a file."""
        self._remote.remove(data)

    def remove_uploads(self, key: str) -> None:
        """Delete what was uploaded for a batch that was never submitted."""
        with suppress(JobFailedError):
            for file in list(self._remote.named(key)):
                self._remote.remove(file.id)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def _where(self) -> str:
        return self._spec.base_url or self._spec.service

    def _read(self, batch: Batch) -> ServerBatch:
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        first = errors[0] if errors else None
        counts: dict[str, Any] = batch.request_counts.to_dict() if batch.request_counts else {}
        return ServerBatch(
            id=batch.id,
            state=_STATES.get(batch.status, "unknown"),
            key=(batch.metadata or {}).get(METADATA),
            error=self._redact(first.message or "") if first else None,
            error_code=first.code if first else None,
            created_at=batch.created_at,
            data=batch.input_file_id,
            results=tuple(name for name in (batch.output_file_id, batch.error_file_id) if name),
            n_done=counts.get("completed") or 0,
            n_failed=counts.get("failed") or 0,
            n_total=counts.get("total") or 0,
        )

    def _raise(self, error: Exception) -> NoReturn:
        found = classify(error, self._redact)
        if found.kind in {"authentication", "permission"}:
            raise ConfigurationError(
                f"{self._where} refused: {found.message}", "Check the key, and that its project may use batches."
            ) from None
        raise JobFailedError(f"{self._where}: {found.message}", found.hint) from None


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream; a character such as U+2028 ends none."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest
