"""Where records are kept, so that they outlive every process.

A record is a folder of versions, ``<key>/00000001.json`` and so on. Nothing is ever overwritten or removed: a change is
the *exclusive creation* of the next version, which exactly one writer wins. That is all that a store must offer, and
the reason why a local file system, Google Cloud Storage and many fsspec file systems serve alike. A version that was
removed could be won a second time, so none is.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.llm.submissions.record import Submission

R = TypeVar("R", bound=Submission)
"""The kind of record that a store keeps."""

PROBE = "probe"
"""The folder that is no job's: what a store writes to try out whether it creates exclusively."""

_READ_TRIES = 20


class SubmissionStore(ABC, Generic[R]):
    """A durable place for the records of one kind. A subclass reads, lists, and creates exclusively.

    Attributes
    ----------
    url : str
        What :func:`skllm_ray.llm.submissions.stores.open_store` takes.
    record : type
        The kind of record.
    is_local : bool
        Whether only this machine sees it.
    """

    url: str
    record: type[R]
    is_local = False

    @abstractmethod
    def _create(self, path: str, content: bytes) -> bool:
        """Create `path` durably, whole or not at all; return False if it exists."""

    @abstractmethod
    def _read(self, path: str) -> bytes:
        """Return the content of `path`."""

    @abstractmethod
    def _versions(self, key: str) -> Sequence[str]:
        """Return the file names in the folder `key`, sorted; empty if there is none."""

    @abstractmethod
    def keys(self) -> list[str]:
        """Return the keys of all jobs."""

    def read(self, key: str) -> R | None:
        """Return the last version of a job, or None.

        Raises
        ------
        ConfigurationError
            If the version cannot be read: what it said might be a job that was paid for.
        """
        names = self._versions(key)
        if not names:
            return None
        path = f"{key}/{names[-1]}"
        for _ in range(_READ_TRIES):  # a file system that is no object store may show a file before it is whole
            try:
                return self.record.from_json(self._read(path))
            except ValueError as error:
                reason = str(error)
                time.sleep(0.05)
        raise ConfigurationError(
            f"{path} in the {self.record.kind} store {self.url} is damaged ({reason}).",
            "Restore it from a backup, or remove it if you know that no job was submitted.",
        )

    def write(self, job: R) -> R | None:
        """Store `job` as the version after its own; return it, or None if another writer was first."""
        job = replace(job, version=job.version + 1, nonce=uuid.uuid4().hex)
        path = f"{job.key}/{job.version:08d}.json"
        if self._create(path, job.to_json()):
            return job
        # A client that lost the server's answer may have tried again and met its own first try.
        return job if self._read(path) == job.to_json() else None

    def jobs(self) -> list[R]:
        """Return all jobs that were not forgotten, oldest first."""
        found = [job for key in self.keys() if (job := self.read(key)) is not None and job.state != "forgotten"]
        never = float("inf")

        def age(job: R) -> tuple[float, float, str]:  # services tell whole seconds, and our clock what came within one
            return job.created_at or job.posted_at or never, job.posted_at or never, job.key

        return sorted(found, key=age)

    def find(self, name: str) -> R:
        """Return the job with the service's ID or the key `name`.

        Raises
        ------
        InputError
            If there is none.
        """
        job = self.read(name) if name.replace("-", "").isalnum() else None
        if job is not None and job.state != "forgotten":
            return job
        for job in self.jobs():
            if job.id is not None and (name == job.id or name == job.id.rpartition("/")[2]):
                return job
        raise InputError(
            f"No {self.record.kind} job {name!r} in the store {self.url}.",
            f"`{self.record.command} list` shows what it holds; `{self.record.command} adopt` takes in a job of the "
            "service.",
        )

    def probe(self) -> None:
        """Raise unless the second creation of the same file is refused."""
        path = f"{PROBE}/{uuid.uuid4().hex}.json"
        if self._create(path, b"{}") and not self._create(path, b"[]"):
            return
        raise self._not_exclusive()

    def _not_exclusive(self) -> ConfigurationError:
        return ConfigurationError(
            f"The {self.record.kind} store {self.url} cannot create a file exclusively, so jobs could be paid twice.",
            "Use a local folder, gs://BUCKET/FOLDER, or a file system of fsspec with pipe_file(…, mode='create').",
        )
