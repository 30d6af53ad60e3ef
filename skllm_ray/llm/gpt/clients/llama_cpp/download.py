"""From a model's name to its file on this node."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import MissingExtraError, ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import (
    DEMO_FILE,
    check_file,
    check_name,
    hub_file,
    is_path,
    sha256,
    shards,
    supported_models,
)


def local_file(name: str, download_path: str, copy: Copy | None = None) -> Path:
    """Return the file of the model `name`, bringing it into `download_path` if it is not there yet.

    Parameters
    ----------
    name : str
        A catalogue name, a path, or ``owner/repo/file.gguf``.
    download_path : str
        The folder for what is downloaded.
    copy : callable or None, default=None
        Brings a file from another node. It gets the file's name within `download_path` and where to write it, and
        returns the file's SHA-256, or None where no node has it: then it is downloaded from the hub.

    Raises
    ------
    ModelLoadError
        If the file is missing or damaged, or cannot be downloaded.
    """
    check_name(name)
    if name == "demo":
        check_file(DEMO_FILE)
        return DEMO_FILE
    if is_path(name):
        return Path(name).expanduser().resolve()
    repo, files, sha256_known = _source(name)
    folder = Path(download_path) / repo
    first = folder / files[0]
    if _are_ready(folder, files, sha256_known):  # these very files: the hub need not be asked
        return first
    with _alone(folder, files[0]):
        for file in files:
            if _is_ready(folder / file, sha256_known):
                continue
            if copy is not None and _is_copied(copy, Path(download_path), f"{repo}/{file}", sha256_known):
                continue
            path = _download(repo, file, Path(download_path))
            _begun(path).unlink(missing_ok=True)
            expected = sha256_known or _hub_hash(path, folder, file)
            if expected:
                _verify(path, expected)
        check_file(first)
        return first


Copy = Callable[[str, Path], str | None]


def _is_copied(copy: Copy, folder: Path, name: str, known: str) -> bool:
    """Return whether a file came from another node, whole."""
    path = folder / name
    part = _begun(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    found = copy(name, part)
    if found is None or _is_ready(path, known):  # where nodes share a file system, it is here by now
        return found is not None
    if sha256(part) != (known or found):
        part.unlink()
        return False
    part.replace(path)
    _note(path).write_text(f"{known or found} {_mark(path)}")
    return True


def _begun(path: Path) -> Path:
    """Return where a copy from another node stands until it is whole."""
    return path.with_name(f"{path.name}.copied")


def here(name: str, download_path: str) -> tuple[int, str] | None:
    """Return the size and the SHA-256 of a file within `download_path`; None where it is not here, whole and checked.

    Parameters
    ----------
    name : str
        The file's name within `download_path`, with its repository.
    download_path : str
        The folder for what is downloaded.
    """
    path = Path(download_path) / name
    checked = _checked(path)
    return (path.stat().st_size, checked) if checked else None


def file_if_here(name: str, download_path: str) -> Path | None:
    """Return the file of the model `name` if all its parts are on this machine; nothing is downloaded."""
    if name == "demo" or is_path(name):
        return local_file(name, download_path)
    repo, files, sha256_known = _source(name)
    folder = Path(download_path) / repo
    return folder / files[0] if _are_ready(folder, files, sha256_known) else None


def _source(name: str) -> tuple[str, list[str], str]:
    """Return the repository, the files and, where it is pinned, the hash of a model on the hub."""
    known = supported_models.get(name)
    repo, file = (known.repo, known.file) if known else hub_file(name) or ("", "")
    return repo, shards(file), known.sha256 if known else ""


def _are_ready(folder: Path, files: Sequence[str], expected: str) -> bool:
    return all(_is_ready(folder / file, expected) for file in files)


def _is_ready(path: Path, expected: str) -> bool:
    checked = _checked(path)
    return bool(checked) and expected in {"", checked}


@contextmanager
def _alone(folder: Path, file: str) -> Iterator[None]:
    """Keep the node's other processes out: huggingface-hub's own lock lets one that waited download again."""
    try:
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
    except ImportError:
        raise MissingExtraError.for_extra("huggingface-hub", "gguf") from None
    lock = folder / ".cache" / "skllm-ray" / f"{file}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelLoadError(
            f"{folder} cannot be written: {type(error).__name__}.",
            "Set another folder with SKLLMConfig.set_gguf_download_path.",
        ) from None
    with WeakFileLock(lock):
        yield


@dataclass(slots=True)
class Transfer:
    """A download under way in this process."""

    file: str
    done: int = 0
    """Bytes that are here."""
    total: int = 0
    """Bytes in the file; 0 while unknown."""


_under_way: list[Transfer] = []


def current_transfer() -> Transfer | None:
    """Return the download that this process is at, the latest of several; None if it is at none."""
    return next(reversed(_under_way), None)


def _download(repo: str, file: str, folder: Path) -> Path:
    """Download by huggingface-hub, which locks, resumes, and knows tokens, mirrors and offline mode."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
        from tqdm.auto import tqdm
    except ImportError:
        raise MissingExtraError.for_extra("huggingface-hub", "gguf") from None

    class Watched(tqdm):  # type: ignore[misc]
        """The hub's progress bar; also tells others how far it is."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": False, **({} if _shown() else {"file": _Nowhere()})})
            transfer.done, transfer.total = int(self.n), int(self.total or 0)

        def update(self, n: float | None = 1) -> Any:
            transfer.done += int(n or 0)
            return super().update(n)

    transfer = Transfer(f"{repo}/{file}")
    _under_way.append(transfer)
    try:
        return Path(hf_hub_download(repo, file, local_dir=folder / repo, tqdm_class=Watched))
    except (HfHubHTTPError, EntryNotFoundError, OSError, ValueError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            there = ", ".join(_listed(repo)) or "none were listed"
            raise ModelLoadError(f"{repo} on the hub has no file {file}.", f"Its GGUF files: {there}.") from None
        raise ModelLoadError(
            f"{repo}/{file} could not be downloaded: {type(error).__name__}: {_first_line(error)}",
            "Check the name, the network, and HF_TOKEN for a private or gated model; or download it elsewhere and pass "
            "gguf::/path/to/file.gguf.",
        ) from None
    finally:
        _under_way[:] = [one for one in _under_way if one is not transfer]


def _listed(repo: str) -> list[str]:
    """Return the GGUF files of a repository, the first of a split one alone; empty where the hub does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        files = HfApi().list_repo_files(repo)
    except (HfHubHTTPError, OSError, ValueError):
        return []
    return sorted({shards(file)[0] for file in files if file.endswith(".gguf")})


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def _shown() -> bool:
    """Return whether a bar may be drawn here: not in a model actor, whose driver draws it."""
    return SKLLMConfig.get_show_progress() and sys.stderr.isatty()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


