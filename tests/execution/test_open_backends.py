"""Backends that are open in this process: one for each spec, as few as needed, and none closed under its user."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from skllm_ray.classification import DynamicFewShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution import open_backends, ray_state
from skllm_ray.execution.open_backends import MOST_CLIENTS, MOST_MODELS, OpenBackend, open_here, opened
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.llm.rate_limit.installed import current_limiter
from skllm_ray.llm.rate_limit.limiter import LocalLimiter
from skllm_ray.testing import ChatServer
from tests.execution.stateful import PlainSpec

pytestmark = pytest.mark.usefixtures("local_mode")


def n_open() -> int:
    return sum(isinstance(one, OpenBackend) for one in ModelCache.entries().values())


def client_threads(before: set[threading.Thread]) -> list[str]:
    """Return the threads that clients started since: their own, and those that asyncio starts for them."""
    started = set(threading.enumerate()) - before
    return [one.name for one in started if one.name.startswith(("skllm-ray", "asyncio"))]


def n_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


@dataclass(frozen=True)
class Spec(PlainSpec):
    log: list[str] = field(default_factory=list, compare=False)
    stateful: bool = False
    opening: threading.Event | None = field(default=None, compare=False)

    @property
    def capabilities(self):
        return replace(super().capabilities, stateful=self.stateful)

    def open(self, resolve_secret):
        if self.opening is not None:
            assert self.opening.wait(20)
        self.log.append(f"open {self.key}")
        return self

    def close(self) -> None:
        self.log.append(f"close {self.key}")


def test_clients_of_many_specs_are_closed_again_with_their_threads_and_descriptors(monkeypatch) -> None:
    most = 4
    monkeypatch.setattr(open_backends, "MOST_CLIENTS", most)
    ModelCache.clear()
    descriptors, before = n_descriptors(), set(threading.enumerate())
    with ChatServer(lambda body: '{"label": "good"}') as server:
        SKLLMConfig.set_gpt_url(server.url)
        for number in range(3 * most):
            clf = ZeroShotGPTClassifier(model="custom_url::m", request_options={"seed": number})
            assert clf.fit(None, ["good", "bad"]).predict(["a"]).tolist() == ["good"]
            assert n_open() <= most
        assert len(client_threads(before)) <= 2 * most
        ModelCache.clear()
    assert client_threads(before) == []
    assert n_descriptors() <= descriptors + 3


def test_all_fits_of_dynamic_few_shot_leave_one_backend_open() -> None:
    ModelCache.clear()
    for _ in range(4):
        clf = DynamicFewShotGPTClassifier(model="gguf::demo", vectorizer=TfidfVectorizer(), n_examples=1)
        clf.fit(["good food", "bad food"], ["good", "bad"]).predict(["food"])
    assert n_open() == 1


@pytest.mark.parametrize(("stateful", "most"), [(False, MOST_CLIENTS), (True, MOST_MODELS)])
def test_those_used_longest_ago_are_closed_and_none_that_is_used(stateful, most) -> None:
    pytest.importorskip("psutil")
    ModelCache.clear()
    log: list[str] = []
    specs = [Spec(f"{number:02}", log=log, stateful=stateful) for number in range(most + 3)]
    with opened(specs[0], {}):
        for spec in specs[1:]:
            with opened(spec, {}) as backend:
                assert backend is spec
            with opened(specs[1], {}):  # used again and again
                pass
    closed = [entry.removeprefix("close ") for entry in log if entry.startswith("close")]
    assert closed == ["02", "03", "04"]
    assert "close 00" not in log
    ModelCache.clear()
    assert len([entry for entry in log if entry.startswith("close")]) == len(specs)


def test_one_that_is_slow_to_open_holds_no_other_up() -> None:
    slow, log = threading.Event(), []
    first = threading.Thread(target=open_here, args=(Spec("slow", log=log, opening=slow), {}))
    first.start()
    try:
        open_here(Spec("quick", log=log), {})
        assert log == ["open quick"]
    finally:
        slow.set()
        first.join()
    assert log == ["open quick", "open slow"]


def test_which_limit_a_process_is_under(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("skllm_ray.execution.rate_limiter.use_cluster_limiter", lambda: asked.append(1))
    with opened(Spec("in local mode"), {}):
        assert isinstance(current_limiter(), LocalLimiter)
    assert not asked
    monkeypatch.setitem(ray_state._state, "local_mode", False)
    monkeypatch.setattr(ray_state, "_initialised", lambda: True)
    with opened(Spec("with Ray"), {}):
        assert asked
    monkeypatch.setattr(ray_state, "_initialised", lambda: False)
    with opened(Spec("without Ray"), {}):
        assert isinstance(current_limiter(), LocalLimiter)


def test_what_a_parent_process_opened_is_left_to_it(monkeypatch) -> None:
    held = OpenBackend(Spec("forked"), Spec("forked"))
    held.pid = os.getpid() + 1
    assert held.close() == []
    ModelCache.store("forked in process", held)
    with pytest.raises(open_backends.ClusterError, match="before this process was forked"):
        open_here(Spec("forked"), {})
    ModelCache.forget("forked in process")
