"""The OpenAI family's backend: the real SDK over real sockets against a scripted server."""

import asyncio
import json
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from skllm_ray.config import RateLimit, SecretRef
from skllm_ray.errors import ConfigurationError, MissingKeyError, SkllmRayWarning
from skllm_ray.llm.api.failures import retry_after_s
from skllm_ray.llm.api.options import freeze_options
from skllm_ray.llm.api.retry_policy import RetryPolicy
from skllm_ray.llm.base import Backend, BackendSpec
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.tasks.base import ChatRequest, Choices
from skllm_ray.testing import ChatServer, StatusFault, WireFault, prompt_of

KEY = "sk-planted-0123456789abcdef"
REF = SecretRef("openai_key", ("SKLLM_TEST_NO_SUCH_KEY",), "0123456789ab")
HASTY = RetryPolicy(timeout_s=5, deadline_s=20, max_tries=5, backoff_s=0.01)
LABELS = Choices(("positive", "negative"))


def spec_for(server, **changes):
    return OpenAISpec(
        **{"api": "openai", "model": "m", "key_ref": REF, "base_url": server.url, "patience": HASTY, **changes}
    )


def ask(text, choices=None, **options):
    system = {"role": "system", "content": "You answer."}
    return ChatRequest((system, {"role": "user", "content": text}), choices, **options)


def complete(spec, requests, key=KEY):
    backend = spec.open(lambda ref: key)
    try:
        return backend.complete(requests)
    finally:
        backend.close()


def scripted(*answers):
    """Give `answers` in turn, and the last one for ever."""
    left, lock = list(answers), threading.Lock()

    def answer(body):
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


def last_text(body):
    return body["messages"][-1]["content"]


def test_replies_keep_the_order_of_the_requests():
    with ChatServer(last_text, latency_s=0.005) as server:
        replies = complete(spec_for(server), [ask(f"text {i}") for i in range(100)])
    assert [reply.text for reply in replies] == [f"text {i}" for i in range(100)]
    assert {(reply.attempts, reply.model, reply.error) for reply in replies} == {(1, "m", None)}
    assert all(reply.usage.prompt_tokens > 0 for reply in replies)
    assert replies[0].log_probs is None


@pytest.mark.parametrize(
    "text", ["naïve café", "👩‍👩‍👧 🎉 emoji", "الخط العربي", 'quotes " \\ \n\t\0', "x" * 100_000, " "]
)
def test_texts_arrive_and_return_unchanged(text):
    with ChatServer(last_text) as server:
        assert complete(spec_for(server), [ask(text)])[0].text == text


def test_no_requests_no_replies():
    with ChatServer() as server:
        assert complete(spec_for(server), []) == []
        assert server.n_requests == 0


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_in_flight_than_declared(concurrency):
    now, most, lock = [0], [0], threading.Lock()

    def answer(body):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.01)
        with lock:
            now[0] -= 1
        return "ok"

    with ChatServer(answer) as server:
        spec = spec_for(server, limit=RateLimit(max_concurrency=concurrency))
        backend = spec.open(lambda ref: KEY)
        calls = [threading.Thread(target=backend.complete, args=([ask("x")] * 6,)) for _ in range(2)]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        backend.close()
    assert most[0] == concurrency


def test_it_works_inside_a_running_event_loop():
    async def notebook_cell(server):
        return complete(spec_for(server), [ask("a"), ask("b")])

    with ChatServer(last_text) as server:
        replies = asyncio.run(notebook_cell(server))
    assert [reply.text for reply in replies] == ["a", "b"]


