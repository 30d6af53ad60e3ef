"""What Vertex AI's tuning jobs and batch jobs share: a client that tries once, a bucket, and how failures are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Generic, NoReturn, TypeVar

from skllm_ray.errors import ConfigurationError, JobFailedError
from skllm_ray.llm.api.redaction import redact
from skllm_ray.llm.submissions import OutcomeUnknownError, RefusedError
from skllm_ray.llm.vertex.backend import _open_client
from skllm_ray.llm.vertex.errors import classify
from skllm_ray.llm.vertex.gcs import check_bucket, explain, open_bucket, status_of
from skllm_ray.llm.vertex.spec import VertexSpec

CERTAIN: Final = frozenset({"authentication", "permission", "model_not_found", "bad_request", "insufficient_quota"})
"""Kinds of answers to a submission that say that nothing was made."""
_PAGE: Final = 100

J = TypeVar("J")


class VertexJobs(ABC, Generic[J]):
    """Jobs of one kind.

    Parameters
    ----------
    chat : VertexSpec
        Names the project and the location.
    bucket : str or None
        The bucket for the jobs' files.
    where : str
        What messages call the place.
    """

    _certain: ClassVar[frozenset[str]] = CERTAIN
    _what: ClassVar[str] = "job"

    def __init__(self, chat: VertexSpec, bucket: str | None, where: str) -> None:
        try:
            self._client = _open_client(chat, None)
        except Exception as error:  # noqa: BLE001  the boundary to the SDK
            raise explain(error, "Vertex AI") from None
        self._project, self._bucket_name, self._where = chat.project, bucket or "", where

    @property
    @abstractmethod
    def _service(self) -> Any:
        """The SDK's part for these jobs."""

    @abstractmethod
    def _read(self, job: Any) -> J:
        """Return what a job of the SDK is to us."""

    def _name(self, job_id: str) -> str:
        """Return the whole name of a job."""
        return job_id

    def check(self) -> None:
        """Raise unless the bucket can be written to and jobs can be listed."""
        check_bucket(self._bucket())
        next(self._jobs(1), None)

    def get(self, job_id: str) -> J | None:
        """Return a job, or None if Vertex AI knows it no more."""
        try:
            return self._read(self._service.get(name=self._name(job_id)))
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            if status_of(error) == 404:
                return None
            self._raise(error)

    def cancel(self, job_id: str) -> None:
        """Ask Vertex AI to stop."""
        try:
            self._service.cancel(name=self._name(job_id))
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            if status_of(error) not in {400, 404, 409}:  # it ended before, or is gone
                self._raise(error)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _bucket(self) -> Any:
        return open_bucket(self._project, self._bucket_name)

    def _jobs(self, page_size: int = _PAGE) -> Iterator[Any]:
        try:
            yield from self._service.list(config={"page_size": page_size})
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)

    def _made(self, job: Any) -> J:
        """Return a job that was submitted."""
        if not job.name:
            raise OutcomeUnknownError(f"Vertex AI's answer names no {self._what}.")
        return self._read(job)

    def _refuse(self, error: Exception) -> NoReturn:
        """Raise what the failure of a submission says: that nothing was made, or that nobody knows."""
        found = classify(error, without_secrets)
        if found.kind in self._certain and status_of(error) not in {None, 408, 409}:
            raise RefusedError(f"{self._where} refused the {self._what}: {found.message}") from None
        raise OutcomeUnknownError(found.message) from None

    def _raise(self, error: Exception) -> NoReturn:
        found = classify(error, without_secrets)
        if found.kind in {"authentication", "permission"}:
            raise ConfigurationError(
                f"{self._where} refused: {found.message}",
                "Grant the role Vertex AI User, and enable aiplatform.googleapis.com.",
            ) from None
        raise JobFailedError(f"{self._where}: {found.message}", found.hint) from None


def without_secrets(message: str) -> str:
    """Return a server's message without what looks like a key."""
    return redact(message, [], [])
