"""The main path on a real single-node Ray: texts → Dataset → model actors → labels in order."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest
import ray

import skllm_ray
import skllm_ray.errors
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.datasets import get_reviews_dataset
from skllm_ray.errors import ConfigurationError, InputError, ModelLoadError, PlacementError
from skllm_ray.execution.cluster_status import loaded_replicas
from skllm_ray.llm.open_models import ModelCache

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

LABELS = ["positive", "negative", "neutral"]


def classifier() -> ZeroShotGPTClassifier:
    return ZeroShotGPTClassifier(model="gguf::demo").fit(None, LABELS)


def many_texts(n: int) -> list[str]:
    texts, _ = get_reviews_dataset()
    return [f"{texts[i % len(texts)]} ({i})" for i in range(n)]


@functools.cache
def in_local_mode(n: int) -> np.ndarray:
    """Return the probabilities of the first texts."""
    skllm_ray.init(local_mode=True)
    try:
        return classifier().predict_proba(many_texts(n))
    finally:
        skllm_ray.init()


def assert_equal_but_for_ties(found: np.ndarray, probabilities: np.ndarray) -> None:
    """Two shapes of batch differ in the last digits: only near ties may fall differently."""
    expected = np.array(sorted(LABELS))[probabilities.argmax(axis=1)]
    top = np.sort(probabilities, axis=1)
    clear = np.log(top[:, -1]) - np.log(top[:, -2]) > 2e-2
    assert (found == expected)[clear].all()


@pytest.mark.parametrize("n", [1, pytest.param(300, marks=pytest.mark.deep), 600])
def test_equals_local_mode_in_order(n: int) -> None:
    assert_equal_but_for_ties(classifier().predict(many_texts(n)), in_local_mode(600)[:n])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_texts_equal_local_mode() -> None:
    assert_equal_but_for_ties(classifier().predict(many_texts(10_000)), in_local_mode(10_000))


def test_each_container_gives_the_same_labels() -> None:
    texts = many_texts(40)
    found = classifier()
    expected = found.predict(texts).tolist()
    containers = [np.array(texts), np.array(texts, dtype=object), pd.Series(texts), pd.DataFrame({"text": texts})]
    assert all(found.predict(container).tolist() == expected for container in containers)


def test_details_of_more_than_one_block_keep_the_index() -> None:
    texts = pd.Series(many_texts(300), index=[f"row {i}" for i in range(300)])
    texts.iloc[7] = None
    table = classifier().predict_details(texts)
    assert list(table.index) == list(texts.index)
    assert table["error_kind"].iloc[7] == "missing_text"
    assert table.drop(index="row 7")["valid"].all()


def test_models_outlive_calls_and_clear_unloads_them() -> None:
    found = classifier()
    found.predict(["a"])
    first = {replica.pid for replica in loaded_replicas("gguf::demo")}
    found.predict(["b"])
    ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["x", "y"]).predict(["c"])
    assert {replica.pid for replica in loaded_replicas("gguf::demo")} == first
    ModelCache.clear()
    assert loaded_replicas("gguf::demo") == []
    wait_until(lambda: not any(alive(pid) for pid in first))
    found.predict(["d"])
    assert {replica.pid for replica in loaded_replicas("gguf::demo")}.isdisjoint(first)


def test_a_changed_setting_warns_and_does_not_reload() -> None:
    found = classifier()
    found.predict(["a"])
    before = loaded_replicas("gguf::demo")
    SKLLMConfig.set_gguf_resources("demo", min_replicas=2, max_replicas=2, num_cpus=1)
    with pytest.warns(skllm_ray.errors.SkllmRayWarning, match=r"ModelCache\.clear"):
        found.predict(["b"])
    assert [replica.pid for replica in loaded_replicas("gguf::demo")] == [replica.pid for replica in before]
    ModelCache.clear()
    found.predict(["c"])
    assert len(loaded_replicas("gguf::demo")) == 2
    ModelCache.clear()


def test_an_actor_uses_the_threads_that_it_was_given() -> None:
    ModelCache.clear()
    SKLLMConfig.set_gguf_resources("demo", num_cpus=2)
    classifier().predict(["a"])
    (replica,) = loaded_replicas("gguf::demo")
    assert replica.threads == 2
    ModelCache.clear()


@pytest.mark.deep
def test_killing_a_model_actor_loses_no_row() -> None:
    ModelCache.clear()
    SKLLMConfig.set_gguf_resources("demo", min_replicas=2, max_replicas=2, num_cpus=1)
    texts = many_texts(800)
    found = classifier()
    found.predict(texts[:1])
    victim = loaded_replicas("gguf::demo")[0].pid
    kill = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
    kill.start()
    labels = found.predict(texts)
    kill.join()
    wait_until(lambda: not alive(victim))  # its parent has to look after it first
    assert len(labels) == len(texts)
    assert set(labels) <= set(LABELS)
    wait_until(lambda: victim not in {replica.pid for replica in loaded_replicas("gguf::demo")})
    ModelCache.clear()


def test_no_room_is_an_error_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    ModelCache.clear()
    SKLLMConfig.set_gguf_resources("demo", min_replicas=1, num_cpus=1000)
    with pytest.raises(PlacementError, match=r"1000 CPU.*cluster has CPU"):
        classifier().predict(["a"])


def test_gpu_layers_without_a_gpu_are_refused_not_ignored() -> None:
    ModelCache.clear()
    SKLLMConfig.set_gguf_max_gpu_layers(-1)
    with pytest.raises((PlacementError, ModelLoadError)):
        classifier().predict(["a"])


@ray.remote(num_cpus=2)
def predict_in_a_task_that_holds_all_cpus(texts: list[str]) -> list[str]:
    return classifier().predict(texts).tolist()


@ray.remote(num_cpus=0)
class Caller:
    def predict(self, texts: list[str]) -> list[str]:
        return classifier().predict(texts).tolist()


@pytest.mark.deep
def test_inside_a_task_and_an_actor() -> None:
    ModelCache.clear()
    texts = many_texts(4)
    expected = classifier().predict(texts).tolist()
    ModelCache.clear()
    assert ray.get(predict_in_a_task_that_holds_all_cpus.remote(texts), timeout=120) == expected
    assert ray.get(Caller.remote().predict.remote(texts), timeout=120) == expected


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([], InputError, "no texts"),
        (["a", None], InputError, r"position\(s\) 1"),
        (["a", 3], InputError, "X\\[1\\] is of type int"),
        ("a", TypeError, "collection"),
    ],
)
def test_bad_texts_are_refused(given: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        classifier().predict(given)


def test_init_refuses_options_when_ray_runs() -> None:
    with pytest.raises(skllm_ray.errors.ClusterError, match="initialised"):
        skllm_ray.init(num_cpus=1)
    with pytest.raises(ConfigurationError, match="ray job submit"):
        skllm_ray.init("ray://127.0.0.1:10001")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