FAULTS = [
    (StatusFault(400, "no"), "bad_request", 1),
    (StatusFault(400, "too long", "context_length_exceeded", "messages"), "context_length", 1),
    (StatusFault(400, "This model's maximum context length is 10 tokens"), "context_length", 1),
    (StatusFault(400, "filtered", "content_filter"), "content_filter", 1),
    (StatusFault(401, "no"), "authentication", 1),
    (StatusFault(402, "pay"), "insufficient_quota", 1),
    (StatusFault(403, "no"), "permission", 1),
    (StatusFault(404, "no such model", "model_not_found"), "model_not_found", 1),
    (StatusFault(408), "timeout", 5),
    (StatusFault(409), "server_error", 5),
    (StatusFault(413), "context_length", 1),
    (StatusFault(422, "no"), "bad_request", 1),
    (StatusFault(429, "no money", "insufficient_quota"), "insufficient_quota", 1),
    (StatusFault(500), "server_error", 5),
    (StatusFault(503, headers=(("retry-after", "0.001"),)), "server_error", 5),
    (WireFault.DROP, "connection", 5),
    (WireFault.HALF, "connection", 5),
    (WireFault.HTML, "malformed_response", 5),
    (WireFault.MALFORMED_JSON, "malformed_response", 5),
    (WireFault.NO_CHOICES, "malformed_response", 5),
    (WireFault.CONTENT_FILTER, "content_filter", 1),
]


@pytest.mark.parametrize(("fault", "kind", "tries"), FAULTS, ids=str)
def test_every_fault_has_its_kind_and_its_number_of_tries(fault, kind, tries):
    with ChatServer(lambda body: fault) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
        assert server.n_requests == tries
    assert reply.text is None
    assert (reply.error.kind, reply.attempts) == (kind, tries)
    assert reply.error.retryable == (tries > 1)
    assert reply.error.fatal == (kind in {"authentication", "permission", "model_not_found", "insufficient_quota"})
    if isinstance(fault, StatusFault):
        assert str(fault.status) in reply.error.message
        assert fault.message in reply.error.message
        assert (fault.code or "") in reply.error.message


BUSY = StatusFault(429, "slow down", headers=(("retry-after-ms", "1"),))


def test_a_quotas_refusals_count_against_the_rows_time_and_not_against_its_tries():
    with ChatServer(lambda body: BUSY) as server:
        (reply,) = complete(spec_for(server, patience=replace(HASTY, max_tries=1, deadline_s=1)), [ask("x")])
        assert reply.attempts == server.n_requests > 1
    assert (reply.error.kind, reply.error.retryable) == ("rate_limit", True)
    assert "slow down" in reply.error.message


@pytest.mark.parametrize("fault", [BUSY, *(row[0] for row in FAULTS if row[2] > 1)], ids=str)
def test_a_passing_fault_is_tried_again(fault):
    with ChatServer(scripted(fault, fault, "fine")) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.text, reply.attempts, reply.error) == ("fine", 3, None)


def test_nobody_listens():
    with ChatServer() as server:
        pass
    (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.error.kind, reply.attempts) == ("connection", 5)
    assert "ConnectionRefusedError" in reply.error.message or "connect" in reply.error.message.lower()


def test_a_wait_longer_than_the_deadline_is_not_begun():
    with ChatServer(lambda body: StatusFault(429, headers=(("retry-after", "3600"),))) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.error.kind, reply.error.retry_after_s, reply.attempts) == ("rate_limit", 3600, 1)


def test_a_silent_server_runs_into_the_timeout_of_each_try():
    with ChatServer(lambda body: WireFault.SILENCE) as server:
        patience = RetryPolicy(timeout_s=0.1, deadline_s=20, max_tries=2, backoff_s=0.01)
        (reply,) = complete(spec_for(server, patience=patience), [ask("x")])
    assert (reply.error.kind, reply.error.retryable, reply.attempts) == ("timeout", True, 2)


def test_a_silent_server_runs_into_the_deadline_of_the_row():
    with ChatServer(lambda body: WireFault.SILENCE) as server:
        patience = RetryPolicy(timeout_s=20, deadline_s=0.2)
        (reply,) = complete(spec_for(server, patience=patience), [ask("x")])
    assert (reply.error.kind, reply.attempts) == ("timeout", 1)
    assert "0.2 s" in reply.error.message


