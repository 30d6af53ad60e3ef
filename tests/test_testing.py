"""The fakes that ship with the package."""

import json
import math
import pickle
import socket
import struct
import time
from http.client import BadStatusLine, IncompleteRead, RemoteDisconnected
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from skllm_ray import testing
from skllm_ray.llm.base import Backend, BackendSpec
from skllm_ray.tasks.base import ChatRequest, Choices, RowError
from skllm_ray.testing import (
    ChatServer,
    FakeBackend,
    FakeSpec,
    LabelAnswer,
    Received,
    StatusFault,
    WireFault,
    prompt_of,
)
from skllm_ray.testing.batch_server import BatchFault, BatchServer


def body_for(text, choices=None):
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    if choices:
        form = {"type": "json_schema", "json_schema": {"schema": choices.json_schema()}}
        body["response_format"] = form
    return body


def post(url, body, **headers):
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json", **headers})  # noqa: S310
    with urlopen(request, timeout=10) as response:  # noqa: S310
        return json.load(response)


def chat(server, body, **headers):
    return post(f"{server.url}/chat/completions", body, **headers)["choices"][0]["message"]["content"]


def test_every_exported_name_exists():
    assert all(hasattr(testing, name) for name in testing.__all__)
    assert testing.__all__ == sorted(testing.__all__)


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (Choices(("good", "bad", "mixed")), {"label": "bad"}),
        (Choices(("good", "bad", "mixed"), multiple=True, max_labels=2), {"label": ["bad"]}),
    ],
)
def test_the_default_answer_is_the_label_that_the_prompt_names_most(choices, answer):
    with ChatServer() as server:
        assert json.loads(chat(server, body_for("Labels: good, bad, mixed. Text: a Bad day", choices))) == answer
        assert chat(server, body_for("hello")) == "ok"


def test_a_scripted_answer_may_have_probabilities():
    shares = {"good": 0.25, "bad": 0.7, "mixed": 0.05}
    body = body_for("a day", Choices(("good", "bad", "mixed"))) | {"logprobs": True, "top_logprobs": 20}
    with ChatServer(lambda body: LabelAnswer(shares)) as server:
        told = post(f"{server.url}/chat/completions", body)["choices"][0]
        assert json.loads(chat(server, body_for("without"))) == {"label": "bad"}
    assert json.loads(told["message"]["content"]) == {"label": "bad"}
    _, label, _ = told["logprobs"]["content"]
    assert label["token"] == "bad"
    assert {top["token"]: math.exp(top["logprob"]) for top in label["top_logprobs"]} == pytest.approx(shares)


def test_it_counts_and_records_but_keeps_no_key():
    with ChatServer() as server:
        chat(server, body_for("a"), authorization="Bearer sk-planted")
        post(f"{server.root}/openai/deployments/d/chat/completions?api-version=1", body_for("b"), **{"api-key": "sk-x"})
        chat(server, body_for("c"))
        assert server.n_requests == 3
    assert [(received.path, received.auth) for received in server.received] == [
        ("/v1/chat/completions", "authorization"),
        ("/openai/deployments/d/chat/completions?api-version=1", "api-key"),
        ("/v1/chat/completions", None),
    ]
    assert server.received[0] == Received("/v1/chat/completions", body_for("a"), "authorization")
    assert "sk-" not in repr(server.received) + repr(vars(server))


def test_it_speaks_vertex_too():
    with ChatServer(prompt_of) as server:
        body = {"systemInstruction": {"parts": [{"text": "S"}]}, "contents": [{"parts": [{"text": "U"}]}]}
        answer = post(f"{server.root}/v1beta1/projects/p/locations/l/publishers/google/models/m:generateContent", body)
    assert answer["candidates"][0]["content"]["parts"][0]["text"] == "S\nU"


def test_it_lists_a_model():
    with ChatServer() as server, urlopen(f"{server.url}/models", timeout=10) as reply:  # noqa: S310
        assert json.load(reply)["data"][0]["object"] == "model"


