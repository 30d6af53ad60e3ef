"""Architectures of other models than the demo's, with random weights, against references that share nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.architecture_table import ARCHITECTURES, RECURRENT
from benchmarks.architectures import VOCABULARIES, Result, check_elsewhere
from benchmarks.brute_force import BruteForce
from benchmarks.random_weights import write_model
from skllm_ray.datasets import get_reviews_dataset
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.tasks import ChatRequest, ZeroShotTask
from tests.llm.gpt.clients.llama_cpp.test_engine import THREE


@pytest.mark.parametrize("name", ["gemma2", "phi3", "gpt-oss", "deepseek2"])
def test_scores_texts_and_embeddings(name, tmp_path):
    architecture = ARCHITECTURES[name]
    path = write_model(tmp_path / "model.gguf", name, architecture.metadata, without=architecture.without)
    backend = GGUFBackend(path, "gguf::test", 0, 1)
    try:
        reviews, _ = get_reviews_dataset()
        requests = ZeroShotTask(THREE).render([f"{a} {b}" for a, b in zip(reviews[:6], reviews[12:18], strict=True)])
        with BruteForce(path) as brute:
            expected = np.stack([brute.log_probs(request) for request in requests])
        assert np.exp(expected).std(axis=0).max() > 0.01  # else the text does not matter
        alone = np.stack([backend.complete([request])[0].log_probs for request in requests])
        together = np.stack([reply.log_probs for reply in backend.complete(requests)])
        np.testing.assert_allclose(alone, expected, atol=1e-3, rtol=0)
        np.testing.assert_allclose(together, expected, atol=1e-3, rtol=0)
        free = [ChatRequest(request.messages, max_output_tokens=8) for request in requests[:4]]
        assert all(0 < reply.usage.completion_tokens <= 8 for reply in backend.complete(free))
        vectors = np.stack([embedding.vector for embedding in backend.embed(["one", "another one"])])
        assert vectors.shape == (2, architecture.metadata["embedding_length"]) and np.isfinite(vectors).all()
    finally:
        backend.close()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_architecture_gives_brute_force_s_scores():
    """With the tokenizers of llama.cpp's archive where the environment says that they are; else with the demo's."""
    folder = Path(os.environ[VOCABULARIES]) if os.environ.get(VOCABULARIES) else None
    found = dict(check_elsewhere(list(ARCHITECTURES), folder))
    assert {name: one for name, one in found.items() if not isinstance(one, Result) or not one.holds} == {}
    assert set(RECURRENT) <= set(found)
