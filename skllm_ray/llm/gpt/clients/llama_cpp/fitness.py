"""Which files are no models that can be used here, and why: whatever llama.cpp would abort at, or answer wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.library import metadata

RANK = 4  # llama.cpp's LLAMA_POOLING_TYPE_RANK

_KINDS: dict[str, tuple[str, str]] = {
    "adapter": (
        "is a LoRA adapter: it changes a model, and is none itself.",
        "Merge it into its base model (llama.cpp has llama-export-lora for it), and name the merged file.",
    ),
    "mmproj": (
        "is a projector (mmproj), which lets a language model see images or hear sound, and answers nothing itself.",
        "Name the language model's own file, which is kept beside it.",
    ),
    "imatrix": (
        "is an importance matrix, which helps to quantise a model, and is none itself.",
        "Name the model's own file, which is kept beside it.",
    ),
    "controlvector": (
        "is a control vector: it changes a model, and is none itself.",
        "Name the model's own file.",
    ),
}
_ZEROS = {
    "context_length": "the length of its context",
    "embedding_length": "the width of its layers",
    "block_count": "the number of its layers",
    "attention.head_count": "the number of its attention heads",
    "n_vocab": "the size of its vocabulary",
}
_ANOTHER = "Take another conversion of the model: llama.cpp would divide by it, or abort."


def facts_of(lib: ModuleType, model: Any) -> dict[str, Any]:
    """Return what llama.cpp says of a model, or of its vocabulary, that it has loaded."""
    pooling = metadata(lib, model, f"{metadata(lib, model, 'general.architecture')}.pooling_type")
    return {
        "n_vocab": int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))),
        "has_encoder": bool(lib.llama_model_has_encoder(model)),
        "is_diffusion": bool(lib.llama_model_is_diffusion(model)),
        "pooling_type": int(pooling) if pooling and pooling.isdigit() else None,
    }


def refusal(path: str, facts: Mapping[str, Any]) -> ModelLoadError | None:
    """Return why a file cannot be used; None where nothing speaks against it.

    Parameters
    ----------
    path : str
        The file.
    facts : mapping
        What its header, or llama.cpp, says of it; what is unknown is left out, or None.
    """
    found = _refusal(facts)
    return None if found is None else ModelLoadError(f"{path} {found[0]}", found[1])


def _refusal(facts: Mapping[str, Any]) -> tuple[str, str] | None:
    kind = {"clip": "mmproj", "controlvector": "controlvector"}.get(str(facts.get("general.architecture")))
    kind = kind or ("adapter" if facts.get("adapter.type") else str(facts.get("general.type")))
    if kind in _KINDS:
        return _KINDS[kind]
    zero = next((name for name in _ZEROS if facts.get(name) == 0), None)
    if zero is not None:
        return f"says in its header that {_ZEROS[zero]} is 0.", _ANOTHER
    if facts.get("n_tensors") == 0 and not facts.get("split.count"):
        return "holds a vocabulary and no weights.", "Name the model's own file."
    if facts.get("pooling_type") == RANK:
        return (
            "is a reranker: it says how well two texts fit together, and neither answers prompts nor makes vectors.",
            "Take an instruction-tuned model for prompts, or an embedding model for vectors.",
        )
    if facts.get("is_diffusion"):
        return (
            "is a diffusion model: it writes all words of an answer at once, so that labels cannot be scored one token "
            "after the other.",
            "Take an autoregressive model of this size; most instruction-tuned models are.",
        )
    if facts.get("has_encoder"):
        return (
            "has an encoder for the text, as T5 does, which this library does not run.",
            "Take a decoder-only model for prompts (most are), or an embedding model such as BGE for vectors.",
        )
    return None
