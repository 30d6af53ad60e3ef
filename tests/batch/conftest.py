"""What the tests of batch jobs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import skllm_ray
from skllm_ray.batch.delivery import deliver, order
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.llm.submissions import GracePeriod
from skllm_ray.testing.batch_server import BatchServer
from tests.batch.delivery_worlds import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(deliver, "POLLING", Polling(0.01, 1.0, 0.01, 0.0))
    monkeypatch.setattr(order, "GRACE", GracePeriod(0.3, 0.05))
    SKLLMConfig.reset()
    skllm_ray.init(local_mode=True)
    ModelCache.clear()
    with BatchServer() as server:
        yield World(tmp_path, server)
    ModelCache.clear()
    skllm_ray.shutdown()
    SKLLMConfig.reset()
