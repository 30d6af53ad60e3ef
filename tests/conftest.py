"""Every test starts from default settings, without credentials of the machine it runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import skllm_ray
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution import ray_state
from skllm_ray.llm.api import capabilities
from skllm_ray.llm.open_models import ModelCache


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("SKLLM_CONFIG_", "GOOGLE_CLOUD_")) or name in {"OPENAI_API_KEY", "OPENAI_BASE_URL"}:
            monkeypatch.delenv(name)
    SKLLMConfig.reset()
    ModelCache.remove(capabilities._PLACE)  # another test's server may have had the same port
    yield
    SKLLMConfig.reset()


@pytest.fixture
def local_mode() -> Iterator[None]:
    """Everything runs in this process; a Ray that other tests started is left alone."""
    skllm_ray.init(local_mode=True)
    yield
    ray_state._state["local_mode"] = False
    ModelCache.clear()