def _hub_hash(path: Path, folder: Path, file: str) -> str:
    """Return the SHA-256 that the hub gave for a downloaded file, or an empty string where it gave none."""
    note = folder / ".cache" / "huggingface" / "download" / f"{file}.metadata"
    if not path.is_file() or not note.is_file():
        return ""
    lines = note.read_text().splitlines()  # commit, ETag, time: huggingface-hub's own note
    tag = lines[1].strip() if len(lines) > 1 else ""
    return tag if re.fullmatch(r"[0-9a-f]{64}", tag) else ""


def _checked(path: Path) -> str:
    """Return the hash that this very file was once found to have, or an empty string."""
    note = _note(path)
    if not path.is_file() or not note.is_file():
        return ""
    expected, _, mark = note.read_text().partition(" ")
    return expected if mark == _mark(path) else ""


def _verify(path: Path, expected: str) -> None:
    """Check the file's hash; a note beside it remembers that this very file was checked."""
    if _checked(path) == expected:
        return
    found = sha256(path)
    if found != expected:
        raise ModelLoadError(
            f"{path} is damaged: its SHA-256 is {found}, not {expected}.", f"Delete it and try again: {os.fspath(path)}"
        )
    _note(path).write_text(f"{expected} {_mark(path)}")


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256-checked")


def _mark(path: Path) -> str:
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}"
