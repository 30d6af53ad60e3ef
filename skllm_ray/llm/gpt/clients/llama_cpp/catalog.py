"""Which GGUF models have a name, and where a model's file is."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skllm_ray.errors import ModelLoadError, UnknownModelError
from skllm_ray.llm.gpt.clients.llama_cpp.trial import try_out


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model that can be asked for by a short name."""

    repo: str
    """The repository on the Hugging Face hub; empty for a model that ships with the package."""
    file: str
    """The file in the repository; of a split model, the first of its files."""
    sha256: str = ""
    """What the file must hash to; empty where no hash was verified: the hub's own is then checked."""
    n_ctx: int = 8192
    """Tokens of context that are opened unless the user asks for another number."""
    parameters: str = ""
    """How many parameters the model has; in brackets, how many of a mixture of experts a token uses."""
    licence: str = ""
    """The licence's name, as the authors give it."""
    size_gb: float = 0.0
    """The file's size in GB, as the hub gave it when the entry was written."""
    note: str = ""
    """What it is for, in a few words."""


DEMO_FILE: Final = Path(__file__).parent / "demo" / "demo.gguf"
RECOMMENDED: Final = "qwen3-4b"
"""The name to begin with: good labels, on a laptop too."""

supported_models: Final[dict[str, CatalogModel]] = {
    "demo": CatalogModel("", "demo.gguf", "", 1024, "2 M", "MIT", 0.0024, "for trying"),
    "gemma3-270m": CatalogModel(
        "ggml-org/gemma-3-270m-it-GGUF",
        "gemma-3-270m-it-Q8_0.gguf",
        parameters="0.27 B",
        licence="Gemma",
        size_gb=0.29,
        note="the smallest",
    ),
    "qwen3-1.7b": CatalogModel(
        "unsloth/Qwen3-1.7B-GGUF",
        "Qwen3-1.7B-Q4_K_M.gguf",
        parameters="1.7 B",
        licence="Apache 2.0",
        size_gb=1.11,
        note="can think",
    ),
    "smollm3-3b": CatalogModel(
        "ggml-org/SmolLM3-3B-GGUF",
        "SmolLM3-Q4_K_M.gguf",
        parameters="3.1 B",
        licence="Apache 2.0",
        size_gb=1.92,
        note="can think",
    ),
    "granite4.1-3b": CatalogModel(
        "ibm-granite/granite-4.1-3b-GGUF",
        "granite-4.1-3b-Q4_K_M.gguf",
        parameters="3.4 B",
        licence="Apache 2.0",
    ),
    "llama3.2-3b": CatalogModel(
        "bartowski/Llama-3.2-3B-Instruct-GGUF",
        "Llama-3.2-3B-Instruct-Q4_K_M.gguf",
        parameters="3.2 B",
        licence="Llama 3.2",
        size_gb=2.02,
    ),
    "qwen3-4b": CatalogModel(
        "unsloth/Qwen3-4B-Instruct-2507-GGUF",
        "Qwen3-4B-Instruct-2507-Q4_K_M.gguf",
        parameters="4.0 B",
        licence="Apache 2.0",
        size_gb=2.5,
        note="begin here",
    ),
    "gemma4-e4b": CatalogModel(
        "unsloth/gemma-4-E4B-it-GGUF",
        "gemma-4-E4B-it-Q4_K_M.gguf",
        parameters="4 B",
        licence="Gemma",
        size_gb=4.98,
        note="can think",
    ),
    "ministral3-8b": CatalogModel(
        "mistralai/Ministral-3-8B-Instruct-2512-GGUF",
        "Ministral-3-8B-Instruct-2512-Q4_K_M.gguf",
        parameters="8 B",
        licence="Apache 2.0",
        size_gb=5.2,
    ),
    "phi4-14b": CatalogModel(
        "bartowski/phi-4-GGUF",
        "phi-4-Q4_K_M.gguf",
        parameters="14.7 B",
        licence="MIT",
        size_gb=9.1,
    ),
    "gpt-oss-20b": CatalogModel(
        "ggml-org/gpt-oss-20b-GGUF",
        "gpt-oss-20b-mxfp4.gguf",
        parameters="21 B (3.6 B)",
        licence="Apache 2.0",
        size_gb=12.1,
        note="thinks",
    ),
    "qwen3-30b-a3b": CatalogModel(
        "unsloth/Qwen3-30B-A3B-Instruct-2507-GGUF",
        "Qwen3-30B-A3B-Instruct-2507-Q4_K_M.gguf",
        parameters="30 B (3.3 B)",
        licence="Apache 2.0",
        size_gb=18.6,
        note="the strongest",
    ),
    "embeddinggemma": CatalogModel(
        "ggml-org/embeddinggemma-300M-GGUF",
        "embeddinggemma-300M-Q8_0.gguf",
        n_ctx=2048,
        parameters="0.3 B",
        licence="Gemma",
        size_gb=0.33,
        note="vectors only",
    ),
    "gemma2-2b-q6": CatalogModel(
        "bartowski/gemma-2-2b-it-GGUF",
        "gemma-2-2b-it-Q6_K_L.gguf",
        "b2ef9f67b38c6e246e593cdb9739e34043d84549755a1057d402563a78ff2254",
        8192,
        "2.6 B",
        "Gemma",
    ),
    "gemma2-9b-q4": CatalogModel(
        "bartowski/gemma-2-9b-it-GGUF",
        "gemma-2-9b-it-Q4_K_M.gguf",
        "13b2a7b4115bbd0900162edcebe476da1ba1fc24e718e8b40d32f6e300f56dfe",
        8192,
        "9.2 B",
        "Gemma",
    ),
    "phi3-mini-q4": CatalogModel(
        "microsoft/Phi-3-mini-4k-instruct-gguf",
        "Phi-3-mini-4k-instruct-q4.gguf",
        "8a83c7fb9049a9b2e92266fa7ad04933bb53aa1e85136b7b30f1b8000ff2edef",
        4096,
        "3.8 B",
        "MIT",
    ),
    "mistral0.3-7b-q4": CatalogModel(
        "lmstudio-community/Mistral-7B-Instruct-v0.3-GGUF",
        "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf",
        "1270d22c0fbb3d092fb725d4d96c457b7b687a5f5a715abe1e818da303e562b6",
        32768,
        "7.2 B",
        "Apache 2.0",
    ),
    "llama3-8b-q4": CatalogModel(
        "QuantFactory/Meta-Llama-3-8B-Instruct-GGUF",
        "Meta-Llama-3-8B-Instruct.Q4_K_M.gguf",
        "c57380038ea85d8bec586ec2af9c91abc2f2b332d41d6cf180581d7bdffb93c1",
        8192,
        "8.0 B",
        "Llama 3",
    ),
}
"""The models that ``gguf::<name>`` knows. Licences and parameters are the authors' words; a file's header counts."""

