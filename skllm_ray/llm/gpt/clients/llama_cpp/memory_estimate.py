"""What a model will take, told before it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import shards
from skllm_ray.llm.gpt.clients.llama_cpp.library import (
    LONGEST_DEFAULT_CONTEXT,
    context_length,
    import_llama_cpp,
    is_embedding_model,
    load_model,
    log_lines,
    metadata,
    most_outputs,
    take_errors,
)
from skllm_ray.llm.gpt.clients.llama_cpp.sequences import N_MARKS

_STATES_MB = 256  # of all recurrent states
_STATES_SHARE = 1 / 4  # of the weights' size, which those of a larger model may take
_FEWEST_SEQUENCES = N_MARKS + 4  # the shared beginning, a row, and two of its continuations
_STATE = re.compile(r"^llama_memory_recurrent:.* size = +([\d.]+) MiB \(", re.MULTILINE)
_CACHE = re.compile(r"^(?:llama_kv_cache:|llama_dsv4.* layers =.*) size = +([\d.]+) MiB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What a model will take, told from its file's header."""

    file_mb: float
    """The file, of a split model all parts; replicas on a node share it where it is mapped."""
    kv_mb: float
    """The KV cache of one replica, in 16-bit floats."""
    n_ctx: int
    """Tokens that the KV cache holds."""
    state_mb: float = 0.0
    """The recurrent states of one replica, in 32-bit floats; 0 where no layer is recurrent."""
    n_states: int = 0
    """Sequences that have a recurrent state, whether they are used or not; the more, the more rows at once."""
    logits_mb: float = 0.0
    """The logits of one decode, twice: where they are computed, and where they are read. 0 for embedding models."""
    n_outputs: int = 0
    """Tokens of one decode that may have logits."""

    def __str__(self) -> str:
        text = f"{self.file_mb:,.0f} MB of weights, {self.kv_mb:,.1f} MB of KV cache for {self.n_ctx:,} tokens"
        if self.n_states:
            text += f", {self.state_mb:,.1f} MB of recurrent states for {self.n_states} sequences"
        if self.n_outputs:
            text += f", {self.logits_mb:,.1f} MB for the logits of {self.n_outputs} tokens"
        return text


def memory_needed(path: str, n_ctx: int | None = None) -> ModelMemory:
    """Return the memory that a model will take, without loading it.

    The KV cache holds a key and a value per token, layer and KV head. Transformers that have KV heads of different
    number take less than what is told here. Work space beyond the logits is not told: it grows with the context.

    Parameters
    ----------
    path : str
        The GGUF file.
    n_ctx : int or None, default=None
        Tokens of context; None takes what the engine takes.

    Raises
    ------
    ModelLoadError
        If the file is not a whole GGUF file, or parts of a split model are missing.
    """
    lib = import_llama_cpp()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    model = load_model(lib, path, params)
    try:
        n_vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        n_outputs, answers = most_outputs(n_vocab), not is_embedding_model(lib, model)
        context = _context(lib, model, n_ctx)
        found = None if is_recurrent(lib, model) else _memory(lib, model, path, context)
    finally:
        lib.llama_model_free(model)
    found = found or recurrent_memory(lib, path, context, n_outputs)
    return replace(found, logits_mb=2 * n_outputs * n_vocab * 4 / 1e6, n_outputs=n_outputs) if answers else found


def is_recurrent(lib: ModuleType, model: Any) -> bool:
    """Return whether some or all layers of a model are recurrent."""
    return bool(lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))


def recurrent_memory(lib: ModuleType, path: str, n_ctx: int, most_sequences: int) -> ModelMemory:
    """Return what a model with recurrent layers will take; llama.cpp is asked, without loading the weights.

    Parameters
    ----------
    lib : module
        ``llama_cpp``.
    path : str
        The GGUF file.
    n_ctx : int
        Tokens of context.
    most_sequences : int
        The most sequences that are of use.

    Raises
    ------
    ModelLoadError
        If llama.cpp cannot open a context of the model.
    """
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.no_alloc = True
    params.load_mode = lib.LLAMA_LOAD_MODE_NONE
    model = load_model(lib, path, params)
    try:
        weights_mb = lib.llama_model_size(model) / 1e6
        (state_mb, kv_mb), (_, of_two_mb) = (_sequences_mb(lib, model, path, n_ctx, n) for n in (1, 2))
    finally:
        lib.llama_model_free(model)
    each_mb = max(0.0, of_two_mb - kv_mb)  # one architecture has a cache for each sequence as well
    state_mb, kv_mb = state_mb + each_mb, kv_mb - each_mb
    affordable = int(max(_STATES_MB, _STATES_SHARE * weights_mb) // state_mb) if state_mb else most_sequences
    n_states = max(_FEWEST_SEQUENCES, min(most_sequences, affordable))
    return ModelMemory(_file_mb(path), kv_mb, n_ctx, n_states * state_mb, n_states)


def _sequences_mb(lib: ModuleType, model: Any, path: str, n_ctx: int, n_sequences: int) -> tuple[float, float]:
    """Return the MB of the recurrent states of so many sequences, and of their cache, which is not allocated here."""
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, 32, 32
    params.n_seq_max = n_sequences
    params.kv_unified = True
    take_errors()
    with log_lines() as lines:
        context = lib.llama_init_from_model(model, params)
    if not context:
        raise ModelLoadError(f"llama.cpp cannot open a context of {n_ctx} tokens for {path}: {take_errors()}")
    lib.llama_free(context)
    text = "".join(lines)
    state, cache = (sum(map(float, pattern.findall(text))) * (1 << 20) / 1e6 for pattern in (_STATE, _CACHE))
    return state, cache


def _file_mb(path: str) -> float:
    """Return the size of a model's file, or of all its parts."""
    try:
        return sum(Path(part).stat().st_size for part in shards(path)) / 1e6
    except FileNotFoundError as error:
        raise ModelLoadError(f"{error.filename} is missing: a split model needs all its parts.") from None


def _memory(lib: ModuleType, model: Any, path: str, context: int) -> ModelMemory:
    arch = metadata(lib, model, "general.architecture")

    def number(key: str, default: int = 0) -> int:
        found = metadata(lib, model, f"{arch}.{key}")
        return int(found) if found and found.isdigit() else default

    layers, heads = number("block_count"), max(1, number("attention.head_count", 1))
    kv_heads = number("attention.head_count_kv", heads)  # llama.cpp does not tell lists, one number per layer
    size = number("embedding_length") // heads
    width = number("attention.key_length", size) + number("attention.value_length", size)
    return ModelMemory(_file_mb(path), 2 * context * layers * kv_heads * width / 1e6, context)


def _context(lib: ModuleType, model: Any, n_ctx: int | None) -> int:
    found = metadata(lib, model, f"{metadata(lib, model, 'general.architecture')}.context_length")
    return context_length(int(found) if found and found.isdigit() else LONGEST_DEFAULT_CONTEXT, n_ctx)
