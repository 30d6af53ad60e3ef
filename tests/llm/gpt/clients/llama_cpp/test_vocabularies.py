"""Vocabularies of today's models, with random weights, against llama-cpp-python's own class."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest

from benchmarks.random_model import Shape, make_model
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.tasks import ChatRequest, Choices
from tests.llm.gpt.clients.llama_cpp.test_engine import TEXTS, question, reference_log_probs

MANY = tuple(f"{colour} {number}" for colour in ("red", "green", "blue") for number in range(100))


@pytest.mark.deep
def test_a_large_vocabulary_loads_and_scores_as_one_pass_per_label(tmp_path):
    path = make_model(Shape(32, 1, 64, 2, 1024, 300_000, exact=True), tmp_path / "model.gguf")
    backend, tokenizer = GGUFBackend(path, "gguf::test", 0, 1), Engine(EngineOptions(str(path), vocab_only=True))
    peer = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False)
    try:
        requests = [question(text) for text in TEXTS]
        expected = np.exp([reference_log_probs(peer, tokenizer, request) for request in requests])
        alone = np.exp([backend.complete([request])[0].log_probs for request in requests])
        together = np.exp([reply.log_probs for reply in backend.complete(requests)])
        np.testing.assert_allclose(alone, expected, atol=1e-3, rtol=0)
        np.testing.assert_allclose(together, expected, atol=1e-3, rtol=0)
        (many,) = backend.complete([question("x", MANY)])  # more labels than the context has sequences
        assert np.exp(many.log_probs).sum() == pytest.approx(1)
        (quick,) = backend.complete([ChatRequest(question("x").messages, Choices(MANY, best_only=True))])
        assert quick.text == many.text
        (written,) = backend.complete([ChatRequest(question("x").messages, max_output_tokens=3)])
        assert written.usage.completion_tokens <= 3
        assert backend.embed(["a text"])[0].vector.shape == (32,)
    finally:
        backend.close()
        tokenizer.close()
        peer.close()