def test_a_server_that_refuses_and_then_is_silent_is_quoted():
    script = iter([StatusFault(503, "no room", headers=(("retry-after-ms", "1"),))])
    with ChatServer(lambda body: next(script, WireFault.SILENCE)) as server:
        (reply,) = complete(spec_for(server, patience=RetryPolicy(timeout_s=20, deadline_s=0.5)), [ask("x")])
    assert (reply.error.kind, reply.attempts) == ("server_error", 2)
    assert "no room" in reply.error.message


def test_a_fatal_error_ends_the_job_and_keeps_what_was_answered():
    with ChatServer(scripted("one", "two", StatusFault(401, "no"))) as server:
        spec = spec_for(server, limit=RateLimit(max_concurrency=1))
        replies = complete(spec, [ask("x")] * 50)
        assert server.n_requests == 3
    assert [reply.text for reply in replies[:3]] == ["one", "two", None]
    assert replies[2].error.kind == "authentication"
    assert {(reply.error.kind, reply.attempts, reply.error.fatal) for reply in replies[3:]} == {("cancelled", 0, False)}
    assert "HTTP 401" in replies[3].error.message


def test_a_fatal_error_ends_the_waiting_of_the_others():
    def answer(body):
        return StatusFault(500, headers=(("retry-after", "600"),)) if last_text(body) == "slow" else StatusFault(401)

    with ChatServer(answer) as server:
        spec = spec_for(server, patience=replace(HASTY, deadline_s=3600))
        replies = complete(spec, [ask("slow"), ask("x")])
    assert [reply.error.kind for reply in replies] == ["server_error", "authentication"]


def schema_refusal(message, code=None, param=None, only="json_schema"):
    def answer(body):
        form = body.get("response_format", {}).get("type", "plain")
        return StatusFault(400, message, code, param) if form == only or only == "any" != form != "plain" else form

    return answer


@pytest.mark.parametrize(
    ("refusal", "form", "requests"),
    [
        (None, "json_schema", 1),
        (schema_refusal("'json_schema' is not supported", param="response_format.type"), "json_object", 2),
        (schema_refusal("Unrecognized request argument: response_format", only="any"), "plain", 3),
        (schema_refusal("'messages' must contain the word 'json' to use 'response_format'", None, "messages", "any"),
         "plain", 3),
    ],
)  # fmt: skip
def test_the_form_of_the_answer_is_negotiated_once(refusal, form, requests):
    with ChatServer(refusal or (lambda body: body["response_format"]["type"])) as server:
        backend = spec_for(server).open(lambda ref: KEY)
        (first,), (second,) = backend.complete([ask("x", LABELS)]), backend.complete([ask("y", LABELS)])
        backend.close()
        assert server.n_requests == requests + 1
    assert (first.text, first.attempts) == (form, requests)
    assert (second.text, second.attempts) == (form, 1)


def test_the_schema_that_is_sent():
    with ChatServer() as server:
        replies = complete(spec_for(server), [ask("so positive", LABELS), ask("so negative, so bad", LABELS)])
        (body, *_) = [received.body for received in server.received]
    assert [json.loads(reply.text)["label"] for reply in replies] == ["positive", "negative"]
    sent = body["response_format"]["json_schema"]
    assert sent == {"name": "answer", "strict": True, "schema": LABELS.json_schema()}
    assert (body["temperature"], body["model"]) == (0, "m")


def refusing(name, message, param):
    return lambda body: StatusFault(400, message, "unsupported_value", param) if name in body else "fine"


@pytest.mark.parametrize("param", ["temperature", None])
def test_a_refused_parameter_is_left_out_with_one_warning(param):
    message = "Unsupported value: 'temperature' does not support 0 with this model."
    with ChatServer(refusing("temperature", message, param)) as server:
        backend = spec_for(server).open(lambda ref: KEY)
        with pytest.warns(SkllmRayWarning, match="temperature") as caught:
            replies = backend.complete([ask("x")] * 20)
        assert len(caught) == 1
        assert {reply.text for reply in replies} == {"fine"}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (reply,) = backend.complete([ask("y")])
        assert reply.attempts == 1
        backend.close()


