"""Which GGUF models have a name, and where a model's file is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skllm_ray.errors import ModelLoadError, UnknownModelError
from skllm_ray.llm.gpt.clients.llama_cpp.library import check_header


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model that can be asked for by a short name."""

    repo: str
    """The repository on the Hugging Face hub; empty for a model that ships with the package."""
    file: str
    sha256: str
    n_ctx: int


DEMO_FILE: Final = Path(__file__).parent / "demo" / "demo.gguf"

supported_models: Final[dict[str, CatalogModel]] = {
    "demo": CatalogModel("", "demo.gguf", "", 1024),
    "gemma2-2b-q6": CatalogModel(
        "bartowski/gemma-2-2b-it-GGUF",
        "gemma-2-2b-it-Q6_K_L.gguf",
        "b2ef9f67b38c6e246e593cdb9739e34043d84549755a1057d402563a78ff2254",
        8192,
    ),
    "gemma2-9b-q4": CatalogModel(
        "bartowski/gemma-2-9b-it-GGUF",
        "gemma-2-9b-it-Q4_K_M.gguf",
        "13b2a7b4115bbd0900162edcebe476da1ba1fc24e718e8b40d32f6e300f56dfe",
        8192,
    ),
    "phi3-mini-q4": CatalogModel(
        "microsoft/Phi-3-mini-4k-instruct-gguf",
        "Phi-3-mini-4k-instruct-q4.gguf",
        "8a83c7fb9049a9b2e92266fa7ad04933bb53aa1e85136b7b30f1b8000ff2edef",
        4096,
    ),
    "mistral0.3-7b-q4": CatalogModel(
        "lmstudio-community/Mistral-7B-Instruct-v0.3-GGUF",
        "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf",
        "1270d22c0fbb3d092fb725d4d96c457b7b687a5f5a715abe1e818da303e562b6",
        32768,
    ),
    "llama3-8b-q4": CatalogModel(
        "QuantFactory/Meta-Llama-3-8B-Instruct-GGUF",
        "Meta-Llama-3-8B-Instruct.Q4_K_M.gguf",
        "c57380038ea85d8bec586ec2af9c91abc2f2b332d41d6cf180581d7bdffb93c1",
        8192,
    ),
}
"""The models that ``gguf::<name>`` knows, with what each file must hash to. Names' suffixes are the precision."""


def is_path(name: str) -> bool:
    """Return whether `name` is a file's path rather than a catalogue name or a file on the hub."""
    return name.startswith(("/", "./", "../", "~")) or Path(name).is_file()


def hub_file(name: str) -> tuple[str, str] | None:
    """Return (repository, file) for a name like ``owner/repo/file.gguf``, else None."""
    parts = name.split("/", 2)
    if len(parts) == 3 and all(parts) and name.endswith(".gguf") and not is_path(name):
        return f"{parts[0]}/{parts[1]}", parts[2]
    return None


def check_name(name: str) -> None:
    """Raise what can be known of a model's name, and of its file if it is on this machine, without loading it.

    Raises
    ------
    UnknownModelError
        If the name is neither in the catalogue, nor a path, nor a file on the hub.
    ModelLoadError
        If the file is missing, is not GGUF, or is shorter than its own header says.
    """
    if name in supported_models:
        return
    if is_path(name):
        check_file(Path(name).expanduser())
    elif hub_file(name) is None:
        raise UnknownModelError(
            f"Unknown GGUF model {name!r}. Known: {', '.join(supported_models)}.",
            "A file is written gguf::/path/to/model.gguf, one on the hub gguf::owner/repo/file.gguf.",
        )


def check_file(path: Path) -> None:
    """Raise ``ModelLoadError`` unless `path` is a whole GGUF file.

    llama.cpp itself reads the header and compares the tensors' places with the file's length, without reading them.
    """
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        raise ModelLoadError(
            f"The GGUF file {path} {what}.", "Check the path; on a cluster it must be the same on every node."
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelLoadError(f"{path} is not a GGUF file: its first bytes are not 'GGUF'.")
    check_header(str(path))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
