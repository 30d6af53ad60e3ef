"""Layers on a real GPU: scores, texts, and actors that hold it and give it back.

They need a GPU and a llama-cpp-python that was built for it: ``pytest tests/cluster/test_gpu.py`` there.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

import skllm_ray
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.datasets import get_reviews_dataset
from skllm_ray.execution.cluster_status import loaded_replicas
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.tasks import ChatRequest, ZeroShotTask
from tests.llm.gpt.clients.llama_cpp.test_engine import THREE, expected_log_probs, unquantized

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not llama_cpp.llama_supports_gpu_offload(), reason="llama.cpp finds no GPU"),
]
LIKELY = -7
"""Log-probabilities below are not compared: an error of a logit is one of all labels' sum there."""


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 2e-2), (16, 5e-2), (8, 0.15)])
def test_scores_are_brute_force_s(bits: int, tolerance: float, tmp_path: Path) -> None:
    """A GPU sums in other orders at other batch shapes, and what it multiplies is rounded as the weights are.

    Seen on an H100, on these 793 log-probabilities: at most 0.010 apart with 32 bits, 0.029 with 16, 0.065 with 8.
    """
    floats = {32: np.float32, 16: np.float16}
    path = unquantized(tmp_path / "demo.gguf", floats[bits]) if bits in floats else DEMO_FILE
    reviews, _ = get_reviews_dataset()
    requests = ZeroShotTask(THREE).render(reviews)
    brute, backend = Engine(EngineOptions(str(path), n_gpu_layers=-1)), GGUFBackend(path, "gguf::test", -1, 1)
    try:
        found = np.stack([reply.log_probs for reply in backend.complete(requests)])  # type: ignore[arg-type]
        expected = np.stack([expected_log_probs(brute, request) for request in requests])
    finally:
        backend.close()
        brute.close()
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(found[expected > LIKELY], expected[expected > LIKELY], atol=tolerance, rtol=0)
    ahead = np.diff(np.sort(expected, axis=1)[:, -2:])[:, 0]
    clear = ahead > tolerance
    assert clear.mean() > 0.9
    assert (found.argmax(axis=1) == expected.argmax(axis=1))[clear].all()


def test_texts_are_written_and_follow_their_schemas() -> None:
    backend = GGUFBackend(DEMO_FILE, "gguf::demo", -1, 1)
    schema = {"type": "array", "items": {"type": "integer"}, "maxItems": 3}
    prompts = [({"role": "user", "content": f"{number} words"},) for number in range(80)]
    try:
        free = backend.complete([ChatRequest(prompt, max_output_tokens=12) for prompt in prompts])  # type: ignore[arg-type]
        bound = backend.complete([ChatRequest(prompt, json_schema=schema) for prompt in prompts])  # type: ignore[arg-type]
    finally:
        backend.close()
    assert all(reply.error is None and reply.usage.completion_tokens <= 12 for reply in free)
    assert all(reply.error is None and reply.text.startswith("[") for reply in bound)


@pytest.fixture
def own_ray() -> Iterator[None]:
    skllm_ray.shutdown()
    skllm_ray.init(num_cpus=4, num_gpus=1)
    yield
    skllm_ray.shutdown()


def used_mb() -> float:
    """Return the GPU's memory in use, whoever uses it."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


@pytest.mark.usefixtures("own_ray")
def test_actors_hold_the_gpu_until_they_are_cleared() -> None:
    reviews, _ = get_reviews_dataset()
    classifier = ZeroShotGPTClassifier(model="gguf::demo").fit(None, THREE)
    before = used_mb()
    on_cpu = classifier.predict(reviews)
    (replica,) = loaded_replicas("gguf::demo")
    assert not replica.gpus
    assert used_mb() < before + 100  # an actor without GPU layers does not touch the GPU
    ModelCache.clear()

    SKLLMConfig.set_gguf_max_gpu_layers(-1)
    SKLLMConfig.set_gguf_resources(num_gpus=0.5, num_cpus=1, min_replicas=2, max_replicas=2)
    on_gpu = classifier.predict(reviews)
    assert (on_gpu == on_cpu).mean() >= 0.98
    assert [replica.gpus for replica in loaded_replicas("gguf::demo")] == ["0", "0"]
    held = used_mb()
    assert held > before + 2 * 200  # two CUDA contexts
    assert len(ModelCache.clear()) == 2
    deadline = time.monotonic() + 30
    while used_mb() > before + 100 and time.monotonic() < deadline:  # a driver tidies up after a process
        time.sleep(0.5)
    assert used_mb() < before + 100
