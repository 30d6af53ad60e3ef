"""Real Rays for the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import skllm_ray
from skllm_ray.llm.gpt.clients.llama_cpp.handler import ModelCache


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray that the library started by itself, one for each module."""
    skllm_ray.shutdown()
    skllm_ray.init()
    yield
    skllm_ray.shutdown()


@pytest.fixture(autouse=True)
def _leave_local_mode() -> Iterator[None]:
    yield
    ModelCache.remove("gguf::demo in process")
