"""What a process keeps: pickling asks no Ray, and another Ray, or another thread, finds nothing of the first."""

from __future__ import annotations

import pickle
import threading

import pytest
from sklearn.base import clone

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import Secret, SKLLMConfig
from skllm_ray.errors import ClusterError
from skllm_ray.execution import ray_state, secrets, shared_secrets
from skllm_ray.llm import cancellation
from skllm_ray.llm.gpt.clients.llama_cpp import download
from skllm_ray.llm.gpt.clients.llama_cpp.download import Transfer, current_transfer
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.tasks.base import RowError

KEY, OTHER = Secret("sk-planted-0123456789abcdef"), Secret("sk-another-0123456789abcdef")


class Cluster:
    """Stands in for a Ray that takes credentials, or does not answer."""

    def __init__(self) -> None:
        self.calls: list[set[str]] = []
        self.known: dict[str, Secret] = {}
        self.is_gone = False

    def hand_over(self, given: dict[str, Secret]) -> None:
        self.calls.append(set(given))
        if self.is_gone:
            raise ClusterError("It does not answer.")
        self.known.update(given)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(shared_secrets, "_fitted", {})
    monkeypatch.setattr(ray_state, "is_initialised", lambda: True)
    monkeypatch.setattr(ray_state, "is_local_mode", lambda: False)
    monkeypatch.setattr(ray_state, "in_ray_worker", lambda: False)
    monkeypatch.setattr(secrets, "hand_over", made.hand_over)
    monkeypatch.setattr(secrets, "known_here", lambda: dict(made.known))
    return made


def fitted(**parameters: object) -> ZeroShotGPTClassifier:
    return ZeroShotGPTClassifier(model="m", **parameters).fit(None, ["a", "b"])


def test_pickling_asks_no_ray(cluster: Cluster) -> None:
    clf = fitted(key=KEY)
    assert cluster.calls == [{KEY.fingerprint}]
    for copied in (pickle.dumps(clf), pickle.dumps(ZeroShotGPTClassifier(model="m", key=OTHER))):
        assert b"0123456789abcdef" not in copied
        pickle.loads(copied)
    assert len(cluster.calls) == 1


def test_what_is_fitted_or_cloned_hands_over_what_is_new(cluster: Cluster) -> None:
    fitted(key=KEY), fitted(key=KEY)
    clone(ZeroShotGPTClassifier(model="m", key=OTHER))
    SKLLMConfig.set_openai_key("sk-of-the-settings-123456")
    fitted()
    assert [len(call) for call in cluster.calls] == [1, 2, 3]


def test_a_ray_that_is_joined_later_gets_them_then(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_state, "is_initialised", lambda: False)
    fitted(key=KEY)
    assert cluster.calls == []
    monkeypatch.setattr(ray_state, "is_initialised", lambda: True)
    shared_secrets.share({})
    assert cluster.calls == [{KEY.fingerprint}]


def test_a_ray_that_does_not_answer_stops_no_fit(cluster: Cluster) -> None:
    cluster.is_gone = True
    assert fitted(key=KEY).classes_.tolist() == ["a", "b"]


def test_another_ray_is_not_the_one_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_state, "_started", {})
    monkeypatch.setattr(ray_state, "_initialised", lambda: True)
    monkeypatch.setattr(ray_state, "job_key", lambda: "127.0.0.1:1/01000000")
    assert not ray_state.is_started_here()
    ray_state.started_here(fixed_size=True)
    assert ray_state.is_started_here()
    assert ray_state.is_fixed_size()
    monkeypatch.setattr(ray_state, "job_key", lambda: "10.0.0.1:6379/07000000")  # the user's own
    assert not ray_state.is_started_here()
    assert not ray_state.is_fixed_size()


def test_calls_that_end_in_many_threads_leave_a_bounded_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "_ended", {})
    error = RowError("cancelled", "Enough.")
    faults: list[Exception] = []

    def end_many(number: int) -> None:
        try:
            for call in range(1000):
                cancellation.end_call(f"{number} {call}", error)
        except RuntimeError as fault:
            faults.append(fault)

    threads = [threading.Thread(target=end_many, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(cancellation._ended) == cancellation._MOST_ENDED


def test_two_downloads_are_both_known_until_they_end() -> None:
    one, other = Transfer("a"), Transfer("b")
    download._under_way[:] = [one, other]
    try:
        assert current_transfer() is other
        download._under_way.remove(other)
        assert current_transfer() is one
    finally:
        download._under_way.clear()
    assert current_transfer() is None


class Model:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_a_model_that_other_jobs_share_stays_when_this_one_ends() -> None:
    ModelCache.clear()
    own, shared = Model(), Model()
    ModelCache.store("own", own)
    ModelCache.store("shared", shared, shared=True)
    ModelCache._clear(shared=False)
    assert (own.closed, shared.closed) == (True, False)
    again = Model()
    ModelCache.store("shared", again)  # no more a shared one
    ModelCache._clear(shared=False)
    assert again.closed
