"""Folders and files on any filesystem: local paths, and what pyarrow or fsspec can open (S3, GCS, Azure, …)."""

from __future__ import annotations

import json
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from skllm_ray.batch.filesystems import open_remote
from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.plain_text import printable, without_passwords

T = TypeVar("T")
_SCHEME: Final = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_WILD: Final = re.compile(r"[*?\[]")
_PACKED: Final = re.compile(r"(\.(csv|jsonl|ndjson|parquet|pq))\.(gz|gzip|zst|zstd|bz2|xz|lz4|zip)$", re.IGNORECASE)
_PAUSES_S: Final = (0.2, 1.0, 3.0)
_FOR_GOOD: Final = re.compile(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|NO_SUCH_BUCKET|HTTP status 40[134]")
_REASON: Final = 300  # characters


@dataclass(frozen=True)
class StorageOptions:
    """What opens a filesystem, such as an endpoint and a key. It travels as a fingerprint, never as its text."""

    text: Secret | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> StorageOptions:
        """Return the options in a mapping."""
        return cls(Secret(json.dumps(dict(options), sort_keys=True)) if options else None)

    def secrets(self) -> dict[str, Secret]:
        """Return the credentials that workers need as well, by fingerprint."""
        return {} if self.text is None else {self.text.fingerprint: self.text}

    def found(self, secrets: Mapping[str, Secret]) -> Secret | None:
        """Return the options, still hidden; they are in `secrets` where this object came from another process."""
        return self.text or (None if self.text is None else secrets.get(self.text.fingerprint))


@dataclass(frozen=True)
class FileInfo:
    """A file of the input, and what tells whether it has changed."""

    path: str
    size: int
    mtime_ns: int


@contextmanager
def first_look(at: str) -> Iterator[None]:
    """Let a place that fails when it is used first end the job with an error that names it, such as ``output='…'``.

    Raises
    ------
    InputError
        If the place fails.
    """
    try:
        yield
    except OSError as error:
        told = printable(without_passwords(str(error)))
        raise InputError(
            f"{printable(without_passwords(at))} cannot be used: {told}",
            "Look at the address, at what you may do there, and at storage_options. Nothing was asked.",
        ) from None


class Folder:
    """A folder of an open filesystem.

    Parameters
    ----------
    filesystem : pyarrow.fs.FileSystem
        Where it is.
    path : str
        Its path there.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self.filesystem = filesystem
        self.path = path.rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether it is on a filesystem of this machine, which has exclusive creation and atomic renaming."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def at(self, name: str) -> str:
        """Return the path of a file in it."""
        return f"{self.path}/{name}"

    def below(self, name: str) -> Folder:
        """Return a folder in it."""
        return Folder(self.filesystem, self.at(name))

    def names(self, *, recursive: bool = False) -> dict[str, int]:
        """Return the files in it, with their sizes in bytes; empty where it does not exist."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        start = len(self.path) + 1
        found = self.persist(lambda: self.filesystem.get_file_info(selector))
        return {info.path[start:]: info.size for info in found if info.type == pafs.FileType.File}

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises
        ------
        FileNotFoundError
            If there is none of this name.
        """

        def read() -> bytes:
            with self.filesystem.open_input_stream(self.at(name), compression=None) as stream:
                return bytes(stream.read())

        return self.persist(read)

    def read_if_there(self, name: str) -> bytes:
        """Return a file's bytes; none where it was deleted in the meantime."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return b""

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a whole file: others see all of it or nothing, and a node that loses its power keeps it."""
        path = self.at(name)
        if not self.is_local:
            self.persist(lambda: self._put(path, content))
            return
        target = Path(path)
        part = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            _sync(target.parent)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that must not exist yet; return whether this caller made it.

        Atomic on local filesystems. Elsewhere the file is read back after it was written, which shows all but two
        callers of the very same moment.
        """
        if self.is_local:
            self.make()
            try:
                with Path(self.at(name)).open("xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
            return True
        if name in self.names():
            return False
        self.write(name, content)
        return self.read(name) == content

    def make(self) -> None:
        """Make the folder, where its filesystem has folders."""
        if self.is_local:
            Path(self.path).mkdir(parents=True, exist_ok=True)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing happens where there is none."""
        self.persist(lambda: self._delete(name))

    def persist(self, do: Callable[[], T]) -> T:
        """Call `do`, again where a store fails for a moment: not all clients repeat requests themselves."""
        for pause_s in () if self.is_local else _PAUSES_S:
            try:
                return do()
            except OSError as error:
                if isinstance(error, (FileNotFoundError, PermissionError)) or _FOR_GOOD.search(str(error)):
                    raise
            time.sleep(random.uniform(0.5, 1.0) * pause_s)
        return do()

    def _put(self, path: str, content: bytes | pa.Buffer) -> None:
        """Write an object; a store shows it when it is complete."""
        with self.filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(content)

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            info = self.filesystem.get_file_info(self.at(name))
            if info.type == pafs.FileType.Directory:
                self.filesystem.delete_dir(info.path)
            elif info.type == pafs.FileType.File:
                self.filesystem.delete_file(info.path)


def open_folder(uri: str, options: StorageOptions, secrets: Mapping[str, Secret]) -> Folder:
    """Return the folder at `uri`, which need not exist.

    Raises
    ------
    ConfigurationError
        If nothing can open such an address, or the options are not its filesystem's.
    """
    filesystem, path = _open(absolute(uri), options.found(secrets), os.getpid())
    return Folder(filesystem, path)


def absolute(uri: str) -> str:
    """Return what `uri` means from any working directory: workers have their own.

    Examples
    --------
    >>> absolute("s3://bucket/in/*.parquet"), absolute("file:///in/a.csv")
    ('s3://bucket/in/*.parquet', '/in/a.csv')
    """
    path = uri.removeprefix("file://")
    return uri if _SCHEME.match(path) else str(Path(path).expanduser().absolute())


def base_of(uri: str) -> str:
    """Return the folder or file that `uri` names before any wildcard."""
    return _split(uri)[0]


def list_inputs(uri: str, options: StorageOptions, secrets: Mapping[str, Secret]) -> list[FileInfo]:
    """Return the files that `uri` means: a file, a folder with all below it, or a pattern such as ``s3://b/x/*.parquet``.

    Raises
    ------
    InputError
        If there are none.
    """
    base, pattern = _split(uri)
    folder = open_folder(base, options, secrets)
    info = _info(folder, uri)
    if pattern and _SCHEME.match(uri):  # a key may hold what is a wildcard elsewhere
        named = _info(open_folder(uri, options, secrets), uri)
        info, pattern = (named, "") if named.type == pafs.FileType.File else (info, pattern)
    if info.type == pafs.FileType.File:
        _refuse_packed([info.path], uri)
        return [_file(info)]
    if info.type == pafs.FileType.NotFound and not pattern:
        raise InputError(
            f"input={uri!r} does not exist.", "Give a file, a folder, or a pattern such as 'in/*.parquet'."
        )
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    try:
        every = folder.persist(lambda: folder.filesystem.get_file_info(selector))
        found = [_file(one) for one in every if one.type == pafs.FileType.File]
    except UnicodeDecodeError:
        raise InputError(f"input={uri!r} holds a file whose name is no UTF-8.", "Rename it.") from None
    wanted = _matcher(folder.path, pattern)
    _refuse_packed([one.path for one in found if wanted(_PACKED.sub(r"\1", one.path))], uri)
    files = [one for one in found if wanted(one.path)]
    if not files:
        raise InputError(
            f"input={uri!r} holds no file of a known kind.",
            f"Known: {', '.join(sorted(FORMATS))}. Names that begin with '.' or '_' are passed over.",
        )
    return sorted(files, key=lambda file: file.path)


def _info(folder: Folder, uri: str) -> pafs.FileInfo:
    try:
        return folder.persist(lambda: folder.filesystem.get_file_info(folder.path))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"input={uri!r} cannot be looked up: {str(error)[:_REASON]}.",
            "Check the address, the endpoint and the credentials (storage_options).",
        ) from None


def _refuse_packed(paths: Iterable[str], uri: str) -> None:
    """Refuse compressed files rather than pass them over: their rows cannot be reached from any place but the first."""
    packed = sorted(path for path in paths if _PACKED.search(path))
    if packed:
        others = f" and {len(packed) - 1:,} more" if len(packed) > 1 else ""
        raise InputError(
            f"input={uri!r} holds {packed[0]}{others}, which is compressed.",
            "Unpack it first, or name the other files alone, such as by a pattern that ends in '*.csv'.",
        )


def distinct(files: Iterable[FileInfo], folder: Folder) -> list[FileInfo]:
    """Return each file once, by path: else links would make its rows be asked, and paid for, again."""
    found: dict[str, FileInfo] = {}
    for file in sorted(files, key=lambda file: file.path):
        real = os.path.realpath(file.path) if folder.is_local else file.path
        if real not in found or file.path == real:
            found[real] = file
    return sorted(found.values(), key=lambda file: file.path)


def is_in_input(output: Folder, uri: str, options: StorageOptions, secrets: Mapping[str, Secret]) -> bool:
    """Return whether parts in `output` would be among the files that `uri` means."""
    base, pattern = _split(uri)
    folder, part = open_folder(base, options, secrets), output.at("part.parquet")
    here = folder.filesystem == output.filesystem and part.startswith(f"{folder.path}/")
    return here and bool(_matcher(folder.path, pattern)(part))


FORMATS: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
"""Endings of the files that can be read, and what they mean."""


def format_of(path: str) -> str | None:
    """Return the format of a file by its name; None where it is not known.

    Examples
    --------
    >>> format_of("s3/reviews.PARQUET")
    'parquet'
    """
    return FORMATS.get(os.path.splitext(path)[1].lower())  # noqa: PTH122  it may be the path of an object


def _file(info: pafs.FileInfo) -> FileInfo:
    return FileInfo(info.path, info.size, info.mtime_ns or 0)


def _split(uri: str) -> tuple[str, str]:
    """Return the part of `uri` before the first wildcard's segment, and the whole as a pattern if it has one."""
    found = _WILD.search(uri)
    if found is None or (_SCHEME.match(uri) is None and Path(uri).exists()):
        return uri, ""
    head = uri[: found.start()]
    return (head.rpartition("/")[0] or ("/" if head.startswith("/") else ".")), uri


def _matcher(base: str, pattern: str) -> Callable[[str], bool]:
    """Return whether a path below `base` is meant: of a known format, not hidden, and matching the pattern, if any."""
    from fsspec.utils import glob_translate

    tail = pattern[len(_split(pattern)[0]) :].lstrip("/") or "**"
    expression, named = re.compile(glob_translate(tail)), _hidden(tail)

    def wanted(path: str) -> bool:
        name = path[len(base) :].lstrip("/")
        return bool(format_of(name) and (named or not _hidden(name)) and expression.match(name))

    return wanted


def _sync(folder: Path) -> None:
    """Have the names in a folder written to the disk, where the filesystem can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _hidden(path: str) -> bool:
    return any(part[0] == "." or (part[0] == "_" and "=" not in part) for part in path.split("/") if part)


@lru_cache(maxsize=16)
def _open(uri: str, hidden: Secret | None, pid: int) -> tuple[pafs.FileSystem, str]:
    del pid  # a connection does not survive a fork
    found = _SCHEME.match(uri)
    if found is None:
        return pafs.LocalFileSystem(), uri
    scheme = found.group(1).lower()
    try:
        return open_remote(uri, scheme, json.loads(hidden.reveal()) if hidden else {})
    except (pa.ArrowException, ImportError, TypeError, ValueError, OSError) as error:
        if isinstance(error, ConfigurationError):
            raise
        names = ", ".join(sorted(json.loads(hidden.reveal()))) if hidden else "none"
        raise ConfigurationError(
            f"{scheme}:// cannot be opened ({type(error).__name__}); storage_options given: {names}.",
            "Options are those of pyarrow.fs.S3FileSystem and GcsFileSystem for s3:// and gs://, and of fsspec's "
            "filesystem otherwise, whose package must be installed.",
        ) from None