class Strict:
    """Answers `good` and refuses some parameters, each with a 400 of its own that is counted."""

    def __init__(self, *names, good="fine", message="Unsupported parameter: '{}'", with_param=True):
        self.names, self.good, self.message, self.with_param = names, good, message, with_param
        self.n_refused, self._lock = 0, threading.Lock()

    def __call__(self, body):
        bad = next((name for name in self.names if name in body), None)
        if bad is None:
            return self.good
        with self._lock:
            self.n_refused += 1
        return StatusFault(400, self.message.format(bad), "unsupported_parameter", bad if self.with_param else None)


def test_a_refusal_costs_one_request_and_not_one_for_every_row_in_flight():
    strict = Strict("temperature", "response_format", "max_completion_tokens", good='{"label": "positive"}')
    with ChatServer(strict, latency_s=0.01) as server:
        spec = spec_for(server)
        first, second = spec.open(lambda ref: KEY), replace(spec, log_probs=True).open(lambda ref: KEY)
        with pytest.warns(SkllmRayWarning) as caught:
            replies = first.complete([ask(f"row {i}", LABELS, max_output_tokens=9) for i in range(64)])
        assert [reply.error for reply in replies] == [None] * 64
        assert strict.n_refused == 4  # json_schema and json_object are two
        assert len({str(one.message) for one in caught}) == len(caught) == 2
        assert all(reply.log_probs for reply in second.complete([ask("x", LABELS, max_output_tokens=9)] * 40))
        assert strict.n_refused == 4  # another backend of the endpoint knows
        first.close()
        second.close()


def test_the_first_of_a_kind_goes_alone_and_the_rest_together():
    seen, first_done, lock = [0], threading.Event(), threading.Lock()

    def answer(body):
        with lock:
            seen[0] += 1
            alone = seen[0] == 1
        if alone:
            threading.Event().wait(0.05)
            assert seen[0] == 1
            first_done.set()
        assert first_done.is_set()
        return "fine"

    with ChatServer(answer, latency_s=0.02) as server:
        assert {reply.text for reply in complete(spec_for(server), [ask("x")] * 20)} == {"fine"}
        assert server.most_in_flight > 1


@pytest.mark.parametrize("fault", [StatusFault(500), StatusFault(429), WireFault.DROP])
def test_a_server_in_trouble_is_asked_by_all_at_once(fault):
    with ChatServer(scripted(fault, "fine"), latency_s=0.02) as server:
        assert {reply.text for reply in complete(spec_for(server), [ask("x")] * 20)} == {"fine"}
        assert server.most_in_flight > 1


def test_a_bad_first_row_does_not_hide_what_the_server_refuses():
    strict = Strict("temperature")

    def answer(body):
        refused = strict(body)
        return (
            StatusFault(400, "I do not like this row") if "poison" in last_text(body) and refused == "fine" else refused
        )

    with ChatServer(answer) as server, pytest.warns(SkllmRayWarning, match="temperature"):
        replies = complete(spec_for(server), [ask("poison")] + [ask("x")] * 40)
    assert [reply.error and reply.error.kind for reply in replies] == ["bad_request"] + [None] * 40
    assert strict.n_refused == 2


def test_a_wrong_key_costs_one_request():
    with ChatServer(lambda body: StatusFault(401, "no")) as server:
        replies = complete(spec_for(server), [ask("x")] * 50)
        assert server.n_requests == 1
    assert [reply.error.kind for reply in replies] == ["authentication"] + ["cancelled"] * 49


