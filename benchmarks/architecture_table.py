"""The architectures that are tried with random weights: their metadata, by llama.cpp's names.

Every architecture reads the keys that it knows, so most of what it needs stands in one table for all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchmarks.random_weights import Value

Metadata = dict[str, Value]

_COMMON: Metadata = {
    "context_length": 2048,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.group_norm_epsilon": 1e-5,
    "attention.group_norm_groups": 8,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.sliding_window": 64,
    "attention.max_alibi_bias": 8.0,
    "attention.clamp_kqv": 8.0,
    "rope.dimension_count": 16,
    "rope.dimension_sections": [4, 2, 2, 0],
    "rope.freq_base": 10000.0,
    "leading_dense_block_count": 1,
    "use_parallel_residual": False,
    "logit_scale": 1.0,
}
_EXPERTS: Metadata = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 64,
    "expert_shared_feed_forward_length": 64,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "interleave_moe_layer_step": 1,
}
_LATENT: Metadata = {
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "attention.key_length_mla": 32,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 16,
}
_MAMBA: Metadata = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.time_step_rank": 8}
_MAMBA2 = _MAMBA | {"ssm.group_count": 2}
_ALONE: Metadata = {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": 0}
_ALTERNATING: Metadata = {"attention.head_count_kv": [0, 2]}
_DELTA_NET: Metadata = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 64,
    "full_attention_interval": 2,
    "attention.key_length": 32,
    "attention.value_length": 32,
}
_KDA = _LATENT | {
    "attention.head_count_kv": [0, 1],
    "attention.q_lora_rank": 0,
    "kda.head_dim": 16,
    "kda.gate_lower_bound": -5.0,
    "ssm.conv_kernel": 4,
}
_HYPER: Metadata = {
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
    "attention.indexer.head_count": 2,
    "attention.indexer.key_length": 16,
    "attention.indexer.top_k": 4096,
    "attention.indexer.kpool": 4,
    "attention.indexer.block_size": 4,
    "attention.indexer.local_blocks": 1,
}
_SITU: Metadata = {
    "attn_res.block_size": 12,
    "activation.situ_beta": 4.0,
    "activation.situ_linear_beta": 25.0,
}
_INDEXED: Metadata = {"attention.q_lora_rank": 32, "attention.key_length": 32, "rope.dimension_count": 0}
_COMPRESSED: Metadata = {
    "embedding_length": 256,
    "block_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "attention.output_group_count": 4,
    "attention.output_lora_rank": 16,
    "attention.compress_ratios": [0, 0, 4, 128],
    "attention.compress_rope_freq_base": 160000.0,
    "attention.indexer.key_length": 64,
    "rope.dimension_count": 32,
    "hash_layer_count": 0,
    "swiglu_clamp_exp": 10.0,
    "expert_gating_func": 4,
}
_PLAIN_CACHE: Metadata = {"attention.key_length": 32, "attention.value_length": 16, "attention.head_count_kv": 2}
_GEMMA4: Metadata = {
    "block_count": 5,
    "attention.sliding_window_pattern": [True, True, True, True, False],
    "attention.shared_kv_layers": 0,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "embedding_length_per_layer_input": 32,
}
_NEMOTRON: Metadata = {
    "block_count": 3,
    "attention.head_count_kv": [0, 2, 0],
    "feed_forward_length": [0, 0, 128],
}
_WIDE_RWKV: Metadata = {"embedding_length": 128, "wkv.head_size": 64}
_WINDOWS: Metadata = {"attention.sliding_window_pattern": [True, False]}
_RWKV: Metadata = {
    "attention.head_count": 0,
    "attention.head_count_kv": 0,
    "wkv.head_size": 16,
    "time_mix_extra_dim": 8,
    "time_decay_extra_dim": 8,
    "token_shift_count": 2,
    "attention.decay_lora_rank": 8,
    "attention.iclr_lora_rank": 8,
    "attention.value_residual_mix_lora_rank": 8,
    "attention.gate_lora_rank": 8,
}


@dataclass(frozen=True)
class Architecture:
    """What is written into a file of random weights."""

    name: str
    """llama.cpp's name."""
    metadata: Metadata
    without: str = ""
    """A regular expression of tensors that are left out: of two forms of the same weights, llama.cpp asks for both."""
    vocabulary: str = "llama-bpe"
    """A tokenizer of llama.cpp's source archive: ``models/ggml-vocab-NAME.gguf``."""


_VOCABULARIES = (
    ("qwen(3next|35|35moe|4exp)$", "qwen35"),
    ("gemma", "gemma-4"),
    ("qwen|smollm|hunyuan|seed_oss|lfm2", "qwen2"),
    ("phi3|phimoe", "phi-3"),
    ("command-r|cohere|jamba", "command-r"),
    ("falcon", "falcon"),
    ("gpt2|jais|rwkv", "gpt-2"),
    ("gptneox|mamba|olmo", "gpt-neox"),
    ("mpt|dbrx", "mpt"),
    ("starcoder|granite", "starcoder"),
    ("refact|codeshell", "refact"),
    ("deepseek|kimi|bailing|glm", "deepseek-llm"),
    ("baichuan|internlm|orion|xverse", "baichuan"),
    ("minicpm|plamo|stablelm|grok", "llama-spm"),
)


