"""Embeddings, probabilities, prices and quotas of the OpenAI family, over real sockets."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from skllm_ray.config import Price, RateLimit, SecretRef
from skllm_ray.llm.api.label_probabilities import label_log_probs
from skllm_ray.llm.api.retry_policy import RetryPolicy
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.tasks.base import ChatRequest, Choices
from skllm_ray.testing import ChatServer, StatusFault, WireFault
from skllm_ray.testing.backend import _hashed_words

KEY = "sk-planted-0123456789abcdef"
REF = SecretRef("openai_key", ("SKLLM_TEST_NO_SUCH_KEY",), "0123456789ab")
HASTY = RetryPolicy(timeout_s=5, deadline_s=20, max_tries=5, backoff_s=0.01)


def spec_for(server, **changes):
    return OpenAISpec(
        **{"api": "openai", "model": "m", "key_ref": REF, "base_url": server.url, "patience": HASTY, **changes}
    )


def opened(spec):
    return spec.open(lambda ref: KEY)


def ask(text, labels=None):
    return ChatRequest(({"role": "user", "content": text},), labels and Choices(labels))


def test_embeddings_keep_the_order_and_travel_together():
    texts = [f"text number {i}" for i in range(300)]
    with ChatServer() as server:
        backend = opened(spec_for(server, model="text-embedding-3-small"))
        found = backend.embed(texts)
        backend.close()
        assert server.n_requests == 3
        assert server.received[0].body["encoding_format"] == "base64"
    assert all(np.array_equal(item.vector, _hashed_words(text)) for item, text in zip(found, texts, strict=True))
    total = sum(item.usage.prompt_tokens for item in found)
    assert total == sum(sum(map(len, texts[i : i + 128])) // 4 for i in range(0, 300, 128))
    assert sum(item.usage.cost_usd for item in found) == pytest.approx(total * 0.02 / 1e6)


def test_azure_embeddings_have_their_own_path():
    with ChatServer(key=KEY) as server:
        backend = opened(spec_for(server, api="azure", base_url=server.root, api_version="2024-10-21", model="dep"))
        (item,) = backend.embed(["x"])
        backend.close()
    assert item.vector.shape == (64,)
    assert server.received[0].path == "/openai/deployments/dep/embeddings?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("labels", "expected"), [(("good", "bad"), [0.2, 0.8]), (("good", "bad", "mixed"), [0.1, 0.8, 0.1])]
)
def test_probabilities_come_from_the_answers_tokens(labels, expected):
    with ChatServer() as server:
        backend = opened(spec_for(server, log_probs=True))
        (reply,) = backend.complete([ask("it is bad", labels)])
        backend.close()
        body = server.received[0].body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
    assert np.exp(reply.log_probs) == pytest.approx(expected, abs=1e-6)


def token(text, share, **others):
    top = [{"token": name, "logprob": math.log(value)} for name, value in [(text, share), *others.items()]]
    return {"token": text, "logprob": math.log(share), "top_logprobs": top}


@pytest.mark.parametrize(
    ("tokens", "labels", "expected"),
    [
        ([token('{"label":"', 1), token("very ", 0.6, bad=0.4), token("good", 0.5, bad=0.5), token('"}', 1)],
         ("bad", "very bad", "very good"), [0.4, 0.3, 0.3]),
        ([token('{"label": "', 1), token("a", 1.0), token('"', 0.7, b=0.3), token("}", 1)], ("a", "ab"), [0.7, 0.3]),
        ([token("yes", 0.9, no=0.1)], ("yes", "no"), [0.9, 0.1]),
        ([token('{"label": "', 1), token("p", 0.6, n=0.4), token('os"}', 1.0)],
         ("pos", "neg", "none"), [0.6, 0.2, 0.2]),
        ([token('{"label":"', 1), token("Yes", 0.9, No=0.1), token('"}', 1)], ("yes", "no"), [0.9, 0.1]),
        ([token('{"label":"', 1), token("US", 0.9, us=0.1), token('"}', 1)], ("us", "US"), [0.1, 0.9]),
        ([token("yes", 0.9, no=0.1), token(".", 1)], ("yes", "no"), [0.9, 0.1]),
        ([token(" '", 1), token("yes", 0.9, no=0.1), token("'", 1)], ("yes", "no"), [0.9, 0.1]),
        ([token(".NET", 0.9, Java=0.1)], ("Java", ".NET"), [0.1, 0.9]),
        ([token("etc", 0.9, no=0.1), token(".", 1)], ("etc.", "no"), [0.9, 0.1]),
        ([token('{"label": ', 1), token("3", 0.9, **{"4": 0.1}), token("}", 1)], ("3", "4"), [0.9, 0.1]),
        ([token('{"label": ["', 1), token("yes", 0.9, no=0.1), token('"]}', 1)], ("yes", "no"), [0.9, 0.1]),
        ([token('{"label":"y', 0.8, **{'{"label": "n': 0.2}), token("es", 1.0), token('"}', 1)],
         ("yes", "no"), [0.8, 0.2]),
        ([token('<think>"label": "no"? Not.</think>{"label":"', 1), token("yes", 0.9, no=0.1), token('"}', 1)],
         ("yes", "no"), [0.9, 0.1]),
        ([token('```json\n{"label": "', 1), token("yes", 0.9, no=0.1), token('"}\n```', 1)], ("yes", "no"), [0.9, 0.1]),
        ([token('{"label": "', 1), token('say \\"', 0.9, no=0.1), token('a\\""}', 1)], ('say "a"', "no"), [0.9, 0.1]),
        ([token('{"label": "', 1), {**token("\\xc3", 0.9, no=0.1), "bytes": [0xC3]},
          {**token("\\xbc", 1.0), "bytes": [0xBC]}, token('"}', 1)], ("ü", "no"), [0.9, 0.1]),
    ],
)  # fmt: skip
def test_the_probabilities_of_labels_in_several_tokens(tokens, labels, expected):
    assert np.exp(label_log_probs(tokens, labels)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("answer", ['{"label": "maybe"}', "no idea", "", '{"label": "ye', '{"answer": "yes"}', "ye"])
def test_an_answer_that_is_no_label_has_no_probabilities(answer):
    assert label_log_probs([token(answer, 0.9, yes=0.1)], ("yes", "no")) is None


class WithoutLogProbs(ChatServer):
    """Ignores that it is asked for log probabilities, as some servers do."""

    def _answer_to(self, path, body, key):
        return super()._answer_to(path, {**body, "logprobs": False}, key)


@pytest.mark.parametrize("server", [ChatServer(log_probs=False), WithoutLogProbs()], ids=["refuses", "ignores"])
def test_a_server_without_log_probabilities_is_said_to_have_none(server):
    with server:
        backend = opened(spec_for(server, log_probs=True))
        replies = backend.complete([ask("x", ("a", "b"))] * 5)
        assert server.n_requests <= 2
        asked = server.n_requests
        told = []
        again = backend.complete_each([ask("x", ("a", "b"))] * 5, lambda i, reply: told.append(i))
        assert server.n_requests == asked
        backend.close()
    assert replies[0].error.kind == "not_supported"
    assert replies[0].error.fatal
    assert "predict_proba" in replies[0].error.message
    assert {(reply.error.kind, reply.attempts) for reply in again} == {("not_supported", 0)}
    assert told == list(range(5))


def test_one_rows_refusal_of_log_probabilities_is_not_the_servers():
    def answer(body):
        poison = "poison" in body["messages"][-1]["content"] and "logprobs" in body
        return StatusFault(400, "logprobs are not supported here") if poison else '{"label": "a"}'

    with ChatServer(answer) as server:
        backend = opened(spec_for(server, log_probs=True))
        good, bad, *rest = backend.complete([ask(text, ("a", "b")) for text in ("x", "poison", "y", "z")])
        backend.close()
    assert (bad.error.kind, bad.error.fatal, bad.attempts) == ("malformed_response", False, 2)
    assert all(reply.log_probs for reply in (good, *rest))


def test_log_probabilities_of_another_answer_are_an_error():
    class Confused(ChatServer):
        def _answer_to(self, path, body, key):
            found = super()._answer_to(path, body, key)
            return replace(found, body=found.body.replace(b'"token": "', b'"token": "not '))

    with Confused() as server:
        backend = opened(spec_for(server, log_probs=True))
        (reply,) = backend.complete([ask("it is bad", ("good", "bad"))])
        backend.close()
    assert (reply.error.kind, reply.log_probs) == ("malformed_response", None)


@pytest.mark.parametrize(
    ("changes", "price"),
    [
        ({"model": "gpt-4o-mini"}, Price(0.15, 0.6)),
        ({"model": "gpt-4o-mini-2024-07-18"}, Price(0.15, 0.6)),
        ({"model": "gpt-4o-mini", "request_options": {"service_tier": "flex"}}, None),
        ({"model": "gpt-4o-mini", "api": "custom_url"}, None),
        ({"model": "mine", "api": "custom_url", "price": Price(1, 2)}, Price(1, 2)),
        ({"model": "unknown"}, None),
    ],
)
def test_what_a_row_costs(changes, price):
    with ChatServer(lambda body: "y" * 40) as server:
        backend = opened(spec_for(server, **changes))
        (reply,) = backend.complete([ask("x" * 80)])
        backend.close()
    expected = None if price is None else pytest.approx((20 * price.input + 10 * price.output) / 1e6)
    assert reply.usage.cost_usd == expected


def test_a_declared_rate_is_kept_and_no_429_is_caused():
    with ChatServer(requests_per_minute=600) as server:
        backend = opened(spec_for(server, limit=RateLimit(requests_per_minute=600)))
        started = time.monotonic()
        replies = backend.complete([ask("x")] * 30)
        took_s = time.monotonic() - started
        backend.close()
        assert (server.n_refused, server.n_requests) == (0, 30)
    assert all(reply.error is None for reply in replies)
    assert took_s > 1.8  # ten a second, and ten at once


def test_a_429_pauses_all_and_is_not_the_end_of_a_row():
    with ChatServer(requests_per_minute=1000) as server:
        refuse = iter([True] * 3)
        server.answer = lambda body: (
            StatusFault(429, headers=(("retry-after-ms", "300"),)) if next(refuse, False) else "fine"
        )
        backend = opened(spec_for(server))
        replies = backend.complete([ask("x")] * 64)
        backend.close()
        assert server.n_requests <= 64 + 3
    assert {reply.text for reply in replies} == {"fine"}


def test_every_good_row_of_a_bad_day_is_delivered_and_every_bad_row_typed():
    seen = {}

    def answer(body):
        number = int(body["messages"][-1]["content"].split()[-1])
        if number % 100 == 7:
            return StatusFault(400, "refused", "invalid_request")
        seen[number] = seen.get(number, 0) + 1
        if number % 20 == 3 and seen[number] == 1:
            return [WireFault.DROP, WireFault.HALF, WireFault.MALFORMED_JSON, StatusFault(500)][number // 20 % 4]
        return f"answer {number}"

    with ChatServer(answer) as server:
        backend = opened(spec_for(server))
        replies = backend.complete([ask(f"row {i}") for i in range(1000)])
        backend.close()
    bad = [i for i, reply in enumerate(replies) if reply.error is not None]
    assert bad == list(range(7, 1000, 100))
    assert {replies[i].error.kind for i in bad} == {"bad_request"}
    assert all(reply.text == f"answer {i}" for i, reply in enumerate(replies) if reply.error is None)


def test_embeddings_split_a_part_that_holds_a_refused_text():
    class Picky(ChatServer):
        def _answer_to(self, path, body, key):
            from skllm_ray.testing.chat_http import error_response

            if any(len(text) > 100 for text in body["input"]):
                return error_response(StatusFault(400, "too long", "context_length_exceeded", "input"))
            return super()._answer_to(path, body, key)

    texts = ["x y"] * 10 + ["z" * 101] + ["x y"] * 10
    with Picky() as server:
        backend = opened(replace(spec_for(server)))
        found = backend.embed(texts)
        backend.close()
    assert [i for i, item in enumerate(found) if item.error is not None] == [10]
    assert found[10].error.kind == "context_length"
    assert all(item.vector is not None for i, item in enumerate(found) if i != 10)
