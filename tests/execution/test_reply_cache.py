"""Replies that are kept: nothing is paid for twice."""

import multiprocessing
import sqlite3
import threading

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict

from skllm_ray.classification import DynamicFewShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.llm.reply_cache import CachedBackend, SQLiteReplyCache
from skllm_ray.tasks.base import ChatRequest, Reply, RowError
from skllm_ray.testing import ChatServer, FakeBackend
from skllm_ray.vectorization import GPTVectorizer


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


@pytest.mark.parametrize(("max_bytes", "n_puts", "n_each", "size"), [
    (20_000, 100, 1, 500), (200_000, 300, 20, 100), (100_000, 19, 1, 1_000_000), (1_000_000, 40, 1, 100_000),
    (300_000, 3, 3_000, 40),
])  # fmt: skip
def test_the_file_never_grows_beyond_its_bound_and_the_newest_stay(tmp_path, max_bytes, n_puts, n_each, size):
    cache, path = SQLiteReplyCache(tmp_path / "r.sqlite", max_bytes), tmp_path / "r.sqlite"
    for i in range(n_puts):
        cache.put({f"{i:032d}-{j:032d}": Reply("x" * size) for j in range(n_each)})
        assert path.stat().st_size <= max_bytes
    newest = f"{n_puts - 1:032d}-{n_each - 1:032d}"
    assert (newest in cache.get([newest])) == (size < max_bytes / 4)
    held = sum(len(cache.get([f"{i:032d}-{j:032d}" for j in range(n_each)])) for i in range(n_puts)) * size
    assert held > max_bytes / 20 or size > max_bytes


def test_a_lower_bound_shrinks_the_file(tmp_path):
    path = tmp_path / "r.sqlite"
    SQLiteReplyCache(path).put({f"key-{i}": Reply("x" * 1000) for i in range(1000)})
    cache = SQLiteReplyCache(path, 200_000)
    assert path.stat().st_size <= 200_000
    assert 50 < len(cache) < 200
    assert "key-999" in cache.get(["key-999"])


def test_a_vector_is_kept_too(tmp_path):
    backend = FakeBackend(shout)
    cached = CachedBackend(backend, SQLiteReplyCache(tmp_path / "r.sqlite"), ("endpoint", "m"))
    first = cached.embed(["a b", "c", "a b"])
    second = cached.embed(["c", "a b"])
    assert backend.n_requests == 2
    assert [embedding.attempts for embedding in first + second] == [1, 1, 0, 0, 0]
    np.testing.assert_array_equal(second[1].vector, first[0].vector)
    assert second[1].vector.dtype == np.float32
    assert cached.complete([ask("c")])[0].text == "C"  # a text is another question than its vector


DAMAGED = [
    "{}", "null", "[]", "nonsense", "", '{"text": 1}', b"\xff",
    '{"text": null, "log_probs": null, "usage": {"cost_usd": null}, "model": "m"}',
    '{"text": "x", "log_probs": null, "usage": {"cost_usd": null, "no_such": 1}, "model": "m"}',
    '{"text": "x", "log_probs": ["a"], "usage": {"cost_usd": null}, "model": "m"}',
    '{"text": "x", "log_probs": null, "usage": null, "model": "m"}',
    '{"vector": "AAA", "usage": {"cost_usd": null}, "model": "m"}',
    '{"vector": "AAAAAAAA", "usage": {"cost_usd": null}, "model": "m"}',
]  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_answer_counts_as_missing(tmp_path, damaged):
    backend, path = FakeBackend(shout), tmp_path / "r.sqlite"
    cached = CachedBackend(backend, SQLiteReplyCache(path), ("endpoint", "m"))
    cached.complete([ask("a")])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE answers SET answer = ?", (damaged,))
    assert [cached.complete([ask("a")])[0].attempts for _ in range(2)] == [1, 0]


class Streaming(FakeBackend):
    """Tells each reply as it comes, as API clients do, and is interrupted before the last one."""

    def complete_each(self, requests, tell):
        for i, request in enumerate(requests[:-1]):
            tell(i, Reply(request.messages[-1]["content"]))
        raise KeyboardInterrupt


def test_an_interrupted_call_keeps_what_was_answered(tmp_path):
    cache = SQLiteReplyCache(tmp_path / "r.sqlite")
    with pytest.raises(KeyboardInterrupt):
        CachedBackend(Streaming(shout), cache, ()).complete([ask(f"text {i}") for i in range(200)])
    assert len(cache) == 199


def test_answers_are_written_while_others_are_waited_for_and_not_one_by_one(tmp_path):
    cache, sizes, enough = SQLiteReplyCache(tmp_path / "r.sqlite"), [], threading.Event()

    class Counting:
        get = cache.get

        def put(self, answers):
            sizes.append(len(answers))
            cache.put(answers)
            enough.set()

    class Slow(FakeBackend):
        def complete_each(self, requests, tell):
            replies = [Reply("x") for _ in requests]
            for i, reply in enumerate(replies):
                if i == 150:
                    assert enough.wait(60)
                tell(i, reply)
            return replies

    CachedBackend(Slow(shout), Counting(), ()).complete([ask(f"text {i}") for i in range(200)])
    assert sum(sizes) == len(cache) == 200
    assert sizes[0] <= 150
    assert len(sizes) < 10


def write(path, start):
    cache = SQLiteReplyCache(path)
    for i in range(start, start + 50):
        cache.put({f"key-{i}": Reply(str(i))})


@pytest.mark.deep
def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "r.sqlite"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
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


@pytest.mark.usefixtures("local_mode")
def test_an_answer_that_the_task_cannot_use_is_not_kept(tmp_path):
    answers = iter(["no idea", "no idea"])
    with ChatServer(lambda body: next(answers, '{"label": "good"}')) as server:
        SKLLMConfig.set_gpt_url(server.url)
        SKLLMConfig.set_reply_cache(tmp_path / "replies.sqlite")
        clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
        valid = [clf.predict_details(["q"])["valid"].tolist() for _ in range(4)]
        assert valid == [[False], [False], [True], [True]]
        assert server.n_requests == 3


@pytest.mark.usefixtures("local_mode")
def test_vectorizers_and_dynamic_few_shot_pay_once(tmp_path):
    X, y = ["so good", "so bad", "very good", "very bad"], ["good", "bad"] * 2
    with ChatServer() as server:
        SKLLMConfig.set_gpt_url(server.url)
        SKLLMConfig.set_reply_cache(tmp_path / "replies.sqlite")
        vectorizer = GPTVectorizer(model="custom_url::e")
        first = vectorizer.fit_transform(X)
        n_first = server.n_requests
        np.testing.assert_array_equal(vectorizer.fit_transform(X), first)
        assert server.n_requests == n_first
        clf = DynamicFewShotGPTClassifier(model="custom_url::m", n_examples=1, vectorizer=vectorizer)
        expected = clf.fit(X, y).predict(X)
        n_first = server.n_requests
        np.testing.assert_array_equal(clone(clf).fit(X, y).predict(X), expected)
        assert server.n_requests == n_first