@pytest.mark.parametrize("always", [True, False])
def test_a_row_that_speaks_of_formats_teaches_nothing(always):
    """Its own text is at fault, whether or not it is answered without a format."""

    def answer(body):
        poison = "poison" in last_text(body) and (always or "response_format" in body)
        return StatusFault(400, "Refused: json_schema of response_format") if poison else '{"label": "positive"}'

    with ChatServer(answer) as server:
        backend = spec_for(server).open(lambda ref: KEY)
        replies = backend.complete([ask(text, LABELS) for text in ("x", "poison json_schema", *"yz")])
        backend.complete([ask("w", LABELS)])
        backend.close()
        assert server.received[-1].body["response_format"]["type"] == "json_schema"
    assert [reply.error and reply.error.kind for reply in replies] == [
        None,
        "bad_request" if always else None,
        None,
        None,
    ]


def test_what_the_table_says_is_not_tried():
    strict = Strict("temperature")
    with ChatServer(strict) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        complete(spec_for(server, model="gpt-5.4-mini"), [ask("x")] * 3)
        assert strict.n_refused == 0
        own = spec_for(server, model="gpt-5.4-mini", request_options=freeze_options({"temperature": 1}))
        with pytest.warns(SkllmRayWarning, match="temperature"):
            complete(own, [ask("x")])
        complete(spec_for(server, model="o1-mini"), [ask("x")])
        assert [message["role"] for message in server.received[-1].body["messages"]] == ["user"]


NO_SYSTEM = [
    StatusFault(400, "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
                "unsupported_value", "messages[0].role"),
    StatusFault(400, "System role not supported"),
    StatusFault(422, "Template error: System role not supported"),
    StatusFault(400, "Conversation roles must alternate user/assistant/user/assistant/..."),
    StatusFault(400, "Only user and assistant roles are supported!"),
    StatusFault(500, "System role not supported"),
]  # fmt: skip


@pytest.mark.parametrize("fault", NO_SYSTEM, ids=str)
def test_a_model_without_a_system_role_gets_its_text_in_the_first_user_message(fault):
    n_refused = [0]

    def answer(body):
        if body["messages"][0]["role"] == "system":
            n_refused[0] += 1
            return fault
        return last_text(body)

    with ChatServer(answer) as server:
        with pytest.warns(SkllmRayWarning, match="system message") as caught:
            replies = complete(spec_for(server), [ask(f"text {i}") for i in range(20)])
        assert n_refused[0] == len(caught) == 1
    assert [reply.text for reply in replies] == [f"You answer.\n\ntext {i}" for i in range(20)]


def finished(reason, content, **message):
    class Server(ChatServer):
        def _answer_to(self, path, body, key):
            from skllm_ray.testing.chat_http import Response

            choice = {"finish_reason": reason, "message": {"role": "assistant", "content": content, **message}}
            usage = {"prompt_tokens": 3, "completion_tokens": 4}
            return Response(200, json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode())

    return Server()


@pytest.mark.parametrize(
    ("content", "request_", "kind"),
    [
        ("This is half of a summ", ask("x"), "truncated"),
        ("", ask("x"), "truncated"),
        (None, ask("x"), "truncated"),
        (None, ask("x", LABELS), "truncated"),
        ('{"label": "positive"}', ask("x", LABELS), None),
        ('{"label": "posi', ask("x", LABELS), None),  # the task says that it is no answer
        ('{"a": 1}', ask("x", json_schema={"type": "object"}), None),
    ],
)
def test_a_free_text_that_was_cut_off_is_an_error(content, request_, kind):
    with finished("length", content) as server:
        (reply,) = complete(spec_for(server), [request_])
    assert (reply.error and reply.error.kind, reply.attempts, reply.usage.completion_tokens) == (kind, 1, 4)
    assert (reply.text is None) == (kind is not None)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": '{"label": '}, {"type": "text", "text": '"a"}'}], '{"label": "a"}'),
        ([{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}], "a"),
        (["a", "b"], "ab"),
    ],
)
def test_a_content_of_several_parts_is_their_text(content, text):
    with finished("stop", content) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.text, reply.attempts) == (text, 1)


def test_an_options_bad_value_is_an_error_not_a_warning():
    fault = StatusFault(400, "Invalid 'top_p': above the maximum of 1.", "decimal_above_max_value", "top_p")
    with ChatServer(lambda body: fault) as server:
        (reply,) = complete(spec_for(server, request_options=freeze_options({"top_p": 7})), [ask("x")])
        assert server.n_requests == 1
    assert reply.error.kind == "bad_request"


