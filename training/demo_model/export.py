"""Writing the trained model as GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer

from training.demo_model.model import TinyLlama
from training.demo_model.tokens import CHAT_TEMPLATE, CONTROL, END

DESCRIPTION = "A tiny model for trying and testing skllm-ray (sentiment, topics, review aspects). Not for work."


def _tensors(model: TinyLlama) -> dict[str, np.ndarray]:
    width, hidden = model.config.width, model.config.hidden
    found = {"token_embd.weight": model.embed.weight, "output_norm.weight": model.norm.weight}
    for index, block in enumerate(model.blocks):
        q, k, v = block.qkv.weight.split(width)
        gate, up = block.gate_up.weight.split(hidden)
        parts = {
            "attn_norm": block.attn_norm.weight,
            "attn_q": q,
            "attn_k": k,
            "attn_v": v,
            "attn_output": block.out.weight,
            "ffn_norm": block.ffn_norm.weight,
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": block.down.weight,
        }
        found |= {f"blk.{index}.{name}.weight": weight for name, weight in parts.items()}
    return {name: np.ascontiguousarray(weight.detach().float().numpy()) for name, weight in found.items()}


def write_gguf(model: TinyLlama, tokenizer: Tokenizer, path: Path, *, quantize: bool = True) -> None:
    """Write `model` and `tokenizer` to `path`: Q8_0 matrices (or F32 ones for checks) and F32 norms."""
    config = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("skllm-ray demo")
    writer.add_description(DESCRIPTION)
    writer.add_author("The skllm-ray authors")
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_tags(["text-classification", "demo"])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantize else gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_vocab_size(config.vocab_size)

    bpe = json.loads(tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    kinds = [gguf.TokenType.CONTROL if token in CONTROL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    end = tokenizer.token_to_id(END)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    for name, array in _tensors(model).items():
        if quantize and array.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