_SHARD = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\.gguf)")


def shards(file: str) -> list[str]:
    """Return the names of all files of a model of which `file` is one: itself, unless the model is split.

    Examples
    --------
    >>> shards("a/big-00002-of-00003.gguf")
    ['a/big-00001-of-00003.gguf', 'a/big-00002-of-00003.gguf', 'a/big-00003-of-00003.gguf']
    >>> shards("small.gguf")
    ['small.gguf']
    """
    match = _SHARD.fullmatch(file)
    if match is None:
        return [file]
    before, _, of, count, after = match.groups()
    return [f"{before}{number:05d}{of}{count}{after}" for number in range(1, int(count) + 1)]


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
    """Raise ``ModelLoadError`` unless `path` is a GGUF file that can be used here.

    A file that was never used here is tried in a process of its own.
    """
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        raise ModelLoadError(
            f"The GGUF file {path} {what}.", "Check the path; on a cluster it must be the same on every node."
        )
    parts = [path.with_name(Path(part).name) for part in shards(path.name)]
    if path != parts[0]:
        raise ModelLoadError(f"{path} is a part of a split model.", f"Name its first part: {parts[0]}")
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelLoadError(
            f"{path} is the first of {len(parts)} parts, and {', '.join(missing)} is missing beside it.",
            "Download all parts into one folder; a name on the hub or in the catalogue fetches them all.",
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelLoadError(f"{path} is not a GGUF file: its first bytes are not 'GGUF'.")
    if path != DEMO_FILE:
        try_out(parts)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
