"""The stores, and how one is opened: a folder, Google Cloud Storage, or any fsspec file system."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from skllm_ray.errors import ConfigurationError, MissingExtraError
from skllm_ray.llm.submissions.store import PROBE, R, SubmissionStore


class FileStore(SubmissionStore[R]):
    """A folder of this machine, or one that several machines mount.

    Parameters
    ----------
    folder : str
        Made if it does not exist, for this user alone.
    record : type
        The kind of record.
    """

    is_local = True

    def __init__(self, folder: str, record: type[R]) -> None:
        self.record = record
        self._root = Path(folder).expanduser().absolute()
        self.url = str(self._root)
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"{record.kind}_store={folder!r} cannot be used: {error.strerror}.",
                f"Choose another with set_{record.kind}_store(…).",
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
        return sorted(found.name for found in self._root.iterdir() if found.is_dir() and found.name != PROBE)

    def probe(self) -> None:
        """Accept: a hard link is exclusive by definition."""


class FsspecStore(SubmissionStore[R]):
    """A folder of any fsspec file system that creates exclusively."""

    def __init__(self, url: str, record: type[R]) -> None:
        self.record, setting = record, f"{record.kind}_store={url!r}"
        try:
            import fsspec
        except ImportError:
            raise MissingExtraError(f"fsspec is needed for {setting}.", "pip install fsspec") from None
        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"{setting} cannot be opened: {error}") from None

    def _create(self, path: str, content: bytes) -> bool:
        whole = f"{self._root}/{path}"
        self._fs.makedirs(whole.rpartition("/")[0], exist_ok=True)
        try:
            self._fs.pipe_file(whole, content, mode="create")
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError):  # a file system that knows no exclusive creation
            raise self._not_exclusive() from None
        return True

    def _read(self, path: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._root}/{path}"))

    def _versions(self, key: str) -> Sequence[str]:
        return [name for name in self._names(f"{self._root}/{key}") if name.endswith(".json")]

    def keys(self) -> list[str]:
        """Return the keys of all jobs."""
        return [name for name in self._names(self._root) if name != PROBE]

    def _names(self, folder: str) -> list[str]:
        try:
            found = self._fs.ls(folder, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except TypeError:
            found = self._fs.ls(folder, detail=False)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)


def open_store(url: str, record: type[R]) -> SubmissionStore[R]:
    """Return the store at `url`: a local path, ``gs://BUCKET/FOLDER``, or any fsspec URL.

    Parameters
    ----------
    url : str
        Where it is.
    record : type
        The kind of record that it keeps.

    Raises
    ------
    ConfigurationError
        If it cannot be opened, or does not create exclusively, which is tried out.
    """
    scheme, separator, rest = url.partition("://")
    store: SubmissionStore[R]
    if not separator or scheme == "file":
        store = FileStore(rest if separator else url, record)
    elif scheme == "gs":
        from skllm_ray.llm.vertex.gcs_store import GCSStore

        store = GCSStore(url, record)
    else:
        store = FsspecStore(url, record)
    store.probe()
    return store
