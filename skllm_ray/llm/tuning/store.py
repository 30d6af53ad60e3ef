"""Where tuning jobs are kept, so that they outlive every process.

A job is a folder of versions, ``<key>/00000001.json`` and so on. Nothing is ever overwritten or removed: a change is
the *exclusive creation* of the next version, which exactly one writer wins. That is all that a store must offer, and
the reason why a local file system, Google Cloud Storage and many fsspec file systems serve alike. A version that was
removed could be won a second time, so none is.
"""

from __future__ import annotations

import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError, MissingExtraError
from skllm_ray.llm.tuning.job import TuningJob

_PROBE = "probe"
_READ_TRIES = 20


class TuningStore(ABC):
    """A durable place for tuning jobs. A subclass reads, lists, and creates exclusively.

    Attributes
    ----------
    url : str
        What :func:`open_store` takes.
    is_local : bool
        Whether only this machine sees it.
    """

    url: str
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

    def read(self, key: str) -> TuningJob | None:
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
                return TuningJob.from_json(self._read(path))
            except ValueError as error:
                reason = str(error)
                time.sleep(0.05)
        raise ConfigurationError(
            f"{path} in the tuning store {self.url} is damaged ({reason}).",
            "Restore it from a backup, or remove it if you know that no job was submitted.",
        )

    def write(self, job: TuningJob) -> TuningJob | None:
        """Store `job` as the version after its own; return it, or None if another writer was first."""
        job = replace(job, version=job.version + 1, nonce=uuid.uuid4().hex)
        path = f"{job.key}/{job.version:08d}.json"
        if self._create(path, job.to_json()):
            return job
        # A client that lost the server's answer may have tried again and met its own first try.
        return job if self._read(path) == job.to_json() else None

    def jobs(self) -> list[TuningJob]:
        """Return all jobs that were not forgotten, oldest first."""
        found = [job for key in self.keys() if (job := self.read(key)) is not None and job.state != "forgotten"]
        return sorted(found, key=lambda job: (job.created_at or job.posted_at or float("inf"), job.key))

    def find(self, name: str) -> TuningJob:
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
            f"No tuning job {name!r} in the store {self.url}.",
            "`skllm-ray tune list` shows what it holds; `skllm-ray tune adopt` takes in a job of the service.",
        )

    def probe(self) -> None:
        """Raise unless the second creation of the same file is refused."""
        path = f"{_PROBE}/{uuid.uuid4().hex}.json"
        if self._create(path, b"{}") and not self._create(path, b"[]"):
            return
        raise ConfigurationError(
            f"The tuning store {self.url} cannot create a file exclusively, so jobs could be paid twice.",
            "Use a local folder, gs://BUCKET/FOLDER, or a file system of fsspec with pipe_file(…, mode='create').",
        )


class FileStore(TuningStore):
    """A folder of this machine, or one that several machines mount.

    Parameters
    ----------
    folder : str
        Made if it does not exist, for this user alone.
    """

    is_local = True

    def __init__(self, folder: str) -> None:
        self._root = Path(folder).expanduser().absolute()
        self.url = str(self._root)
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"tuning_store={folder!r} cannot be used: {error.strerror}.", "Choose another with set_tuning_store(…)."
            ) from None

    def _create(self, path: str, content: bytes) -> bool:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = target.parent / f".{uuid.uuid4().hex}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, target)  # a rename that refuses to overwrite
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        for folder in (target.parent, self._root):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        return True

    def _read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def _versions(self, key: str) -> Sequence[str]:
        return sorted(file.name for file in (self._root / key).glob("[0-9]*.json"))

    def keys(self) -> list[str]:
        """Return the keys of all jobs."""
        return sorted(found.name for found in self._root.iterdir() if found.is_dir() and found.name != _PROBE)

    def probe(self) -> None:
        """Accept: a hard link is exclusive by definition."""


class FsspecStore(TuningStore):
    """A folder of any fsspec file system that creates exclusively."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise MissingExtraError(f"fsspec is needed for tuning_store={url!r}.", "pip install fsspec") from None
        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"tuning_store={url!r} cannot be opened: {error}") from None

    def _create(self, path: str, content: bytes) -> bool:
        whole = f"{self._root}/{path}"
        self._fs.makedirs(whole.rpartition("/")[0], exist_ok=True)
        try:
            self._fs.pipe_file(whole, content, mode="create")
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError):  # a file system that knows no exclusive creation
            return self._refuse_exclusive()
        return True

    def _refuse_exclusive(self) -> bool:
        raise ConfigurationError(
            f"The tuning store {self.url} cannot create a file exclusively, so jobs could be paid twice.",
            "Use a local folder or gs://BUCKET/FOLDER.",
        )

    def _read(self, path: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._root}/{path}"))

    def _versions(self, key: str) -> Sequence[str]:
        return [name for name in self._names(f"{self._root}/{key}") if name.endswith(".json")]

    def keys(self) -> list[str]:
        """Return the keys of all jobs."""
        return [name for name in self._names(self._root) if name != _PROBE]

    def _names(self, folder: str) -> list[str]:
        try:
            found = self._fs.ls(folder, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except TypeError:
            found = self._fs.ls(folder, detail=False)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)


def open_store(url: str | None = None) -> TuningStore:
    """Return the store at `url`: a local path, ``gs://BUCKET/FOLDER``, or any fsspec URL.

    Parameters
    ----------
    url : str or None, default=None
        None takes ``SKLLMConfig.get_tuning_store()``.

    Raises
    ------
    ConfigurationError
        If it cannot be opened, or does not create exclusively, which is tried out.
    """
    url = url or SKLLMConfig.get_tuning_store()
    scheme, separator, rest = url.partition("://")
    store: TuningStore
    if not separator or scheme == "file":
        store = FileStore(rest if separator else url)
    elif scheme == "gs":
        from skllm_ray.llm.vertex.tuning_store import GCSStore

        store = GCSStore(url)
    else:
        store = FsspecStore(url)
    store.probe()
    return store
