"""What a job keeps in the cluster, and what becomes of it when it is lost."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import ray

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import Secret, SKLLMConfig
from skllm_ray.execution import dataset, rate_limiter, secrets
from skllm_ray.execution.ray_state import NAMESPACE
from skllm_ray.testing import ChatServer
from tests.execution.test_termination import interrupted

pytestmark = [pytest.mark.cluster, pytest.mark.deep, pytest.mark.usefixtures("ray_here")]
KEY = "sk-planted-0123456789abcdef"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(lambda body: '{"label": "good"}', key=KEY) as running:
        SKLLMConfig.set_gpt_url(running.url)
        SKLLMConfig.set_openai_key(KEY)
        yield running


def classifier(**parameters):
    return ZeroShotGPTClassifier(model="custom_url::m", **parameters).fit(None, ["good", "bad"])


@pytest.mark.parametrize("restarts", [True, False])
def test_the_actor_with_the_credentials_may_die(server, restarts: bool) -> None:
    clf = classifier()
    assert clf.predict(["a"]).tolist() == ["good"]
    ray.kill(ray.get_actor(secrets._name(), namespace=NAMESPACE), no_restart=not restarts)
    assert b"planted" not in pickle.dumps(clf)
    assert clf.predict(["a"] * 300).tolist() == ["good"] * 300
    ray.kill(ray.get_actor(secrets._name(), namespace=NAMESPACE), no_restart=not restarts)
    assert clf.predict(["b"]).tolist() == ["good"]


def test_a_worker_fills_an_actor_that_came_back_empty(server) -> None:
    classifier().predict(["a"])
    ours = Secret(KEY).fingerprint

    @ray.remote(num_cpus=0)
    def twice() -> list[bool]:
        first = ours in secrets.fetch_secrets()
        ray.kill(ray.get_actor(secrets._name(), namespace=NAMESPACE), no_restart=False)
        time.sleep(3)  # Ray ends it in its own time, and until then it answers
        return [first, ours in secrets.fetch_secrets()]

    @ray.remote(num_cpus=0)
    class Fresh:
        def fetch(self) -> bool:
            return bool(secrets.fetch_secrets()[ours])

    assert ray.get(twice.remote()) == [True, True]
    assert ray.get(Fresh.remote().fetch.remote())


@pytest.mark.parametrize("n_rows", [pytest.param(200, marks=pytest.mark.slow), 2000])
def test_sigterm_ends_a_call_and_keeps_what_was_answered(tmp_path, n_rows: int) -> None:
    options = f"{ray.get_runtime_context().gcs_address!r}"
    done, sent, kept = interrupted(tmp_path, signal.SIGTERM, options, n_rows)
    written = [line for line in done.stdout.splitlines() if "(raylet)" not in line]  # Ray tells of many workers there
    assert (done.returncode, written) == (143, ["the user's own finally"])
    assert "SIGTERM received" not in done.stderr
    assert sent - 8 <= kept
    assert sent < 200


@pytest.mark.parametrize("n_rows", [3, 600])
def test_rows_whose_workers_are_lost_end_typed_and_the_others_stay(server, monkeypatch, n_rows: int) -> None:
    clf = classifier(on_error="coerce")
    clf.predict(["a"])

    def through(texts, work):
        yield range(2), [dataset.Row("good", True, dataset.Reply("good"))] * 2
        raise ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMore lines")

    monkeypatch.setattr(dataset, "_one_block" if n_rows <= 256 else "_through_dataset", through)
    found = clf.predict_details(["a"] * n_rows)
    assert found["prediction"].tolist()[:2] == ["good", "good"]
    assert set(found["error_kind"][2:]) == {"cancelled"}
    assert found["error"][2].startswith("Ray lost the work on this row (OutOfMemoryError: Task was killed due to")


def test_a_limiter_that_is_stopped_and_continued_lets_no_quota_pass(tmp_path) -> None:
    with ChatServer(lambda body: '{"label": "good"}', requests_per_minute=120) as running:
        SKLLMConfig.set_gpt_url(running.url)
        SKLLMConfig.set_rate_limit("custom_url::quota", requests_per_minute=120)
        clf = ZeroShotGPTClassifier(model="custom_url::quota").fit(None, ["good", "bad"])
        clf.predict(["first"])
        actor = ray.get_actor(rate_limiter._NAME, namespace=NAMESPACE)
        pid = ray.get(actor.__ray_call__.remote(lambda limiter: os.getpid()))
        stop = threading.Timer(2, os.kill, (pid, signal.SIGSTOP))
        go_on = threading.Timer(9, os.kill, (pid, signal.SIGCONT))
        stop.start()
        go_on.start()
        assert clf.predict([f"text {number}" for number in range(30)]).tolist() == ["good"] * 30
        go_on.join()
        assert running.n_refused == 0
