"""Odd answers and refusals: each costs its own row, and no more."""

import base64
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from skllm_ray.config import RateLimit
from skllm_ray.errors import MissingKeyError
from skllm_ray.llm.api.embeddings import in_parts, read
from skllm_ray.llm.api.failures import failure, retry_after_s, row_error, wait_in
from skllm_ray.llm.api.response_body import UnreadableError
from skllm_ray.llm.api.server_message import Told
from skllm_ray.tasks.base import Embedding
from skllm_ray.testing import ChatServer
from tests.llm.gpt.clients.openai.test_chat import KEY, ask, complete, spec_for


class RawServer:
    """A server that answers a request's body with a status, a content type and bytes, whatever they are."""

    def __init__(self, answer):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers, content = answer(body)
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self._http = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self):
        Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._http.shutdown()
        self._http.server_close()


def chat(text="fine", **changes):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps({"model": "m", "choices": [choice], **changes}).encode()


def test_a_date_beyond_all_calendars_is_no_date():
    for date in ("Fri, 31 Dec 99999999999 23:59:59 GMT", "Fri, 31 Dec 9999 99:99:99 GMT", "1e400", ""):
        assert retry_after_s({"retry-after": date}) is None


@pytest.mark.parametrize(
    "odd", [12.5, "12", 10**25, -7, [], {}, "many", True, float("nan"), {"prompt_tokens": 1}], ids=str
)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "usage", "cached"])
def test_an_odd_usage_costs_no_row(name, odd):
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    usage |= {"prompt_tokens_details": {"cached_tokens": odd}} if name == "cached" else {name: odd}
    with RawServer(lambda body: (200, {}, chat(usage=odd if name == "usage" else usage))) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.text, reply.error) == ("fine", None)
    counts = (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.cached_tokens)
    assert all(type(count) is int and 0 <= count <= 12 for count in counts)


@pytest.mark.parametrize("content", [b'{"choices": \xff}', b"\xff\xfe", b'{"a": "\xc3'])
def test_an_answer_that_is_no_text_is_asked_again(content):
    answers = iter([(200, {}, content)])
    with RawServer(lambda body: next(answers, (200, {}, chat()))) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.text, reply.attempts) == ("fine", 2)


HTML = {"content-type": "text/html"}


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize(("headers", "content"), [(HTML, b"<html>Blocked</html>"), ({}, b'{"message": "Forbidden"}')])
def test_a_gateways_refusal_of_one_text_costs_one_row(status, headers, content):
    def answer(body):
        poison = "DROP TABLE" in body["messages"][-1]["content"]
        return (status, headers, content) if poison else (200, {}, chat())

    texts = ["'; DROP TABLE users", *(f"row {i}" for i in range(60)), "DROP TABLE"]
    with RawServer(answer) as server:
        replies = complete(spec_for(server), [ask(text) for text in texts])
    assert [reply.error is None for reply in replies] == [False, *[True] * 60, False]
    assert not replies[0].error.fatal
    assert f"HTTP {status}" in replies[0].error.message


@pytest.mark.parametrize(("headers", "content"), [(HTML, b"<html>Sign in</html>"), ({}, b'{"message": "Forbidden"}')])
def test_a_gateway_that_refuses_everything_ends_the_job(headers, content):
    asked = []
    with RawServer(lambda body: (asked.append(1), (403, headers, content))[1]) as server:
        spec = spec_for(server, limit=RateLimit(max_concurrency=4))
        replies = complete(spec, [ask(f"row {i}") for i in range(100)])
    assert {reply.error.kind for reply in replies} == {"permission", "cancelled"}
    assert 20 <= len(asked) < 30


@pytest.mark.parametrize(
    "content",
    [
        b'{"error": {"message": "no", "type": "invalid_request_error"}}',
        b'{"error": "model not found"}',
        b'{"error": {"message": "no"}}',
        b'{"object": "error", "message": "no", "code": 404}',
        b'{"detail": "no"}',
        b'{"statusCode": 401, "message": "Access denied due to invalid subscription key."}',
    ],
)
def test_the_apis_own_refusal_ends_the_job_at_once(content):
    with RawServer(lambda body: (404, {}, content)) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert reply.error.fatal


def test_what_a_server_says_is_shown_without_the_text_and_the_key():
    said = {"error": {"message": f"invalid input: MY PIN 4711 for {KEY[:-2]}", "code": "my pin 4711", "type": "t"}}
    with RawServer(lambda body: (400, {}, json.dumps(said).encode())) as server:
        (reply,) = complete(spec_for(server), [ask("my pin 4711")])
    assert re.fullmatch(r"HTTP 400: invalid input: \[…\] for \*\*\* \[http://127.0.0.1:\d+/v1\]", reply.error.message)


@pytest.mark.parametrize("api", ["openai", "azure", "custom_url"])
def test_a_key_that_changed_is_looked_up_again(api):
    valid, read = ["sk-old-0123456789"], []

    def resolve(reference):
        read.append(reference)
        return valid[0]

    with ChatServer() as server:
        server._key = valid[0]
        url = server.root if api == "azure" else server.url
        spec = spec_for(server, api=api, base_url=url, api_version="v")
        backend = spec.open(resolve)
        assert backend.complete([ask("x")])[0].text == "ok"
        server._key = valid[0] = "sk-new-0123456789"
        replies = backend.complete([ask("x")] * 40)
        assert {reply.text for reply in replies} == {"ok"}
        assert {reply.attempts for reply in replies} == {1}
        assert len(read) == 2  # once for all
        server._key = "sk-nobody-knows-it"
        assert backend.complete([ask("x")])[0].error.kind == "authentication"
        backend.close()