def test_its_quota_is_a_sliding_window_with_the_apis_headers():
    with ChatServer(requests_per_minute=3) as server:
        left = []
        for _ in range(3):
            request = Request(f"{server.url}/chat/completions", json.dumps(body_for("x")).encode())  # noqa: S310
            with urlopen(request, timeout=10) as response:  # noqa: S310
                left.append(response.headers["x-ratelimit-remaining-requests"])
        with pytest.raises(HTTPError, match="429") as caught:
            chat(server, body_for("x"))
        assert left == ["2", "1", "0"]
        assert 0 < int(caught.value.headers["retry-after-ms"]) <= 60_001
        assert (server.n_refused, server.most_in_window) == (1, 3)


def test_its_token_quota_counts_prompt_and_answer():
    with ChatServer(lambda body: "y" * 40, tokens_per_minute=45) as server:
        chat(server, body_for("x" * 40))
        chat(server, body_for("x" * 40))
        with pytest.raises(HTTPError, match="429"):
            chat(server, body_for("x" * 40))
        assert server.most_tokens_in_window == 40


def test_it_embeds_and_gives_log_probabilities():
    with ChatServer() as server:
        found = post(f"{server.url}/embeddings", {"model": "e", "input": ["a b", "b a"]})
        assert found["data"][0]["embedding"] == found["data"][1]["embedding"]
        body = body_for("so bad", Choices(("good", "bad"))) | {"logprobs": True}
        choice = post(f"{server.url}/chat/completions", body)["choices"][0]
    assert "".join(token["token"] for token in choice["logprobs"]["content"]) == choice["message"]["content"]


def test_a_status_fault_has_the_apis_own_form():
    fault = StatusFault(429, "slow down", "rate_limit_exceeded", "p", (("retry-after-ms", "5"),))
    with ChatServer(lambda body: fault) as server, pytest.raises(HTTPError) as caught:
        chat(server, body_for("x"))
    assert (caught.value.code, caught.value.headers["retry-after-ms"]) == (429, "5")
    error = json.load(caught.value)["error"]
    assert (error["message"], error["code"], error["param"]) == ("slow down", "rate_limit_exceeded", "p")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (WireFault.DROP, (RemoteDisconnected, ConnectionError)),
        (WireFault.HALF, (IncompleteRead, ConnectionError, BadStatusLine)),
        (WireFault.HTML, json.JSONDecodeError),
        (WireFault.MALFORMED_JSON, json.JSONDecodeError),
        (WireFault.NO_CHOICES, IndexError),
    ],
)
def test_wire_faults(fault, error):
    with ChatServer(lambda body: fault) as server, pytest.raises(error):
        chat(server, body_for("x"))


def test_silence_ends_with_the_server():
    with ChatServer(lambda body: WireFault.SILENCE) as server, pytest.raises(TimeoutError):
        urlopen(Request(f"{server.url}/chat/completions", b"{}"), timeout=0.1)  # noqa: S310


@pytest.mark.parametrize("key", ["Bearer right", "Bearer wrong"])
def test_it_can_insist_on_a_key(key):
    with ChatServer(key="right") as server:
        if key.endswith("right"):
            assert chat(server, body_for("x"), authorization=key) == "ok"
        else:
            with pytest.raises(HTTPError, match="401"):
                chat(server, body_for("x"), authorization=key)


def test_an_unknown_path_is_a_404():
    with ChatServer() as server, pytest.raises(HTTPError, match="404"):
        post(f"{server.url}/audio", {})


def shout(request):
    text = request.messages[-1]["content"]
    return RowError("bad_request", "empty") if not text else text.upper()


def ask(text):
    return ChatRequest(({"role": "user", "content": text},))


