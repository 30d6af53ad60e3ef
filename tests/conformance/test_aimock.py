"""OpenAI's, Azure's and Vertex' protocols as aimock speaks them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import RateLimit, SecretRef, SKLLMConfig
from skllm_ray.errors import JobFailedError
from skllm_ray.llm.api.retry_policy import RetryPolicy
from skllm_ray.llm.registry import resolve
from skllm_ray.llm.vertex.spec import VertexSpec
from skllm_ray.tasks import ZeroShotTask
from tests.conformance.conftest import LABELS

TEXTS = [f"Number {i}: it is {LABELS[i % 3]} 🎉" for i in range(60)]
WANTED = [LABELS[i % 3] for i in range(60)]
HASTY = RetryPolicy(timeout_s=20, deadline_s=120, max_tries=12, backoff_s=0.02)


@pytest.fixture(autouse=True)
def _here(local_mode):
    pass


def classify(model: str) -> list[str]:
    return ZeroShotGPTClassifier(model=model, key="sk-x").fit(None, LABELS).predict(TEXTS).tolist()


def test_openai_chat(aimock):
    with aimock() as url:
        SKLLMConfig.set_gpt_url(f"{url}/v1")
        assert classify("custom_url::gpt-4o-mini") == WANTED


def test_azure_chat(aimock):
    with aimock() as url:
        SKLLMConfig.set_azure_api_base(url)
        assert classify("azure::my-deployment") == WANTED


def test_vertex_chat(aimock):
    pytest.importorskip("google.genai")
    with aimock() as url:
        spec = VertexSpec(
            model="gemini-3.5-flash",
            project="p",
            location="us-central1",
            base_url=f"{url}/v1",
            token_ref=SecretRef("token", ("NONE",)),
        )
        backend = spec.open(lambda ref: "ya29.x")
        replies = backend.complete(ZeroShotTask(LABELS).render(TEXTS))
        backend.close()
    assert [reply.error for reply in replies] == [None] * 60
    assert [row.value for row in ZeroShotTask(LABELS).parse(TEXTS, replies)] == WANTED


@pytest.mark.parametrize(
    ("option", "kinds"),
    [
        ("--chaos-drop", {"server_error"}),
        ("--chaos-malformed", {"malformed_response"}),
        ("--chaos-disconnect", {"connection"}),
    ],
)
def test_a_bad_third_of_all_answers_costs_no_row(aimock, option, kinds):
    with aimock(option, "0.3") as url:
        SKLLMConfig.set_gpt_url(f"{url}/v1")
        spec = replace(resolve("custom_url::m", "sk-x"), patience=HASTY, limit=RateLimit(max_concurrency=8))
        backend = spec.open(lambda ref: "sk-x")
        replies = backend.complete(ZeroShotTask(LABELS).render(TEXTS))
        backend.close()
    assert {reply.error.kind for reply in replies if reply.error} <= kinds
    assert sum(reply.error is None for reply in replies) >= 59
    assert sum(reply.attempts for reply in replies) > 65


def test_its_429s_are_waited_for(aimock):
    with aimock("--chaos-ratelimit", "0.1") as url:
        SKLLMConfig.set_gpt_url(f"{url}/v1")
        spec = replace(resolve("custom_url::m", "sk-x"), patience=HASTY)
        backend = spec.open(lambda ref: "sk-x")
        replies = backend.complete(ZeroShotTask(LABELS).render(TEXTS[:12]))
        backend.close()
    assert [reply.error for reply in replies] == [None] * 12


def test_a_wrong_key_stops_the_call(aimock, monkeypatch):
    monkeypatch.setenv("AIMOCK_API_KEYS", "sk-right")
    with aimock() as url:
        SKLLMConfig.set_gpt_url(f"{url}/v1")
        with pytest.raises(JobFailedError, match="authentication"):
            classify("custom_url::m")
