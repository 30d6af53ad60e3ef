"""Tuning at OpenAI, at Azure OpenAI, and at servers with the same API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from skllm_ray.errors import ConfigurationError, JobFailedError
from skllm_ray.llm.api.redaction import redact
from skllm_ray.llm.base import SecretResolver
from skllm_ray.llm.gpt.clients.openai.remote_files import RemoteFiles, classify, key_of, open_client
from skllm_ray.llm.submissions import OutcomeUnknownError, RefusedError
from skllm_ray.llm.tuning.job import ServerJob, State
from skllm_ray.llm.tuning.spec import TuningSpec

if TYPE_CHECKING:
    from openai.types import FileObject
    from openai.types.fine_tuning import FineTuningJob

METADATA: Final = "skllm_ray_key"
"""The metadata in which a job carries its key."""

_PAGE = 100
_STATES: Final[dict[str, State]] = {
    "validating_files": "pending",
    "notRunning": "pending",
    "created": "pending",
    "pending": "pending",
    "queued": "queued",
    "running": "running",
    "resuming": "running",
    "pausing": "running",
    "paused": "paused",
    "cancelling": "cancelling",
    "canceling": "cancelling",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
    "canceled": "cancelled",
    "expired": "expired",
    "deleted": "deleted",
}


class OpenAITuning:
    """The fine-tuning jobs and files of an OpenAI-compatible server.

    Parameters
    ----------
    spec : TuningSpec
        Names the server.
    resolve_secret : callable
        Finds the API key.
    """

    def __init__(self, spec: TuningSpec, resolve_secret: SecretResolver) -> None:
        self._spec = spec
        self._key = key_of(spec, resolve_secret)
        self._client = open_client(spec, self._key)
        self._redact = partial(redact, secrets=[self._key], texts=[])
        self._remote = RemoteFiles(self._client, "fine-tune", self._raise, self._redact)

    def check(self) -> None:
        """Raise unless jobs can be listed with this key."""
        self._call(lambda: self._client.fine_tuning.jobs.list(limit=1))

    def upload(self, data: bytes, key: str) -> str:
        """Upload the data set, or find it from an earlier try, and compare what arrived with what was sent."""
        file = self._remote.upload(data, key)
        self._compare(file, data)
        return file.id

    def find(self, key: str) -> ServerJob | None:
        """Return the oldest job with our metadata, or with our file where the server keeps no metadata."""
        found: ServerJob | None = self._call(lambda: self._find(key))
        return found

    def create(self, spec: TuningSpec, data: str) -> ServerJob:
        """Send the one POST: the client was opened without retries."""
        import openai

        parameters: Any = dict(spec.hyper_parameters)
        try:
            job = self._client.fine_tuning.jobs.create(
                model=spec.base_model,
                training_file=data,
                metadata={METADATA: spec.key},
                method={"type": "supervised", "supervised": {"hyperparameters": parameters}},
                suffix=spec.suffix or openai.omit,
            )
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            message = classify(error, self._redact).message
            status = error.status_code if isinstance(error, openai.APIStatusError) else 0
            if 400 <= status < 500 and status not in {408, 409}:
                raise RefusedError(f"{spec.service} refused the job: {message}") from None
            raise OutcomeUnknownError(message) from None
        if not job.to_dict().get("id"):  # the SDK makes a job of whatever the server sends
            raise OutcomeUnknownError("The server's answer names no job.")
        return self._read(job)

    def get(self, job_id: str) -> ServerJob | None:
        """Return a job, or None if the server knows it no more."""
        import openai

        try:
            return self._read(self._client.fine_tuning.jobs.retrieve(job_id))
        except openai.NotFoundError:
            return None
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)

    def cancel(self, job_id: str) -> None:
        """Ask the server to stop."""
        import openai

        try:
            self._client.fine_tuning.jobs.cancel(job_id)
        except (openai.BadRequestError, openai.ConflictError, openai.NotFoundError):
            return  # it ended before, or is gone
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)

    def remove(self, data: str) -> None:
        """Delete the data set's file."""
        self._remote.remove(data)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _find(self, key: str) -> ServerJob | None:
        files = {file.id for file in self._remote.named(key)}
        jobs: Iterator[FineTuningJob] = iter(self._client.fine_tuning.jobs.list(limit=_PAGE))
        found = [self._read(job) for job in jobs if _carries(job, key, files)]
        return min(found, key=lambda job: job.created_at or 0, default=None)

    def _compare(self, file: FileObject, data: bytes) -> None:
        """Raise unless the file is what was sent; where a server hands out no contents, its size must do."""
        import openai

        same = file.bytes == len(data)
        try:
            content = self._client.files.content(file.id).read()
            same = hashlib.sha256(content).digest() == hashlib.sha256(data).digest()
        except openai.APIStatusError:
            pass
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)
        if not same:
            self.remove(file.id)
            raise JobFailedError(f"The file {file.id} does not hold what was sent; it was removed.", "Try again.")

    def _read(self, job: FineTuningJob) -> ServerJob:
        error = self._redact(job.error.message) if job.error and job.error.message else None
        return ServerJob(
            id=job.id,
            state=_STATES.get(job.status, "unknown"),
            key=(job.metadata or {}).get(METADATA),
            base_model=job.model,
            model=job.fine_tuned_model or None,
            error=error,
            created_at=job.created_at,
            started_at=None,
            finished_at=job.finished_at,
            billable_tokens=job.trained_tokens,
            data=job.training_file,
        )

    def _call(self, ask: Any) -> Any:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)

    def _raise(self, error: Exception) -> NoReturn:
        failure = classify(error, self._redact)
        if failure.kind in {"authentication", "permission"}:
            raise ConfigurationError(
                f"{self._spec.service} refused: {failure.message}",
                "Check the key, and that its project may use fine-tuning; OpenAI takes no new organisations for it.",
            ) from None
        raise JobFailedError(f"{self._spec.service}: {failure.message}", failure.hint) from None


def _carries(job: FineTuningJob, key: str, files: set[str]) -> bool:
    carried = (job.metadata or {}).get(METADATA)
    return carried == key if carried else job.training_file in files
