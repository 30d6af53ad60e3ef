"""GGUF models of any architecture that llama.cpp knows, tiny, with random 32-bit weights.

An architecture is described by its metadata alone. Which tensors belong to it, and of which shapes, is asked of
llama.cpp itself: it builds a model from metadata and calls back for each tensor.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.library import import_llama_cpp, take_errors

Value = int | float | bool | str | list[int] | list[float] | list[bool]
"""A metadata value; an int is written as 32 bits without sign."""
Tensors = dict[str, tuple[int, ...]]
"""Names and shapes, in numpy's order: rows first."""

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_TENSOR_NE = 16  # bytes into a ggml_tensor: its type and buffer come first
_NORM = re.compile(r"norm(_\d+)?\.weight$|(^|\.)ln\d\.weight$|norm\.weight$")
_LOUD = {"output": 4, "ssm_out": 4, "attn_output": 4, "out_proj": 4}
"""Matrices of larger weights: of the logits, and of what tokens tell one another."""
_KEPT = re.compile(r"\.(rope_freqs|rope_factors_(long|short))\.weight$|^rope_")


class GGUFInit(ctypes.Structure):
    """llama.cpp's ``gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def write_model(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Value],
    vocabulary: Path = DEMO_FILE,
    *,
    without: str = "",
    seed: int = 0,
) -> Path:
    """Write a model of random 32-bit weights; return `path`.

    Parameters
    ----------
    path : Path
        Where to write it.
    architecture : str
        llama.cpp's name of the architecture.
    metadata : mapping of str to value
        Keys without the architecture before them.
    vocabulary : Path, default=the demo model
        A GGUF file whose tokenizer is copied.
    without : str, default=""
        A regular expression of names of tensors that llama.cpp can do without, and that are left out.
    seed : int, default=0
        Of the weights.

    Raises
    ------
    ValueError
        If llama.cpp does not build a model from the metadata.
    """
    header = path.with_suffix(".header")
    _write(header, architecture, metadata, DEMO_FILE, {})
    sizes = {_n_tokens(DEMO_FILE): _n_tokens(vocabulary)}
    tensors = {name: tuple(sizes.get(n, n) for n in shape) for name, shape in tensors_of(header).items()}
    header.unlink()
    if without:
        tensors = {name: shape for name, shape in tensors.items() if not re.search(without, name)}
    rng = np.random.default_rng(seed)
    _write(path, architecture, metadata, vocabulary, {name: _weights(rng, name, s) for name, s in tensors.items()})
    return path


def tensors_of(header: Path) -> Tensors:
    """Return the tensors that llama.cpp wants for the metadata in a file without tensors."""
    lib = import_llama_cpp()
    folder = Path(lib.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
    ggml.gguf_init_from_file.restype, ggml.gguf_init_from_file.argtypes = ctypes.c_void_p, [ctypes.c_char_p, GGUFInit]
    ggml.gguf_free.argtypes = [ctypes.c_void_p]
    ggml.ggml_get_name.restype, ggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    init = ctypes.CDLL(str(folder / "libllama.so")).llama_model_init_from_user
    init.restype = ctypes.c_void_p
    init.argtypes = [ctypes.c_void_p, _CALLBACK, ctypes.c_void_p, lib.llama_model_params]
    found: Tensors = {}

    def note(tensor: int, _user_data: object) -> None:
        shape = (ctypes.c_int64 * 4).from_address(tensor + _TENSOR_NE)
        name = ggml.ggml_get_name(tensor).decode()
        rows_first = [int(size) for size in reversed(shape)]
        while len(rows_first) > 1 and rows_first[0] == 1:
            rows_first.pop(0)
        if not name.endswith(".scale") and not name.endswith("_scale"):  # of quantized weights
            found[name] = tuple(rows_first)

    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    context = ggml.gguf_init_from_file(str(header).encode(), GGUFInit(no_alloc=True))
    take_errors()
    try:
        model = init(context, _CALLBACK(note), None, params)
        if not model:
            raise ValueError(f"llama.cpp builds no model from {header}: {take_errors()}")
        lib.llama_model_free(ctypes.cast(model, lib.llama_model_p_ctypes))
    finally:
        ggml.gguf_free(context)
    return found


def _n_tokens(vocabulary: Path) -> int:
    return len(_reader(vocabulary).fields["tokenizer.ggml.tokens"].data)


@cache
def _reader(file: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(file)


def _write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Value],
    vocabulary: Path,
    tensors: Mapping[str, NDArray[np.float32]],
) -> None:
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in metadata.items():
        _add(writer, key if key.startswith("xielu.") else f"{architecture}.{key}", value)
    _copy_tokenizer(writer, vocabulary)
    for name, weights in tensors.items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    kinds = gguf.GGUFValueType
    first: Any = value[0] if isinstance(value, list) else value
    kind = kinds.BOOL if isinstance(first, bool) else kinds.UINT32 if isinstance(first, int) else None
    kind = kind or (kinds.FLOAT32 if isinstance(first, float) else kinds.STRING)
    if isinstance(value, list):
        writer.add_key_value(key, value, kinds.ARRAY, kind)
    else:
        writer.add_key_value(key, value, kind)


def _copy_tokenizer(writer: gguf.GGUFWriter, vocabulary: Path) -> None:
    """Copy a tokenizer; one without a chat template gets the demo model's."""
    reader = _reader(vocabulary)
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    if "tokenizer.chat_template" not in reader.fields:
        template = _reader(DEMO_FILE).fields["tokenizer.chat_template"].contents()
        writer.add_chat_template(template)


def _weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    drawn = rng.standard_normal(shape, np.float32)
    if _KEPT.search(name):
        return np.ones(shape, np.float32)
    if _NORM.search(name):
        return 1 + drawn / 10
    if "ssm_a" in name:  # a state decays, and slowly: what is asked at the end of a prompt depends on all of it
        return -np.abs(drawn) / 30 - np.float32(0.01)
    if re.search(r"time_mix_(decay|w0)\.weight$", name):
        return drawn / 10 - 5
    if len(shape) == 1 or name.endswith(".bias"):
        return drawn / 10
    return _LOUD.get(name.split(".")[-2], 1) * drawn / np.float32(shape[-1]) ** 0.5
