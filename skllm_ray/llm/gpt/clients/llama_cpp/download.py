"""From a model's name to its file on this node."""

from __future__ import annotations

import os
from pathlib import Path

from skllm_ray.errors import MissingExtraError, ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import (
    DEMO_FILE,
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
    path = _download(repo, file, Path(download_path))
    if known:
        _verify(path, known.sha256)
    check_file(path)
    return path


def _download(repo: str, file: str, folder: Path) -> Path:
    """Download by huggingface-hub, which locks, resumes, and knows tokens, mirrors and offline mode."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtraError.for_extra("huggingface-hub", "gguf") from None
    try:
        return Path(hf_hub_download(repo, file, local_dir=folder / repo))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(
            f"{repo}/{file} could not be downloaded: {type(error).__name__}: {str(error).splitlines()[0]}",
            "Check the name and the network, or download it elsewhere and pass gguf::/path/to/file.gguf.",
        ) from None


def _verify(path: Path, expected: str) -> None:
    """Check the file's hash once; a note beside it remembers that this very file was checked."""
    note = path.with_name(f"{path.name}.sha256-checked")
    mark = f"{expected} {path.stat().st_size} {path.stat().st_mtime_ns}"
    if note.is_file() and note.read_text() == mark:
        return
    found = sha256(path)
    if found != expected:
        raise ModelLoadError(
            f"{path} is damaged: its SHA-256 is {found}, not {expected}.", f"Delete it and try again: {os.fspath(path)}"
        )
    note.write_text(mark)