def test_a_fake_backend_answers_as_its_function_says():
    backend = FakeBackend(shout)
    assert isinstance(backend, Backend)
    good, bad = backend.complete([ask("yes"), ask("")])
    assert (good.text, good.error, good.model) == ("YES", None, "fake")
    assert (bad.text, bad.error.kind) == (None, "bad_request")
    assert backend.n_requests == 2
    one, same, other = (item.vector for item in backend.embed(["a b", "b a", "c d"]))
    assert one @ same == pytest.approx(1) and one @ other < 0.9
    backend.close()
    assert backend.closed


def test_a_fake_spec_travels_and_keeps_its_key():
    spec: BackendSpec = FakeSpec(shout, batch_size=7, latency_s=0.001)
    there = pickle.loads(pickle.dumps(spec))
    assert there == spec
    assert (there.key, there.batch_size, there.limit, there.model) == (spec.key, 7, None, "fake")
    there.check()
    assert there.open(lambda ref: "").complete([ask("a")])[0].text == "A"
    assert FakeSpec(shout).key != FakeSpec(shout).key


# --- embeddings, Vertex AI, and scripts that go wrong -----------------------------------------------------------------


EMBEDDINGS = [
    ("/v1/embeddings", {"model": "e", "input": ["a b"]}),
    ("/v1beta1/projects/p/models/e:embedContent", {"content": {"parts": [{"text": "a b"}]}}),
    ("/v1beta1/projects/p/models/e:predict", {"instances": [{"content": "a b"}]}),
]


@pytest.mark.parametrize(("path", "body"), EMBEDDINGS)
def test_faults_are_scripted_for_embeddings_too(path, body):
    faults = iter([StatusFault(503, "later"), WireFault.DROP, WireFault.MALFORMED_JSON, WireFault.NO_CHOICES])
    asked = []

    def answer(body):
        asked.append(prompt_of(body))
        return next(faults, "ignored")

    with ChatServer(answer) as server:
        for error in (HTTPError, (RemoteDisconnected, ConnectionError), json.JSONDecodeError):
            with pytest.raises(error):
                post(server.root + path, body)
        assert not any(next(iter(part.values()), None) for part in [post(server.root + path, body)])
        assert post(server.root + path, body) != {}
    assert asked == ["a b"] * 5


@pytest.mark.parametrize("path", ["/v1/chat/completions", *(path for path, _ in EMBEDDINGS)])
@pytest.mark.parametrize("sent", [b"no JSON", b"[]", b"null", b"\xff"])
def test_a_body_that_is_no_object_is_refused(path, sent):
    with ChatServer() as server, pytest.raises(HTTPError, match="400"):
        urlopen(Request(server.root + path, sent), timeout=10)  # noqa: S310


def test_a_script_that_raises_is_told_to_who_asked_for_a_chat(capfd):
    def answer(body):
        raise ZeroDivisionError("a mistake")

    with ChatServer(answer) as server:
        with pytest.raises(HTTPError, match="500") as caught:
            chat(server, body_for("x"))
        for path, body in EMBEDDINGS:  # a script for chats leaves embeddings alone
            assert post(server.root + path, body)
    assert json.load(caught.value)["error"]["message"] == "The script raised ZeroDivisionError: a mistake"
    assert capfd.readouterr().err == ""


ODD_ANSWERS = [
    '{"label": ["odd"]}', '{"label": 7}', "{broken", "{}", "[]", "", "odd", '{"label": ""}', "null",
    '{"label": "größe"}',
]  # fmt: skip


@pytest.mark.parametrize("answer", ODD_ANSWERS)
@pytest.mark.parametrize("labels", [("even", "odd"), ("only",), ("größe", "odd")])
@pytest.mark.parametrize("escaped", [False, True])
def test_any_scripted_answer_has_log_probabilities(answer, labels, escaped):
    text = answer.encode("ascii", "backslashreplace").decode().replace("\\x", "\\u00") if escaped else answer
    with ChatServer(lambda body: text) as server:
        choice = post(f"{server.url}/chat/completions", body_for("x", Choices(labels)) | {"logprobs": True})
    (choice,) = choice["choices"]
    assert "".join(token["token"] for token in choice["logprobs"]["content"]) == choice["message"]["content"] == text


