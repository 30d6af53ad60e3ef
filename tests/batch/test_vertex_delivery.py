"""Jobs that are delivered by batches of Vertex AI: real SDKs, a local server of batches and Cloud Storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.delivery import deliver, order
from skllm_ray.classification import ZeroShotVertexClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import AmbiguousSubmission, ConfigurationError, NotSupportedError
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.llm.submissions import GracePeriod
from skllm_ray.testing import StatusFault, prompt_of
from skllm_ray.testing.batch_server import BatchFault, SubmitFault
from skllm_ray.testing.chat_forms import default_answer
from skllm_ray.testing.vertex_batches import VertexBatchServer
from skllm_ray.vectorization import VertexVectorizer
from tests.batch.delivery_worlds import N, World
from tests.batch.worlds import LABELS, read
from tests.tuning_worlds import google_environment


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(deliver, "POLLING", Polling(0.01, 1.0, 0.01, 0.0))
    monkeypatch.setattr(order, "GRACE", GracePeriod(0.3, 0.05))
    skllm_ray.init(local_mode=True)
    ModelCache.clear()
    with VertexBatchServer() as server:
        for name, value in google_environment(server, tmp_path).items():
            monkeypatch.setenv(name, value)
        SKLLMConfig.set_google_project("project")
        SKLLMConfig.set_google_location("europe-west4")
        SKLLMConfig.set_google_bucket("bucket")
        yield World(tmp_path, server)
    ModelCache.clear()
    skllm_ray.shutdown()
    SKLLMConfig.reset()


def gemini() -> ZeroShotVertexClassifier:
    return ZeroShotVertexClassifier(model="gemini-3.5-flash", on_error="coerce").fit(None, LABELS)


@pytest.mark.parametrize("fault", [None, BatchFault.EXPIRED])
def test_rows_come_by_batch_once_and_at_half_the_price(world, fault):
    world.server.batch_faults.append(fault)
    result = world.run(gemini(), batch_price_share=None)
    world.check_home()
    assert result.complete
    assert world.server.bill.requests == {"batch": N - 1, "standard": 1}
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)
    assert len(world.server.batches) == (2 if fault else 1)
    assert world.server.objects == {}
    request = next(iter(world.server.batches.values())).lines[0]["request"]
    assert request["generationConfig"]["responseMimeType"] == "application/json"
    assert "systemInstruction" in request
    assert "label" in str(request["generationConfig"]["responseJsonSchema"])


def test_a_row_that_fails_for_good_is_an_error_and_one_that_may_pass_is_asked_again(world):
    seen: set[str] = set()

    def answer(body: dict[str, Any]) -> Any:
        prompt = prompt_of(body)
        if "number 7" in prompt:
            return StatusFault(400, "The input token count exceeds the maximum.", "INVALID_ARGUMENT")
        if "number 8" in prompt and prompt not in seen:
            seen.add(prompt)
            return StatusFault(429, "Resource exhausted.", "RESOURCE_EXHAUSTED")
        return default_answer(body)

    world.server.answer = answer
    result = world.run(gemini())
    found = read(world.output)
    assert found["id"][found["error_kind"].notna()].tolist() == [7]
    assert found["prediction"][8] == "good"
    assert result.total.cost_usd == pytest.approx(world.paid_usd, abs=1e-9)


@pytest.mark.parametrize("fault", [SubmitFault.DROP_AFTER, SubmitFault.DROP_BEFORE, SubmitFault.REFUSED])
def test_a_post_whose_answer_is_lost_is_never_sent_again(world, fault):
    world.server.submit_faults.append(fault)
    if fault is SubmitFault.DROP_BEFORE:
        for _ in range(2):
            with pytest.raises(AmbiguousSubmission) as told:
                world.run(gemini())
            assert (world.server.n_submissions, len(world.server.batches)) == (1, 0)
        batch.forget_batch(world.output, told.value.key)
    elif fault is SubmitFault.REFUSED:
        assert "refused the batch" in world.run(gemini()).stopped
    assert world.run(gemini()).complete
    world.check_home()
    assert len(world.server.batches) == 1


def test_what_cannot_be_is_refused_before_anything_is_sent(world):
    with pytest.raises(NotSupportedError, match="chats alone"):
        world.run(VertexVectorizer().fit())
    SKLLMConfig.set_google_bucket("another")
    with pytest.raises(ConfigurationError, match="gs://another"):
        world.run(gemini())
    SKLLMConfig.reset()
    SKLLMConfig.set_google_project("project")
    with pytest.raises(ConfigurationError, match="set_google_bucket"):
        world.run(gemini())
    assert not world.server.bill.requests
