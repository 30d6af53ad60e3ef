"""The architectures of the catalogue's models, with random weights, against llama-cpp-python's own class."""

from __future__ import annotations

import gguf
import llama_cpp
import numpy as np
import pytest

from benchmarks.random_model import _copy_tokenizer
from skllm_ray.datasets import get_reviews_dataset
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.tasks import ChatRequest, ZeroShotTask
from tests.llm.gpt.clients.llama_cpp.test_engine import THREE, reference_log_probs

WIDTH, LAYERS, HIDDEN, HEADS, KV_HEADS = 128, 4, 256, 4, 2
HEAD = WIDTH // HEADS


def make(architecture, path):
    """Write a tiny model of `architecture` with random weights and the demo model's tokenizer and chat template."""
    rng = np.random.default_rng(0)
    source, writer = gguf.GGUFReader(DEMO_FILE), gguf.GGUFWriter(str(path), architecture)
    _copy_tokenizer(source, writer)
    n_vocab = len(source.fields["tokenizer.ggml.tokens"].data)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(n_vocab)
    if architecture == "gemma2":
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
        writer.add_sliding_window(64)
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if architecture == "phi3":
        writer.add_sliding_window(0)
        writer.add_rope_scaling_orig_ctx_len(1024)

    def matrix(name, rows, columns):
        weights = rng.standard_normal((rows, columns), np.float32) / np.float32(columns) ** 0.5
        writer.add_tensor(f"{name}.weight", weights)

    def ones(name):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    matrix("token_embd", n_vocab, WIDTH)
    ones("output_norm")
    if architecture == "phi3":
        matrix("output", n_vocab, WIDTH)
    for block in (f"blk.{number}" for number in range(LAYERS)):
        ones(f"{block}.attn_norm")
        ones(f"{block}.ffn_norm")
        if architecture == "gemma2":
            ones(f"{block}.post_attention_norm")
            ones(f"{block}.post_ffw_norm")
        if architecture == "phi3":
            matrix(f"{block}.attn_qkv", WIDTH + 2 * KV_HEADS * HEAD, WIDTH)
            matrix(f"{block}.ffn_up", 2 * HIDDEN, WIDTH)
        else:
            matrix(f"{block}.attn_q", HEADS * HEAD, WIDTH)
            matrix(f"{block}.attn_k", KV_HEADS * HEAD, WIDTH)
            matrix(f"{block}.attn_v", KV_HEADS * HEAD, WIDTH)
            matrix(f"{block}.ffn_gate", HIDDEN, WIDTH)
            matrix(f"{block}.ffn_up", HIDDEN, WIDTH)
        matrix(f"{block}.attn_output", WIDTH, HEADS * HEAD)
        matrix(f"{block}.ffn_down", WIDTH, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3"])
def test_scores_texts_and_embeddings(architecture, tmp_path):
    path = make(architecture, tmp_path / "model.gguf")
    backend = GGUFBackend(path, "gguf::test", 0, 1)
    tokenizer = Engine(EngineOptions(str(path), vocab_only=True))
    peer = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, logits_all=True, verbose=False)
    try:
        reviews, _ = get_reviews_dataset()
        requests = ZeroShotTask(THREE).render([f"{a} {b}" for a, b in zip(reviews[:12], reviews[12:24], strict=True)])
        expected = np.stack([reference_log_probs(peer, tokenizer, request) for request in requests])
        alone = np.stack([backend.complete([request])[0].log_probs for request in requests])
        together = np.stack([reply.log_probs for reply in backend.complete(requests)])
        np.testing.assert_allclose(alone, expected, atol=1e-3, rtol=0)
        np.testing.assert_allclose(together, expected, atol=1e-3, rtol=0)
        free = [ChatRequest(request.messages, max_output_tokens=8) for request in requests[:4]]
        assert all(0 < reply.usage.completion_tokens <= 8 for reply in backend.complete(free))
        vectors = np.stack([embedding.vector for embedding in backend.embed(["one", "another one"])])
        assert vectors.shape == (2, WIDTH) and np.isfinite(vectors).all()
    finally:
        backend.close()
        tokenizer.close()
        peer.close()