GENERATE = "/v1beta1/projects/p/locations/l/publishers/google/models/m:generateContent"


@pytest.mark.parametrize("offered", [True, False])
def test_vertex_gives_log_probabilities_too(offered):
    config = {"responseLogprobs": True, "logprobs": 5, "responseJsonSchema": Choices(("good", "bad")).json_schema()}
    body = {"contents": [{"parts": [{"text": "so bad"}]}], "generationConfig": config}
    with ChatServer(log_probs=offered) as server:
        if not offered:
            with pytest.raises(HTTPError, match="400"):
                post(server.root + GENERATE, body)
            return
        (candidate,) = post(server.root + GENERATE, body)["candidates"]
    told = candidate["logprobsResult"]
    assert "".join(token["token"] for token in told["chosenCandidates"]) == candidate["content"]["parts"][0]["text"]
    tops = [
        {one["token"]: math.exp(one["logProbability"]) for one in top["candidates"]} for top in told["topCandidates"]
    ]
    assert {"bad": pytest.approx(0.8), "good": pytest.approx(0.2)} in tops


@pytest.mark.parametrize(
    ("reserve", "limits", "fits"),
    [(False, {"max_completion_tokens": 80}, True), (True, {"max_completion_tokens": 80}, False),
     (True, {"max_tokens": 80}, False), (True, {}, True)],
)  # fmt: skip
def test_a_token_quota_may_charge_what_a_request_reserves(reserve, limits, fits):
    with ChatServer(lambda body: "y" * 40, tokens_per_minute=45, reserve_output=reserve) as server:
        if fits:
            chat(server, body_for("x" * 40) | limits)
            assert server.most_tokens_in_window == 20
        else:
            with pytest.raises(HTTPError, match="429"):
                chat(server, body_for("x" * 40) | limits)


def test_a_client_that_resets_its_connection_leaves_no_traceback(capfd):
    with ChatServer() as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        for sent in (b"", b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 10\r\n\r\n"):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(sent)
            time.sleep(0.1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        time.sleep(0.3)
        assert "Traceback" not in capfd.readouterr().err
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: ten\r\n\r\n")
        time.sleep(0.3)
        assert "ValueError" in capfd.readouterr().err  # any other fault of a handler is told as ever
        client.close()


def test_the_batch_server_answers_lines_as_requests_and_keeps_the_bill():
    lines = [
        {
            "custom_id": str(i), "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": f"number {i}"}]},
        }
        for i in range(10)
    ]  # fmt: skip
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    with BatchServer(lambda body: prompt_of(body).upper()) as server:
        server.batch_faults.append(BatchFault.EXPIRED)
        client = openai.OpenAI(base_url=server.url, api_key="x", max_retries=0)
        file = client.files.create(file=("a.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"key": "k"}
        )
        while batch.status not in {"completed", "expired"}:
            batch = client.batches.retrieve(batch.id)
        told = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        unrun = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
        direct = client.chat.completions.create(model="m", messages=lines[0]["body"]["messages"])
        texts = [one["response"]["body"]["choices"][0]["message"]["content"] for one in told]
    assert texts == [f"NUMBER {one['custom_id']}" for one in told]
    assert direct.choices[0].message.content == "NUMBER 0"
    assert {one["error"]["code"] for one in unrun} == {"batch_expired"}
    assert sorted(one["custom_id"] for one in [*told, *unrun]) == sorted(map(str, range(10)))
    assert server.bill.requests == {"batch": 5, "standard": 1}
    assert server.bill.usd(1.0, 1.0) == pytest.approx((5 * 0.5 * (2 + 2) + 4) / 1e6)