def _entry(name: str, *parts: Metadata, without: str = "", **more: Value) -> Architecture:
    metadata = dict(_COMMON)
    for part in parts:
        metadata |= part
    found = [vocabulary for names, vocabulary in _VOCABULARIES if re.match(names, name)]
    return Architecture(name, metadata | more, without, found[0] if found else "llama-bpe")


_RECURRENT = (
    _entry("mamba", _MAMBA, _ALONE),
    _entry("mamba2", _MAMBA2, _ALONE),
    _entry("rwkv6", _RWKV),
    _entry("rwkv6qwen2", _RWKV, without="time_mix_first", token_shift_count=1),
    _entry("rwkv7", _RWKV, _WIDE_RWKV),
    _entry("arwkv7", _RWKV, _WIDE_RWKV, token_shift_count=1),
    _entry("jamba", _MAMBA, _ALTERNATING),
    _entry("falcon-h1", _MAMBA2),
    _entry("plamo2", _MAMBA2, _ALTERNATING, {"ssm.group_count": 0}),
    _entry("granitehybrid", _MAMBA2, _ALTERNATING),
    _entry("nemotron_h", _MAMBA2, _NEMOTRON),
    _entry("nemotron_h_moe", _MAMBA2, _NEMOTRON, _EXPERTS),
    _entry("lfm2", _ALTERNATING, {"shortconv.l_cache": 3}),
    _entry("lfm2moe", _ALTERNATING, _EXPERTS, {"shortconv.l_cache": 3}),
    _entry("qwen3next", _DELTA_NET, _EXPERTS),
    _entry("qwen35", _DELTA_NET),
    _entry("qwen35moe", _DELTA_NET, _EXPERTS),
    _entry("qwen4exp", _DELTA_NET, _EXPERTS, _HYPER, {"hyper_connection.low_rank": 8}),
    _entry("kimi-linear", _KDA, _EXPERTS),
    _entry("kimi-k3", _KDA, _EXPERTS, _SITU, {"attention.q_lora_rank": 32}),
    _entry("bailingmoe3", _KDA, _EXPERTS),
    _entry("glm5-next", _KDA, _EXPERTS, _HYPER, _INDEXED),
    _entry("minimax-01", _EXPERTS, residual_scale=2.0, full_attention_interval=2),
    _entry("deepseek4", _EXPERTS, _HYPER, _COMPRESSED),
)
_PLAIN = """
    llama deci falcon gpt2 gptneox mpt baichuan starcoder refact bloom stablelm qwen qwen2 qwen2vl qwen3 qwen3vl phi2
    phi3 plamo plamo3 codeshell orion internlm2 minicpm gemma gemma2 gemma3 starcoder2 xverse command-r cohere2 olmo
    olmo2 openelm chatglm glm4 bitnet jais jais2 nemotron exaone exaone4 granite arcee ernie4_5 hunyuan-dense smollm3
    seed_oss pangu-embedded mistral3 maincoder nanbeige talkie muse-glimmer
"""
_OF_EXPERTS = """
    grok qwen2moe qwen3moe qwen3vlmoe phimoe cohere2moe dbrx arctic deepseek glm4moe exaone-moe granitemoe bailingmoe
    bailingmoe2 afmoe laguna ernie4_5-moe hunyuan-moe hy_v3 gpt-oss smallthinker minimax-m2 mellum
"""
_TRANSFORMERS = (
    *(_entry(name) for name in _PLAIN.split()),
    *(_entry(name, _EXPERTS) for name in _OF_EXPERTS.split()),
    *(_entry(name, _EXPERTS, {"attention.head_count_kv": 4}) for name in ("olmoe", "dots1")),
    *(_entry(name, _EXPERTS, _WINDOWS) for name in ("mimo2", "step35")),
    *(_entry(name, _WINDOWS) for name in ("granite_swa", "spark2_5")),
    *(_entry(name, _LATENT, _EXPERTS) for name in ("deepseek2", "mistral4")),
    *(_entry(name, _LATENT, _PLAIN_CACHE) for name in ("minicpm3", "plm")),
    _entry("llama4", _EXPERTS, block_count=4),
    _entry("grovemoe", _EXPERTS, expert_group_scale=1.0, experts_per_group=1),
    _entry("maple", _EXPERTS, _WINDOWS, swiglu_clamp_exp=7.0),
    _entry("apertus", {"xielu.alpha_n": 1.0, "xielu.alpha_p": 1.0, "xielu.beta": 1.0, "xielu.eps": 1e-7}),
    _entry("gemma3n", block_count=22),
    _entry("gemma4", _GEMMA4),
)
RECURRENT = {one.name: one for one in _RECURRENT}
"""Models with recurrent layers, some of them with attention in other layers or beside them."""
ARCHITECTURES = RECURRENT | {one.name: one for one in _TRANSFORMERS}
"""All of them."""
