"""Replies that are kept: nothing is paid for twice."""

import multiprocessing

import numpy as np
import pytest
from sklearn.model_selection import cross_val_predict

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.reply_cache import CachedBackend, SQLiteReplyCache
from skllm_ray.tasks.base import ChatRequest, Reply, RowError
from skllm_ray.testing import ChatServer, FakeBackend


def ask(text):
    return ChatRequest(({"role": "user", "content": text},))


def shout(request):
    text = request.messages[-1]["content"]
    return RowError("server_error", "no", retryable=True) if text == "bad" else text.upper()


def test_only_what_is_not_held_is_asked_and_errors_are_not_kept(tmp_path):
    backend = FakeBackend(shout)
    cached = CachedBackend(backend, SQLiteReplyCache(tmp_path / "r.sqlite"), ("endpoint", "m"))
    first = cached.complete([ask("a"), ask("bad"), ask("a"), ask("b")])
    assert [reply.text for reply in first] == ["A", None, "A", "B"]
    assert [reply.attempts for reply in first] == [1, 1, 0, 1]
    assert backend.n_requests == 3
    second = cached.complete([ask("b"), ask("a"), ask("bad")])
    assert [(reply.text, reply.attempts) for reply in second] == [("B", 0), ("A", 0), (None, 1)]
    assert second[0].usage.cost_usd == 0
    assert backend.n_requests == 4


def test_another_model_is_asked_again(tmp_path):
    backend, cache = FakeBackend(shout), SQLiteReplyCache(tmp_path / "r.sqlite")
    for model in ("m", "n", "m"):
        CachedBackend(backend, cache, ("endpoint", model)).complete([ask("a")])
    assert backend.n_requests == 2


def test_the_least_recently_used_go_first(tmp_path):
    cache = SQLiteReplyCache(tmp_path / "r.sqlite", max_bytes=20_000)
    for i in range(200):
        cache.put({f"key-{i}": Reply("x" * 500)})
        cache.get(["key-0"])
    assert 10 < len(cache) < 80
    assert "key-0" in cache.get(["key-0"])


def write(path, start):
    cache = SQLiteReplyCache(path)
    for i in range(start, start + 50):
        cache.put({f"key-{i}": Reply(str(i))})


def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "r.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(path, 50 * i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    found = SQLiteReplyCache(path).get([f"key-{i}" for i in range(150)])
    assert {key: reply.text for key, reply in found.items()} == {f"key-{i}": str(i) for i in range(150)}


@pytest.mark.usefixtures("local_mode")
def test_a_second_run_and_cross_validation_pay_nothing(tmp_path):
    X, y = np.array([f"number {i} good" for i in range(12)]), np.array(["good", "bad"] * 6)
    with ChatServer() as server:
        SKLLMConfig.set_gpt_url(server.url)
        SKLLMConfig.set_reply_cache(tmp_path / "replies.sqlite")
        clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
        clf.predict(X)
        assert server.n_requests == 12
        assert clf.predict_details(X)["cost_usd"].tolist() == [0.0] * 12
        cross_val_predict(clf, X, y, cv=3)
        assert server.n_requests == 12
    assert b"number 3" not in (tmp_path / "replies.sqlite").read_bytes()


@pytest.mark.usefixtures("local_mode")
def test_a_cache_that_cannot_be_used_costs_no_row(tmp_path):
    (tmp_path / "broken").write_bytes(b"this is no database" * 100)
    with ChatServer() as server:
        SKLLMConfig.set_gpt_url(server.url)
        SKLLMConfig.set_reply_cache(tmp_path / "broken")
        clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
        assert clf.predict(["so good"]).tolist() == ["good"]


@pytest.mark.usefixtures("local_mode")
def test_predict_proba_over_the_wire():
    with ChatServer() as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
        assert clf.predict_proba(["so good"]) == pytest.approx(np.array([[0.2, 0.8]]), abs=1e-6)
