"""Models that are open in this process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import SkllmRayWarning
from skllm_ray.execution.open_backends import open_here
from skllm_ray.llm.open_models import ModelCache
from tests.execution.stateful import PlainSpec


@pytest.mark.usefixtures("local_mode")
def test_the_cache_knows_what_is_open_here_and_a_changed_setting_warns() -> None:
    found = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    assert ModelCache.get("gguf::demo") is None
    found.predict(["good"])
    held = ModelCache.get("gguf::demo")
    assert held is not None
    SKLLMConfig.set_gguf_max_gpu_layers(5)
    with pytest.warns(SkllmRayWarning, match=r"gguf::demo stays loaded.*ModelCache\.clear"):
        found.predict(["bad"])
    assert ModelCache.get("gguf::demo") is held
    SKLLMConfig.set_gguf_max_gpu_layers(0)
    found.predict(["back to what is loaded: no warning"])
    ModelCache.remove("gguf::demo")
    assert ModelCache.get("gguf::demo") is None


@dataclass(frozen=True)
class Spec(PlainSpec):
    opened: list[object] = field(default_factory=list)

    def open(self, resolve_secret):
        threading.Event().wait(0.2)
        self.opened.append(self)
        return self


def test_threads_that_ask_at_once_open_it_once() -> None:
    spec = Spec()
    threads = [threading.Thread(target=open_here, args=(spec, {})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spec.opened) == 1
    ModelCache.remove("test")
