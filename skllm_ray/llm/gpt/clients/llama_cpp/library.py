"""llama-cpp-python, imported once, late, with its log in our hands."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from skllm_ray.errors import MissingExtraError, ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.words import sentence

_ERROR = 4  # ggml_log_level
_SPINS = "10000"
"""How often a thread looks for the others before it sleeps. libgomp's own number is 300,000."""
_last_errors: list[str] = []
_keep_alive: list[Any] = []
_verbose = False
_captured: dict[int, list[str]] = {}


def import_llama_cpp() -> ModuleType:
    """Return the ``llama_cpp`` module; its C log comes to us instead of standard error.

    Raises
    ------
    MissingExtraError
        If llama-cpp-python is not installed.
    """
    try:
        with _short_waits():
            import llama_cpp
    except ImportError as error:
        if error.name not in {"llama_cpp", "jinja2", "diskcache"}:
            raise
        raise MissingExtraError.for_extra("llama-cpp-python", "gguf") from None
    if not _keep_alive:
        callback = llama_cpp.llama_log_callback(_log)
        _keep_alive.append(callback)
        llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


@contextmanager
def _short_waits() -> Iterator[None]:
    """Let llama.cpp's threads sleep soon where they wait for one another, as they do at each operation.

    By default they spin. On a machine with other work that is wasted whenever the thread that is waited for has no
    core: twelve rows of a real model with two threads took 12 s in place of 5 beside a dozen busy processes. On a quiet
    machine it costs 2 to 5%. libgomp reads the number once, when llama.cpp loads it. Who sets ``OMP_WAIT_POLICY`` or
    ``GOMP_SPINCOUNT`` has the say.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)


def require_installed() -> None:
    """Raise ``MissingExtraError`` unless llama-cpp-python is installed, without importing it."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingExtraError.for_extra("llama-cpp-python", "gguf")


def load_model(lib: ModuleType, path: str, params: Any) -> Any:
    """Return llama.cpp's handle of the model in `path`.

    Raises
    ------
    ModelLoadError
        With llama.cpp's own reason.
    """
    take_errors()
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        reason = take_errors()
        told = sentence(reason or "it gave no reason")
        raise ModelLoadError(f"llama.cpp cannot load {path}: {told}", load_hint(reason))
    return model


def load_hint(reason: str) -> str:
    """Return what to do about a file that llama.cpp cannot load, by its reason."""
    if "unknown model architecture" in reason or "unknown pre-tokenizer" in reason:
        return "This llama.cpp does not know it: a newer llama-cpp-python may."
    return "If it was downloaded, delete it and download it again."


def metadata(lib: ModuleType, model: Any, key: str) -> str | None:
    """Return a metadata value of a model's file, or None."""
    size = 1 << 12
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = lib.llama_model_meta_val_str(model, key.encode(), buffer, size)
        if length < size:
            return buffer.value.decode("utf-8", "replace") if length >= 0 else None
        size = length + 1


LONGEST_DEFAULT_CONTEXT = 8192
"""Tokens of context that are opened at most unless more are asked for: the KV cache grows with them."""


_LOGITS_BYTES = 1 << 28
_MOST_OUTPUTS = 256  # llama.cpp's most sequences, which each may want one
_LEAST_OUTPUTS = 16


def is_embedding_model(lib: ModuleType, model: Any) -> bool:
    """Return whether a model makes vectors and answers no prompts."""
    architecture = metadata(lib, model, "general.architecture")
    is_causal = metadata(lib, model, f"{architecture}.attention.causal") != "false"
    return not is_causal or metadata(lib, model, f"{architecture}.pooling_type") is not None


def most_outputs(n_vocab: int) -> int:
    """Return how many tokens' logits a context keeps: 256 up to 262,144 entries of the vocabulary, fewer above."""
    return max(_LEAST_OUTPUTS, min(_MOST_OUTPUTS, _LOGITS_BYTES // (4 * max(1, n_vocab))))


def context_length(trained: int, asked: int | None) -> int:
    """Return the tokens of context that are opened for a model of a training context of `trained` tokens.

    Raises
    ------
    ModelLoadError
        If more are asked for than the model was trained for.
    """
    if asked is not None and asked > trained:
        raise ModelLoadError(
            f"n_ctx={asked:,}, but the model was trained for {trained:,} tokens.",
            "Ask for that many at most, or leave n_ctx out.",
        )
    return asked or min(trained, LONGEST_DEFAULT_CONTEXT)


def set_verbose(verbose: bool) -> None:
    """Let llama.cpp's own log through to standard error, or hide all of it but what our errors quote."""
    global _verbose
    _verbose = verbose


def take_errors() -> str:
    """Return what llama.cpp has logged as errors since the last call, as one line, and forget it."""
    text = " ".join(" ".join(_last_errors).split())
    _last_errors.clear()
    return text


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """Collect what llama.cpp logs in this thread meanwhile, whatever its level."""
    lines = _captured[threading.get_ident()] = []
    try:
        yield lines
    finally:
        del _captured[threading.get_ident()]


def _log(level: int, text: bytes, _user_data: object) -> None:
    line = text.decode("utf-8", "replace")
    if level == _ERROR:
        _last_errors.append(line.rstrip())
        del _last_errors[:-20]
    if _captured:
        _captured.get(threading.get_ident(), []).append(line)
    if _verbose:
        sys.stderr.write(line)
