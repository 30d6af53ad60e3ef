"""GGUF models with random weights: the speed of real ones of the same size, without a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE


@dataclass(frozen=True)
class Shape:
    """A Llama's size."""

    width: int
    layers: int
    hidden: int
    heads: int
    context: int = 4096
    n_vocab: int = 0
    """Entries of the vocabulary, those beyond the demo model's being made up; 0 takes the demo model's."""
    exact: bool = False
    """Whether weights have 32 bits, and not 8."""

    @property
    def n_parameters(self) -> int:
        """Parameters without the embedding matrix."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.hidden)


SHAPES = {
    "20M": Shape(384, 11, 1024, 6),
    "250M": Shape(1024, 19, 2816, 16),
    "1B": Shape(2048, 20, 5632, 32),
    "250M-152k": Shape(1024, 8, 2816, 16, n_vocab=152_000),
    "270M-262k": Shape(640, 18, 2048, 4, n_vocab=262_144),
    "1B-152k": Shape(2048, 14, 5632, 32, n_vocab=152_000),
}


def make_model(shape: Shape, path: Path, seed: int = 0) -> Path:
    """Write a Llama of random weights with the demo model's tokenizer and chat template; return `path`."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    source = gguf.GGUFReader(DEMO_FILE)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    n_vocab = _copy_tokenizer(source, writer, shape.n_vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if shape.exact else gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(n_vocab)

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = rng.standard_normal((rows, columns), np.float32) / np.float32(columns) ** 0.5
        if shape.exact:
            writer.add_tensor(name, weights)
            return
        q8 = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quantize(weights, q8), raw_dtype=q8)

    matrix("token_embd.weight", n_vocab, shape.width)
    writer.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    for block in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(shape.width, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{block}.{name}.weight", shape.width, shape.width)
        for name, rows, columns in (
            ("ffn_gate", shape.hidden, shape.width),
            ("ffn_up", shape.hidden, shape.width),
            ("ffn_down", shape.width, shape.hidden),
        ):
            matrix(f"blk.{block}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


def _copy_tokenizer(source: gguf.GGUFReader, writer: gguf.GGUFWriter, n_vocab: int = 0) -> int:
    """Write the tokenizer, with made-up tokens up to `n_vocab`; return how many tokens it has."""

    def read(key: str) -> Any:
        return source.fields[f"tokenizer.{key}"].contents()

    writer.add_tokenizer_model(read("ggml.model"))
    writer.add_tokenizer_pre(read("ggml.pre"))
    tokens, types = read("ggml.tokens"), read("ggml.token_type")
    made_up = [f"made-up-{number}" for number in range(n_vocab - len(tokens))]
    writer.add_token_list([*tokens, *made_up])
    writer.add_token_types([*types, *[gguf.TokenType.NORMAL] * len(made_up)])
    writer.add_token_merges(read("ggml.merges"))
    writer.add_eos_token_id(read("ggml.eos_token_id"))
    writer.add_eot_token_id(read("ggml.eot_token_id"))
    writer.add_bos_token_id(read("ggml.bos_token_id"))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(read("chat_template"))
    return len(tokens) + len(made_up)