def test_the_token_limit_takes_the_name_that_the_server_knows():
    message = "Unsupported parameter: 'max_completion_tokens'"
    with ChatServer(refusing("max_completion_tokens", message, "max_completion_tokens")) as server:
        with pytest.warns(SkllmRayWarning, match="max_completion_tokens"):
            complete(spec_for(server), [ask("x", max_output_tokens=9)])
        assert server.received[-1].body["max_tokens"] == 9
        complete(spec_for(server, api="custom_url"), [ask("x", max_output_tokens=9)])
        assert server.received[-1].body["max_tokens"] == 9


def test_request_options_override_and_travel():
    options = freeze_options({"temperature": 1, "reasoning_effort": "low", "top_k": 3})
    with ChatServer() as server:
        complete(spec_for(server, request_options=options), [ask("x")])
        body = server.received[-1].body
    assert (body["temperature"], body["reasoning_effort"], body["top_k"]) == (1, "low", 3)


SECRET_TEXT = "my diary of 1987: I never told anyone"


@pytest.mark.parametrize("status", [400, 401, 429, 500])
@pytest.mark.parametrize("text", [SECRET_TEXT, "Eve Ng"])
def test_neither_key_nor_text_stands_in_a_message(status, text):
    def answer(body):
        echoes = f"{prompt_of(body)!r} {json.dumps(body['messages'])} '{text}' \"{text[-25:]}\""
        said = f"{KEY} and sk-proj-other***1234 are bad; we got {echoes}"
        return StatusFault(status, said, headers=(("retry-after-ms", "10"),))

    with ChatServer(answer) as server:
        (reply,) = complete(spec_for(server, patience=replace(HASTY, deadline_s=1)), [ask(text)])
    assert reply.error.message.startswith(f"HTTP {status}: *** and *** are bad; we got")
    for secret in (KEY, KEY[:12], "sk-proj", "diary", "1987", "told anyone", "Eve Ng", "You answer"):
        assert secret not in repr(reply)


