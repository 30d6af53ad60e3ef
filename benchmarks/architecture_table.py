"""The architectures that are tested with random weights: their metadata, by llama.cpp's names."""

from __future__ import annotations

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
}
_MAMBA: Metadata = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.time_step_rank": 8}
_MAMBA2 = _MAMBA | {"ssm.group_count": 2}
_ALONE: Metadata = {"feed_forward_length": 0, "attention.head_count": 0}
_ALTERNATING: Metadata = {"attention.head_count_kv": [0, 2], "rope.dimension_count": 16}
_DELTA_NET: Metadata = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 64,
    "full_attention_interval": 2,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "rope.dimension_count": 16,
}

RECURRENT: dict[str, Metadata] = {
    "mamba": _COMMON | _MAMBA | _ALONE,
    "mamba2": _COMMON | _MAMBA2 | _ALONE,
    "jamba": _COMMON | _MAMBA | _ALTERNATING,
    "falcon-h1": _COMMON | _MAMBA2 | {"attention.key_length": 16, "attention.value_length": 16},
    "granitehybrid": _COMMON | _MAMBA2 | _ALTERNATING,
    "nemotron_h": _COMMON
    | _MAMBA2
    | {"block_count": 3, "attention.head_count_kv": [0, 2, 0], "feed_forward_length": [0, 0, 128]},
    "lfm2": _COMMON | _ALTERNATING | {"shortconv.l_cache": 3},
    "qwen35": _COMMON | _DELTA_NET | {"rope.dimension_sections": [4, 2, 2, 0]},
}
"""Models with recurrent layers, some of them with attention in other layers or beside them."""
