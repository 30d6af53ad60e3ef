"""llama-cpp-python's own server with the demo model: chat, embeddings, log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.llm.registry import resolve

LABELS = ["negative", "neutral", "positive"]
TEXTS = ["I love it, works like a charm.", "Broke after two days. Terrible.", "It arrived on a Tuesday."]


@pytest.fixture(autouse=True)
def _here(local_mode, llama_server):
    SKLLMConfig.set_gpt_url(f"{llama_server}/v1")
    SKLLMConfig.set_rate_limit("custom_url::demo", max_concurrency=1)  # it answers one request at a time


def test_chat_agrees_with_the_engine():
    served = ZeroShotGPTClassifier(model="custom_url::demo").fit(None, LABELS)
    own = ZeroShotGPTClassifier(model="gguf::demo").fit(None, LABELS)
    details = served.predict_details(TEXTS)
    assert details["prediction"].tolist() == own.predict(TEXTS).tolist()
    assert (details["prompt_tokens"] > 50).all() and details["error"].isna().all()


def test_log_probabilities_agree_with_the_engine():
    served = ZeroShotGPTClassifier(model="custom_url::demo").fit(None, LABELS)
    own = ZeroShotGPTClassifier(model="gguf::demo").fit(None, LABELS)
    np.testing.assert_allclose(served.predict_proba(TEXTS), own.predict_proba(TEXTS), atol=0.05)


def test_embeddings():
    spec = resolve("custom_url::demo")
    backend = spec.open(lambda ref: "none")
    found = backend.embed(TEXTS)
    backend.close()
    assert [item.error for item in found] == [None] * 3
    assert len({item.vector.shape for item in found}) == 1