def test_an_answer_that_ends_in_half_a_character_is_mended():
    with ChatServer(lambda body: "half \ud83d") as server:
        assert complete(spec_for(server), [ask("x")])[0].text == "half \ufffd"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "2", "retry-after-ms": "30"}, 0.03),
        ({"retry-after": "Fri, 01 Jan 2016 00:00:00 GMT"}, 0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_how_long_the_server_asks_to_wait(headers, seconds):
    assert retry_after_s(headers) == seconds


def test_half_a_surrogate_pair_is_one_rows_error():
    with ChatServer(last_text) as server:
        bad, good = complete(spec_for(server), [ask("secret \ud800"), ask("fine")])
    assert (bad.error.kind, good.text) == ("bad_request", "fine")
    assert "secret" not in bad.error.message


def test_a_spec_pickles_and_shows_no_key(monkeypatch):
    monkeypatch.setenv("SKLLM_TEST_KEY", KEY)
    spec = OpenAISpec(api="openai", model="m", key_ref=SecretRef("openai_key", ("SKLLM_TEST_KEY",)))
    spec.check()
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(replace(spec))
    backend = spec.open(lambda ref: KEY)
    backend.close()
    for shown in (repr(spec), spec.key, str(pickle.dumps(spec)), repr(backend)):
        assert KEY not in shown


def test_the_key_tells_settings_apart():
    with ChatServer() as server:
        spec = spec_for(server)
    others = [
        replace(spec, model="n"),
        replace(spec, base_url="http://localhost/v1"),
        replace(spec, key_ref=replace(REF, fingerprint="another")),
        replace(spec, request_options=freeze_options({"top_p": 1})),
        replace(spec, limit=RateLimit(max_concurrency=2)),
    ]
    assert len({spec.key, *(other.key for other in others)}) == 6
    assert spec.key == replace(spec).key == pickle.loads(pickle.dumps(spec)).key


def no_key(ref):
    raise MissingKeyError("none")


def test_a_custom_url_needs_no_key():
    with ChatServer() as server:
        spec = spec_for(server, api="custom_url", key_ref=replace(REF, fingerprint=""))
        spec.check()
        backend = spec.open(no_key)
        assert backend.complete([ask("x")])[0].text == "ok"
        backend.close()
        with pytest.raises(MissingKeyError):
            spec_for(server).open(no_key)


def test_the_key_is_the_one_that_was_resolved():
    with ChatServer(key=KEY) as server:
        assert complete(spec_for(server), [ask("x")])[0].text == "ok"
        assert complete(spec_for(server), [ask("x")], key="sk-another")[0].error.kind == "authentication"


def test_azure_has_its_own_path_and_header():
    with ChatServer(key=KEY) as server:
        spec = spec_for(server, api="azure", model="my-deployment", base_url=server.root, api_version="2024-10-21")
        spec.check()
        assert complete(spec, [ask("x")])[0].text == "ok"
        (received,) = server.received
    assert received.path == "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"
    assert received.auth == "api-key"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"api": "azure", "base_url": None}, ConfigurationError, "azure_api_base"),
        ({"api": "azure"}, ConfigurationError, "azure_api_version"),
        ({"api": "custom_url", "base_url": None}, ConfigurationError, "gpt_url"),
        ({"base_url": "http://me:secret@host/v1"}, ConfigurationError, "password"),
        ({"key_ref": replace(REF, fingerprint="")}, MissingKeyError, "openai_key"),
        ({"request_options": freeze_options({"stream": True})}, ConfigurationError, "stream"),
    ],
)
def test_check_says_what_is_missing(changes, error, message):
    with ChatServer() as server:
        spec = spec_for(server, **changes)
    with pytest.raises(error, match=message):
        spec.check()


def test_options_that_are_no_json_are_refused():
    with pytest.raises(ConfigurationError, match="logit_bias"):
        freeze_options({"logit_bias": object()})


def test_a_closed_backend_stays_closed():
    with ChatServer() as server:
        backend = spec_for(server).open(lambda ref: KEY)
        assert isinstance(backend, Backend)
        backend.close()
        backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.complete([ask("x")])
    with pytest.raises(RuntimeError, match="closed"):
        backend.embed(["x"])


def test_closing_ends_what_is_in_flight():
    asked = threading.Event()

    def answer(body):
        asked.set()
        return WireFault.SILENCE

    with ChatServer(answer) as server, ThreadPoolExecutor() as pool:
        backend = spec_for(server).open(lambda ref: KEY)
        call = pool.submit(backend.complete, [ask("x")])
        assert asked.wait(10)
        backend.close()
        with pytest.raises(RuntimeError, match="closed"):
            call.result(10)


@pytest.fixture
def _interruptible():
    """Ctrl-C interrupts, even where the tests run in a shell's background, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_stops_asking_and_leaves_the_backend_usable():
    def answer(body):
        if last_text(body) == "long":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return WireFault.SILENCE
        return "ok"

    with ChatServer(answer) as server:
        backend = spec_for(server, limit=RateLimit(max_concurrency=1)).open(lambda ref: KEY)
        with pytest.raises(KeyboardInterrupt):
            backend.complete([ask("long")] * 3)
        assert backend.complete([ask("x")])[0].text == "ok"
        assert server.n_requests == 2
        backend.close()


def test_a_spec_has_what_the_protocol_asks():
    with ChatServer() as server:
        spec: BackendSpec = spec_for(server)
    assert (spec.capabilities.stateful, spec.limit) == (False, None)


def test_a_spec_is_made_without_the_sdk():
    code = """
import sys
import skllm_ray.llm.gpt.clients.openai.spec, skllm_ray.llm.vertex.spec, skllm_ray.testing
assert not {"openai", "google.genai", "ray"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
