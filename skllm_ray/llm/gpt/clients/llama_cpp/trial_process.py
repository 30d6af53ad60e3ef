"""Tries one GGUF file in a process of its own, which may die: ``python -P trial_process.py FILE [LAID_OUT]``.

It writes what the file is to standard output, in lines of JSON, and at last what is wrong with it. llama.cpp's errors,
and its last words if it aborts, go to standard error. Nothing of this package is imported, so that it starts
fast. With a second argument, weights are laid out anew for this processor, which takes memory twice.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

_READERS = {4: ("u32", ctypes.c_uint32), 5: ("i32", ctypes.c_int32), 7: ("bool", ctypes.c_bool)}
_READERS |= {8: ("str", ctypes.c_char_p), 10: ("u64", ctypes.c_uint64)}
"""By gguf_type: how a value is read."""
_KEYS = ("general.architecture", "general.type", "general.name", "adapter.type", "split.count", "tokenizer.ggml.model")
_NUMBERS = ("pooling_type", "context_length", "embedding_length", "block_count", "attention.head_count", "vocab_size")
_TOKENS = 8
_MOST_OF_MEMORY = 0.6
_ERROR = 4  # ggml_log_level
_UNLOADABLE = "cannot be loaded"


class _Params(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def header(path: str) -> dict[str, Any] | None:
    """Return what the file's header says of itself; None if it cannot be read."""
    gguf: Any = lib._lib
    if not hasattr(gguf, "gguf_init_from_file"):
        return None
    gguf.gguf_init_from_file.restype = ctypes.c_void_p
    gguf.gguf_init_from_file.argtypes = (ctypes.c_char_p, _Params)
    context = gguf.gguf_init_from_file(path.encode(), _Params(True, None))
    if not context:
        return None

    def value(key: str) -> Any:
        gguf.gguf_find_key.restype = ctypes.c_int64
        found = gguf.gguf_find_key(ctypes.c_void_p(context), key.encode())
        if found < 0:
            return None
        place = ctypes.c_void_p(context), ctypes.c_int64(found)
        reader = _READERS.get(gguf.gguf_get_kv_type(*place))
        if reader is None:
            return None
        read = getattr(gguf, f"gguf_get_val_{reader[0]}")
        read.restype = reader[1]
        found_value = read(*place)
        return found_value.decode("utf-8", "replace") if isinstance(found_value, bytes) else found_value

    facts = {key: value(key) for key in _KEYS}
    facts |= {key: value(f"{facts['general.architecture']}.{key}") for key in _NUMBERS}
    gguf.gguf_get_n_tensors.restype = ctypes.c_int64
    facts["n_tensors"] = gguf.gguf_get_n_tensors(ctypes.c_void_p(context))
    return facts


def kind(model: Any) -> dict[str, Any]:
    """Return what llama.cpp says of a model of which only the vocabulary was loaded."""
    return {
        "n_vocab": lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)),
        "has_encoder": bool(lib.llama_model_has_encoder(model)),
        "is_diffusion": bool(lib.llama_model_is_diffusion(model)),
    }


def load(path: str, *, vocab_only: bool, weights: bool = True) -> Any:
    """Load a model without a copy of its weights."""
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.vocab_only = vocab_only
    params.use_extra_bufts = len(sys.argv) > 2
    if not weights:
        params.no_alloc = True
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE
    return lib.llama_model_load_from_file(path.encode(), params)


def decode(path: str, trained: int, n_vocab: int, *, weights: bool) -> str:
    """Decode a few tokens; return what is wrong, or an empty string."""
    model = load(path, vocab_only=False, weights=weights)
    if not model:
        return _UNLOADABLE
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = min(64, trained)
    params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = max(1, min(8, os.cpu_count() or 1))
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    if not context:
        return "has no context that llama.cpp can open"
    if not weights or lib.llama_get_memory(context) is None:  # no memory: a model for embeddings
        return ""
    n_tokens = min(_TOKENS, n_vocab, trained)
    tokens = (ctypes.c_int32 * n_tokens)(*range(n_tokens))
    code = lib.llama_decode(context, lib.llama_batch_get_one(tokens, n_tokens))
    if code != 0:
        return f"cannot be decoded with: llama_decode gives {code}"
    logits = lib.llama_get_logits_ith(context, -1)
    finite = all(abs(logits[i]) < float("inf") for i in range(0, n_vocab, max(1, n_vocab // 1000)))
    return "" if finite else "gives logits that are no numbers: its weights are damaged"


def main(path: str) -> None:
    """Say what the file is, then try it. Whoever reads that the file is of no use ends this process."""
    log = lib.llama_log_callback(_log)
    lib.llama_log_set(log, ctypes.c_void_p(0))
    lib.llama_backend_init()
    facts = header(path) or {}
    _say(facts=facts)
    model = load(path, vocab_only=True)
    if not model:
        _say(wrong=_UNLOADABLE)
        return
    facts |= kind(model)
    _say(facts=facts)
    fits = Path(path).stat().st_size < _MOST_OF_MEMORY * _memory()
    _say(wrong=decode(path, facts.get("context_length") or 64, facts["n_vocab"], weights=fits))
    os._exit(0)  # the system unmaps what is mapped


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        return float("inf")


def _log(level: int, text: bytes, _user_data: object) -> None:
    if level == _ERROR:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1])