def test_a_key_that_is_wrong_for_good_ends_the_job():
    read = []

    def resolve(reference):
        read.append(1)
        if len(read) > 1:
            raise MissingKeyError("gone")
        return KEY

    with ChatServer(key="sk-other") as server:
        backend = spec_for(server).open(resolve)
        replies = backend.complete([ask("x")] * 100)
        backend.close()
        assert server.n_requests < 100
    assert {reply.error.kind for reply in replies} == {"authentication", "cancelled"}
    assert len(read) == 2


# --- vectors ------------------------------------------------------------------------------------------------------


def vectors_of(rows):
    return {"model": "e", "data": [{"index": i, "embedding": row} for i, row in enumerate(rows)], "usage": None}


def as_base64(*numbers):
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


GOOD = [[1.0, 0.0], [0.0, 2.0], [3.0, 0.5]]


@pytest.mark.parametrize(
    "answer",
    [
        vectors_of(GOOD),
        vectors_of([as_base64(*row) for row in GOOD]),
        {"data": [{"index": i, "embedding": GOOD[i]} for i in (2, 0, 1)], "usage": "odd"},
        {"data": [{"embedding": row} for row in GOOD]},
        {"data": [{"index": None, "embedding": row} for row in GOOD], "usage": {"prompt_tokens": "x"}},
    ],
)
def test_vectors_come_in_several_forms(answer):
    np.testing.assert_array_equal(read(answer, 3).vector, GOOD)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"data": None},
        {"data": ["x", "y", "z"]},
        {"data": [None] * 3},
        {"data": [{"index": -1 - i, "embedding": row} for i, row in enumerate(GOOD)]},
        {"data": [{"index": i + 7, "embedding": row} for i, row in enumerate(GOOD)]},
        {"data": [{"index": 0, "embedding": row} for row in GOOD]},
        {"data": [{"index": "a", "embedding": row} for row in GOOD]},
        {"data": [{"index": float("inf"), "embedding": row} for row in GOOD]},
        {"data": [{"index": i} for i in range(3)]},
        vectors_of([None] * 3),
        vectors_of([[]] * 3),
        vectors_of([1.0] * 3),
        vectors_of(["AAAAA"] * 3),
        vectors_of(["ÄÖ"] * 3),
        vectors_of([{}] * 3),
        vectors_of([[[[1.0]]]] * 3),
        vectors_of(GOOD[:2]),
        vectors_of([*GOOD, [0.0, 0.0]]),
    ],
)
def test_an_odd_answer_without_good_vectors_is_an_error(answer):
    try:
        found = read(answer, 3)
    except UnreadableError:
        return
    assert (found.vector, found.error.kind) == (None, "malformed_response")


@pytest.mark.parametrize(
    "odd", [[float("nan")], [1.0, float("nan")], [float("inf")], ["x"], [10**400], None, [], "AAAAA"]
)
def test_an_odd_vector_costs_its_own_text_alone(odd):
    def send(parts):
        return [read(vectors_of([odd if text == "odd" else [1.0] for text in part]), len(part)) for part in parts]

    asked = []
    found = in_parts(["a", "odd", "b", "c"], lambda parts: (asked.extend(parts), send(parts))[1])
    assert [one.error and one.error.kind for one in found] == [None, "malformed_response", None, None]
    assert len(asked) == 1


def test_too_few_vectors_are_asked_for_in_halves():
    asked = []

    def send(parts):
        asked.extend(parts)
        return [read(vectors_of([[1.0, len(text)] for text in part if text][:2]), len(part)) for part in parts]

    found = in_parts(["a", "bb", "", "cccc", "ddddd"], send)
    assert [embedding.error is None for embedding in found] == [True, True, False, True, True]
    assert found[4].vector.tolist() == [1.0, 5.0]
    assert len(asked) == len(set(asked))  # no part was asked for twice


def test_an_outage_is_not_asked_about_in_halves():
    asked = []

    def send(parts):
        asked.extend(parts)
        return [Embedding(error=row_error("server_error", "no")) for _ in parts]

    assert {embedding.error.kind for embedding in in_parts(["a"] * 100, send)} == {"server_error"}
    assert len(asked) < 64


def test_one_text_without_a_finite_vector_costs_one_row():
    def answer(body):
        rows = [[float("nan")] if text == "bad" else [1.0] for text in body["input"]]
        return 200, {}, json.dumps(vectors_of(rows)).encode()

    with RawServer(answer) as server:
        backend = spec_for(server).open(lambda ref: KEY)
        found = backend.embed(["a", "b", "bad", "c"])
        backend.close()
    assert [embedding.error is None for embedding in found] == [True, True, False, True]


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached. Please try again in 1.398s. Visit https://x", 1.398),
        ("Please try again in 6m0s.", 360.0),
        ("Please retry after 26 seconds.", 26.0),
        ("Retry in 1 hour 2 minutes", 3720.0),
        ("wait for 500 milliseconds", 0.5),
        ("Limit 30000, Used 29000, Requested 1500. Try again later in 2027.", None),
        ("try again in the morning", None),
        ("", None),
    ],
)
def test_a_wait_in_a_message_is_read(message, seconds):
    assert wait_in(message) == (None if seconds is None else pytest.approx(seconds))


def test_headers_say_it_first_and_other_failures_say_nothing():
    told = Told(message="Please try again in 20s.")
    assert failure(429, told, {}, str, "").retry_after_s == 20.0
    assert failure(429, told, {"retry-after": "3"}, str, "").retry_after_s == 3.0
    assert failure(500, told, {}, str, "").retry_after_s is None
