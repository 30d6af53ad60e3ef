"""From a model's name to its file on this node."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import MissingExtraError, ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import (
    DEMO_FILE,
    CatalogModel,
    check_file,
    check_name,
    hub_file,
    is_path,
    sha256,
    supported_models,
)


def local_file(name: str, download_path: str) -> Path:
    """Return the file of the model `name`, downloading it into `download_path` if it is not there yet.

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
    known = supported_models.get(name)
    repo, file = (known.repo, known.file) if known else hub_file(name) or ("", "")
    folder = Path(download_path) / repo
    if _is_ready(folder / file, known):  # this very file: the hub need not be asked
        return folder / file
    with _alone(folder, file):
        if _is_ready(folder / file, known):
            return folder / file
        path = _download(repo, file, Path(download_path))
        expected = known.sha256 if known else _hub_hash(path, folder, file)
        if expected:
            _verify(path, expected)
        check_file(path)
        return path


def file_if_here(name: str, download_path: str) -> Path | None:
    """Return the file of the model `name` if it is on this machine; nothing is downloaded."""
    if name == "demo" or is_path(name):
        return local_file(name, download_path)
    known = supported_models.get(name)
    repo, file = (known.repo, known.file) if known else hub_file(name) or ("", "")
    path = Path(download_path) / repo / file
    return path if _is_ready(path, known) else None


def _is_ready(path: Path, known: CatalogModel | None) -> bool:
    checked = _checked(path)
    return bool(checked) and (known is None or checked == known.sha256)


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


_current: Transfer | None = None


def current_transfer() -> Transfer | None:
    """Return the download that this process is at, if it is at one."""
    return _current


def _download(repo: str, file: str, folder: Path) -> Path:
    """Download by huggingface-hub, which locks, resumes, and knows tokens, mirrors and offline mode."""
    global _current
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
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

    transfer = _current = Transfer(f"{repo}/{file}")
    try:
        return Path(hf_hub_download(repo, file, local_dir=folder / repo, tqdm_class=Watched))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelLoadError(
            f"{repo}/{file} could not be downloaded: {type(error).__name__}: {_first_line(error)}",
            "Check the name, the network, and HF_TOKEN for a private or gated model; or download it elsewhere and pass "
            "gguf::/path/to/file.gguf.",
        ) from None
    finally:
        _current = None


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
