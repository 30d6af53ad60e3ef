"""GGUF models with random weights: the speed of real ones of the same size, without a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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

    @property
    def n_parameters(self) -> int:
        """Parameters without the embedding matrix."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.hidden)


SHAPES = {
    "20M": Shape(384, 11, 1024, 6),
    "250M": Shape(1024, 19, 2816, 16),
    "1B": Shape(2048, 20, 5632, 32),
}


def make_model(shape: Shape, path: Path, seed: int = 0) -> Path:
    """Write a Llama of random Q8_0 weights with the demo model's tokenizer and chat template; return `path`."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    source = gguf.GGUFReader(DEMO_FILE)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    _copy_tokenizer(source, writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    n_vocab = len(source.fields["tokenizer.ggml.tokens"].data)
    writer.add_vocab_size(n_vocab)

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = rng.standard_normal((rows, columns), np.float32) / np.float32(columns) ** 0.5
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


def _copy_tokenizer(source: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    def read(key: str) -> object:
        return source.fields[f"tokenizer.{key}"].contents()

    writer.add_tokenizer_model(read("ggml.model"))
    writer.add_tokenizer_pre(read("ggml.pre"))
    writer.add_token_list(read("ggml.tokens"))
    writer.add_token_types(read("ggml.token_type"))
    writer.add_token_merges(read("ggml.merges"))
    writer.add_eos_token_id(read("ggml.eos_token_id"))
    writer.add_eot_token_id(read("ggml.eot_token_id"))
    writer.add_bos_token_id(read("ggml.bos_token_id"))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(read("chat_template"))
