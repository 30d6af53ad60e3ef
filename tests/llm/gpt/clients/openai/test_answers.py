"""What an answer with a good status becomes: whatever it is, one kind, decided once. Real sockets, both forms."""

import gzip
import json
import resource
import time
import zlib
from dataclasses import replace

import pytest

from skllm_ray.config import RateLimit
from skllm_ray.llm.api.server_message import Told, kind_of, never_fits, told_in
from skllm_ray.tasks.base import ChatRequest, Choices
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault
from tests.llm.gpt.clients.openai.test_chat import HASTY, KEY, LABELS, ask, complete, spec_for
from tests.llm.vertex.test_chat import TOKEN
from tests.llm.vertex.test_chat import spec_for as vertex_spec_for

JSON = ("content-type", "application/json")


def opened(spec):
    return spec.open(lambda ref: TOKEN if hasattr(spec, "project") else KEY)


def chat(content="fine", finish_reason="stop", usage=None, logprobs=None, **message):
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content} | message,
    }
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    return {"model": "m", "choices": [choice], "usage": usage or {"prompt_tokens": 3, "completion_tokens": 4}}


def gemini(finish_reason="STOP", **part):
    content = {"role": "model", "parts": [part]}
    return {"candidates": [{"content": content, "finishReason": finish_reason}], "modelVersion": "m"}


def error(message="no", **fields):
    return {"error": {"message": message, **fields}}


ERRORS_IN_A_200 = [
    (error(code=401), "authentication", 1),
    (error(code="401"), "authentication", 1),
    (error(code=402), "insufficient_quota", 1),
    (error(code="insufficient_quota"), "insufficient_quota", 1),
    (error(type="insufficient_quota", code=None), "insufficient_quota", 1),
    (error(code=403), "permission", 1),
    (error(status="PERMISSION_DENIED"), "permission", 1),
    (error(code=404), "model_not_found", 1),
    (error(code="model_not_found"), "model_not_found", 1),
    (error(code="context_length_exceeded"), "context_length", 1),
    (error("This model's maximum context length is 10 tokens"), "context_length", 1),
    (error(code=400), "bad_request", 1),
    (error(type="invalid_request_error"), "bad_request", 1),
    (error(code=500), "server_error", 5),
    (error(code="503"), "server_error", 5),
    (error(code=504), "timeout", 5),
    (error("no"), "server_error", 5),
    ({"error": "no"}, "server_error", 5),
    ({"error": "no", "code": 401}, "authentication", 1),
    ({"error": True, "message": "no", "status": 402}, "insufficient_quota", 1),
    ({"object": "error", "message": "no", "code": 404}, "model_not_found", 1),
    ({"detail": "no", "status_code": 403}, "permission", 1),
    ({"statusCode": 401, "message": "no"}, "authentication", 1),
    ({"success": False, "errors": [{"code": 401, "message": "no"}], "result": None}, "authentication", 1),
    ([error(code=403)], "permission", 1),
]


@pytest.mark.parametrize(("body", "kind", "tries"), ERRORS_IN_A_200, ids=str)
@pytest.mark.parametrize("form", ["chat", "vectors", "vertex", "vertex vectors"])
def test_an_error_inside_a_200_is_the_error_that_it_says(form, body, kind, tries):
    with ChatServer(lambda _: RawAnswer(body)) as server:
        backend = opened((vertex_spec_for if "vertex" in form else spec_for)(server))
        (found,) = backend.embed(["x"]) if "vectors" in form else backend.complete([ask("x")])
        backend.close()
        assert server.n_requests == tries
    assert (found.error.kind, found.attempts, found.error.retryable) == (kind, tries, tries > 1)
    assert found.error.fatal == (kind in {"authentication", "permission", "model_not_found", "insufficient_quota"})
    assert "no" in found.error.message or "context length" in found.error.message


@pytest.mark.parametrize(("body", "kind", "tries"), [row for row in ERRORS_IN_A_200 if "error" in row[0]], ids=str)
def test_so_is_an_error_inside_a_choice(body, kind, tries):
    broken = {"choices": [{"finish_reason": "error", "message": {"content": "half of"}, "error": body["error"]}]}
    if body["error"] is True or "code" in body:
        broken["choices"][0]["error"] = {"message": "no", **body}
    with ChatServer(lambda _: RawAnswer(broken)) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.error.kind, reply.attempts) == (kind, tries)


def test_an_error_in_a_200_that_all_rows_share_ends_the_job():
    with ChatServer(lambda _: RawAnswer(error("No credit.", code=402))) as server:
        replies = complete(spec_for(server), [ask("x")] * 50)
        assert server.n_requests == 1
    assert "No credit." in replies[0].error.message
    assert {reply.error.kind for reply in replies[1:]} == {"cancelled"}


def test_a_429_inside_a_200_pauses_and_is_no_try():
    answers = iter([RawAnswer(error(code=429), headers=(JSON, ("retry-after-ms", "1")))] * 2)
    with ChatServer(lambda _: next(answers, "fine")) as server:
        (reply,) = complete(spec_for(server, patience=replace(HASTY, max_tries=1)), [ask("x")])
    assert (reply.text, reply.attempts) == ("fine", 3)


def test_a_parameter_refused_inside_a_200_is_left_out():
    def answer(body):
        refusal = error("Unsupported parameter: 'temperature'", code=400, param="temperature")
        return RawAnswer(refusal) if "temperature" in body else "fine"

    with ChatServer(answer) as server, pytest.warns(match="temperature"):
        assert complete(spec_for(server), [ask("x")])[0].text == "fine"


def minimax(code: int, message: str = "told so") -> bytes:
    told = {"id": "1", "choices": None, "base_resp": {"status_code": code, "status_msg": message}}
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("body", "kind", "message", "tries"),
    [
        (minimax(1004, "login fail"), "authentication", "HTTP 200 1004: login fail", 1),
        (minimax(2049, "invalid api key"), "authentication", "HTTP 200 2049: invalid api key", 1),
        (minimax(1008), "insufficient_quota", "HTTP 200 1008", 1),
        (minimax(2056), "insufficient_quota", "HTTP 200 2056", 1),
        (minimax(1026), "content_filter", "HTTP 200 1026", 1),
        (minimax(2013), "bad_request", "HTTP 200 2013", 1),
        (minimax(1000), "server_error", "HTTP 200 1000", 5),
        (minimax(1001), "timeout", "HTTP 200 1001", 5),
        (b"Authentication error", "authentication", "HTTP 200: Authentication error", 1),
        (b'"Authentication error"', "authentication", "HTTP 200: Authentication error", 1),
        (b'{"message": "Authentication failed"}', "authentication", "HTTP 200: Authentication failed", 1),
        (b"401 Unauthorized\n", "authentication", "Unauthorized", 1),
        (b"Invalid API key", "authentication", "Invalid API key", 1),
        (b'{"detail": "Insufficient balance"}', "insufficient_quota", "Insufficient balance", 1),
        (b'{"detail": "Not authenticated"}', "authentication", "Not authenticated", 1),
        (b'{"error_msg": "Access denied"}', "permission", "Access denied", 1),
        (b'{"status": "error", "reason": "daily quota exceeded"}', "rate_limit", "daily quota exceeded", 5),
    ],
    ids=lambda value: str(value)[:40],
)
def test_failures_inside_a_200_in_forms_of_their_own(body, kind, message, tries):
    with ChatServer(lambda _: RawAnswer(body)) as server:
        (reply,) = complete(spec_for(server, patience=replace(HASTY, deadline_s=4)), [ask("x")])
    assert reply.error.kind == kind
    assert reply.attempts == tries or (
        kind == "rate_limit" and reply.attempts > 1
    )  # such a row waits a time, not a number
    assert message in reply.error.message
    assert server.url in reply.error.message or kind == "content_filter"


def test_a_good_answer_with_minimaxs_own_field_is_one():
    good = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "base_resp": {"status_code": 0}}
    with ChatServer(lambda _: RawAnswer(good)) as server:
        assert complete(spec_for(server), [ask("x")])[0].text == "fine"


def test_twenty_bare_authentication_errors_end_a_call():
    with ChatServer(lambda _: RawAnswer(b"Authentication error")) as server:
        replies = complete(spec_for(server), [ask(f"x{i}") for i in range(400)])
        assert server.n_requests < 100
    assert {reply.error.kind for reply in replies} == {"authentication", "cancelled"}


ODD = [
    (b"", "empty", 5),
    (b"  \n", "empty", 5),
    (b"<!DOCTYPE html><html>Sign in</html>", "web page", 5),
    (b'data: {"choices": []}\n\n', "stream", 5),
    (b'{"choices": [', "cut off", 5),
    (b"plain words", "not JSON", 5),
    (b"[]", "no JSON object", 5),
    (b"3", "no JSON object", 5),
    (b"null", "no JSON object", 5),
    (b"{}", "no choices", 5),
    (b'{"choices": null}', "no choices", 5),
    (b'{"choices": {}}', "no choices", 5),
    (b'{"choices": ["x"]}', "no choices", 5),
    (b'{"choices": [{}]}', "no message", 5),
    (b'{"choices": [{"message": "x"}]}', "no message", 5),
    (b'{"a":' * 100_000, "deep", 1),
    (b"[" * 100_000, "deep", 1),
]


@pytest.mark.parametrize(("body", "message", "tries"), ODD, ids=lambda value: str(value)[:30])
def test_what_is_no_answer_says_what_it_is_and_where(body, message, tries):
    with ChatServer(lambda _: RawAnswer(body)) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.error.kind, reply.attempts) == ("malformed_response", tries)
    assert message in reply.error.message
    assert server.url in reply.error.message


TOOL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("content", "reason", "fields", "kind", "tries"),
    [
        ("a text", "stop", {}, None, 1),
        ("a text", None, {}, None, 1),
        ("a text", "end_turn", {}, None, 1),
        ("a text", "STOP", {}, None, 1),
        ("half", "length", {}, "truncated", 1),
        ("half", "model_length", {}, "truncated", 1),
        ("half", "MAX_TOKENS", {}, "truncated", 1),
        ("half", "SAFETY", {}, "content_filter", 1),
        ("half", "RECITATION", {}, "content_filter", 1),
        ("half", "content_filter", {}, "content_filter", 1),
        ("half", "error", {}, "server_error", 5),
        ("half", "abort", {}, "server_error", 5),
        ("half", "insufficient_system_resource", {}, "server_error", 5),
        ("half", "something_new", {}, "malformed_response", 1),
        ("half", "tool_calls", {}, "malformed_response", 1),
        ("half", 7, {}, "malformed_response", 1),
        (None, "tool_calls", {"tool_calls": TOOL}, "malformed_response", 1),
        (None, "stop", {"tool_calls": TOOL}, "malformed_response", 1),
        ("", "function_call", {"function_call": {"name": "f"}}, "malformed_response", 1),
        (None, "stop", {"reasoning_content": "I think so."}, "malformed_response", 1),
        ("", "stop", {"reasoning": "I think so."}, "malformed_response", 1),
        (None, "length", {"reasoning_content": "I think"}, "truncated", 1),
        (None, "stop", {"refusal": "I will not."}, "content_filter", 1),
        (None, "stop", {}, "malformed_response", 5),
    ],
    ids=str,
)
def test_a_free_text_is_whole_or_an_error_that_names_its_end(content, reason, fields, kind, tries):
    with ChatServer(lambda _: RawAnswer(chat(content, reason, **fields))) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.error and reply.error.kind, reply.attempts) == (kind, tries)
    assert (reply.text is None) == (kind is not None)
    assert reply.usage.completion_tokens == 4 * tries
    if kind is not None and isinstance(reason, str) and reason not in {"stop", "length"}:
        assert reason in reply.error.message


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("STOP", None),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("MAX_TOKENS", "truncated"),
        ("OTHER", "malformed_response"),
        ("FINISH_REASON_UNSPECIFIED", "malformed_response"),
        ("MALFORMED_FUNCTION_CALL", "malformed_response"),
    ],
)
def test_geminis_text_likewise(reason, kind):
    with ChatServer(lambda _: RawAnswer(gemini(reason, text="half"))) as server:
        backend = opened(vertex_spec_for(server))
        (reply,) = backend.complete([ask("x")])
        backend.close()
    assert (reply.error and reply.error.kind, reply.attempts) == (kind, 1)


def test_geminis_blocked_prompt_tool_call_and_thought():
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 9}}
    bodies = [blocked, gemini(functionCall={"name": "f"}), gemini(text="I think so.", thought=True)]
    found = []
    for body in bodies:
        with ChatServer(lambda _, body=body: RawAnswer(body)) as server:
            backend = opened(vertex_spec_for(server))
            found += backend.complete([ask("x")])
            backend.close()
    assert [reply.error.kind for reply in found] == ["content_filter", "malformed_response", "malformed_response"]
    assert [reply.attempts for reply in found] == [1, 1, 1]
    assert "PROHIBITED_CONTENT" in found[0].error.message
    assert found[0].usage.prompt_tokens == 9
    assert "tool" in found[1].error.message
    assert "thought" in found[2].error.message


def test_an_answer_with_a_form_that_a_server_took_for_a_thought_is_the_answer():
    label = '{"label": "positive"}'
    with ChatServer(lambda _: RawAnswer(chat(None, reasoning_content=label))) as server:
        free, held = complete(spec_for(server), [ask("x"), ask("x", LABELS)])
    assert (free.error.kind, held.text) == ("malformed_response", label)


def test_a_whole_label_counts_whatever_ended_it():
    with ChatServer(lambda _: RawAnswer(chat('{"label": "positive"}', "something_new"))) as server:
        assert complete(spec_for(server), [ask("x", LABELS)])[0].error is None


def token(text, logprob, **others):
    return {"token": text, "logprob": logprob, "top_logprobs": [{"token": t, "logprob": p} for t, p in others.items()]}


NO_LOG_PROBS = [None, "-0.1", 0.7, float("nan"), True]


@pytest.mark.parametrize(
    ("bad", "where"),
    # Of an alternative, -9999 is how servers say: close to none.
    [(bad, where) for bad in NO_LOG_PROBS for where in ("chosen", "alternative")] + [(-9999.0, "chosen")],
)
def test_log_probabilities_that_are_none_reverse_nothing(bad, where):
    tops = {"positive": -0.1, "negative": -2.3} | ({"negative": bad} if where == "alternative" else {})
    tokens = [
        token('{"label": "', 0.0),
        token("positive", bad if where == "chosen" else -0.1, **tops),
        token('"}', 0.0),
    ]
    with ChatServer(lambda _: RawAnswer(chat('{"label": "positive"}', logprobs=tokens))) as server:
        (reply,) = complete(spec_for(server, log_probs=True), [ask("x", LABELS)])
    assert (reply.error.kind, reply.log_probs) == ("malformed_response", None)


def test_placeholders_for_log_probabilities_are_no_probabilities():
    tokens = [token('{"label": "', 0.0), token("positive", 0.0, positive=0.0, negative=0.0), token('"}', 0.0)]
    with ChatServer(lambda _: RawAnswer(chat('{"label": "positive"}', logprobs=tokens))) as server:
        (reply,) = complete(spec_for(server, log_probs=True), [ask("x", LABELS)])
    assert (reply.error.kind, reply.log_probs) == ("malformed_response", None)


# --- refusals of all rows, and of one --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("message", ["Your project was suspended. Call us", "Invalid API key (row 7)"])
def test_twenty_bad_requests_alike_end_the_job(status, message):
    with ChatServer(lambda _: StatusFault(status, message, str(status))) as server:
        replies = complete(spec_for(server), [ask(f"row {i}") for i in range(2000)])
        assert 20 <= server.n_requests <= 100
    kinds = {reply.error.kind for reply in replies}
    assert kinds == {"bad_request", "cancelled"}
    assert any(
        reply.error.fatal and "in a row" in reply.error.message and server.url in reply.error.message
        for reply in replies
    )


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (error("/chat/completions: Invalid model name passed in model=m. Call `/v1/models`", code="400"), "model"),
        (error("m is not a valid model ID", code=400), "model"),
        (error("Model Not Exist", type="invalid_request_error"), "model"),
        (error("Invalid model: m", type="invalid_model", code="1500"), "model"),
        (error("The model `m` does not exist or you do not have access to it."), "model"),
        (error("No connected db.", type="no_db_connection", code="400"), "key"),
    ],
    ids=str,
)
def test_a_model_or_a_key_that_a_gateway_does_not_know_costs_one_request(told, kind):
    with ChatServer(lambda _: RawAnswer(told, 400)) as server:
        replies = complete(spec_for(server), [ask(f"row {i}") for i in range(100)])
        assert server.n_requests == 1
    assert replies[0].error.kind == {"model": "model_not_found", "key": "authentication"}[kind]
    assert {reply.error.kind for reply in replies[1:]} == {"cancelled"}


@pytest.mark.parametrize(
    "message", ["Invalid model parameter: top_p", "No answer in the model's form", "The model is busy", "Invalid value"]
)
def test_other_bad_requests_are_the_rows_own(message):
    assert kind_of(400, Told(message)) == "bad_request"


def test_bad_requests_among_slow_good_ones_end_nothing():
    def answer(body):
        if int(body["messages"][-1]["content"]) % 2:
            return StatusFault(400, "I do not like this row")
        time.sleep(0.2)
        return "fine"

    with ChatServer(answer) as server:
        replies = complete(spec_for(server, limit=RateLimit(max_concurrency=200)), [ask(str(i)) for i in range(400)])
    assert [reply.text for reply in replies] == ["fine", None] * 200
    assert {reply.error.kind for reply in replies[1::2]} == {"bad_request"}


def test_bad_requests_that_differ_end_nothing():
    def answer(body):
        text = body["messages"][-1]["content"]
        return "fine" if text == "last" else StatusFault(400, f"No {'abcdefghijklmnopqrstuvwxyz'[int(text)] * 4} here")

    with ChatServer(answer) as server:
        replies = complete(spec_for(server), [*(ask(str(i)) for i in range(26)), ask("last")])
    assert replies[-1].text == "fine"


def test_a_request_that_is_more_than_the_quota_costs_its_row_alone_and_at_once():
    too_large = "Request too large for gpt on tokens per min (TPM): Limit 30000, Requested 40000."

    def answer(body):
        return StatusFault(429, too_large, "rate_limit_exceeded") if body["messages"][-1]["content"] == "7" else "fine"

    with ChatServer(answer) as server:
        began = time.monotonic()
        replies = complete(spec_for(server), [ask(str(i)) for i in range(100)])
        assert time.monotonic() - began < HASTY.deadline_s / 2
        assert server.n_requests == 100
    assert [i for i, reply in enumerate(replies) if reply.error] == [7]
    assert (replies[7].error.kind, replies[7].error.retryable) == ("context_length", False)
    assert "Requested 40000" in replies[7].error.message


def test_a_row_that_a_quota_refuses_for_ever_without_a_reason_holds_nobody_up():
    def answer(body):
        return StatusFault(429, "slow down") if body["messages"][-1]["content"] == "7" else "fine"

    with ChatServer(answer, latency_s=0.01) as server:
        spec = spec_for(server, patience=replace(HASTY, deadline_s=3), limit=RateLimit(max_concurrency=4))
        backend, done = opened(spec), {}
        replies = backend.complete_each(
            [ask(str(i)) for i in range(400)], lambda i, _: done.setdefault(i, time.monotonic())
        )
        backend.close()
    assert [i for i, reply in enumerate(replies) if reply.error] == [7]
    assert replies[7].error.kind == "rate_limit"


@pytest.mark.parametrize(
    ("message", "never"),
    [
        ("Rate limit reached: Limit 30000, Used 29000, Requested 1500. Try again in 1s.", False),
        ("Limit: 30,000 / Requested: 40,000", True),
        ("Requested 40000 tokens, but the limit is 30000", True),
        ("Requested 400 tokens, but the limit is 30000", False),
        ("Request too large for model `llama` on tokens per minute (TPM)", True),
        ("The request is too large.", True),
        ("Your request of 52000 tokens exceeds the maximum of 30000 tokens per minute.", True),
        ("Your request of 5200 tokens exceeds what is left of the maximum: 30000 tokens per minute.", False),
        ("The request exceeded the token quota: max 8000 tokens, got 12000 tokens", True),
        ("tokens per request limit exceeded", True),
        ("Maximum 60 requests per minute, got 61", False),
        ("Current usage of 52000 tokens exceeds the limit of 30000 per minute", False),
        ("Requests have exceeded the token rate limit. Please retry after 20 seconds.", False),
        ("Too many requests", False),
        ("", False),
    ],
)
def test_a_refusal_that_no_waiting_mends(message, never):
    assert never_fits(message) == never


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, error(code="401"), "authentication"),
        (500, error(code=402), "insufficient_quota"),
        (502, error(code=429), "rate_limit"),
        (400, error(code="400", type="invalid_request_error"), "bad_request"),
        (404, error(type="invalid_request_error"), "model_not_found"),
        (503, error(code=400), "server_error"),
        (429, error(code="insufficient_quota"), "insufficient_quota"),
    ],
)
def test_a_gateways_vague_status_gives_way_to_what_it_hands_on(status, body, kind):
    assert kind_of(status, told_in(body)) == kind


@pytest.mark.parametrize(
    "body",
    [None, 3, "x", [], {}, {"choices": []}, {"error": None, "choices": []}, {"error": {}}, {"data": [], "code": 0},
     {"type": "message"}, {"message": {"content": "x"}}],
)  # fmt: skip
def test_what_tells_of_no_failure(body):
    assert told_in(body) is None
    assert isinstance(told_in({"error": "x"}), Told)


# --- bounds of bodies ------------------------------------------------------------------------------------------------


def endless(chunk):
    def body():
        yield b'{"choices": ['
        while True:
            yield chunk

    return body


def memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("chunk", [b"1," * 50_000, b" " * 100_000])
def test_an_answer_without_end_is_an_error_soon_and_memory_stays_flat(status, chunk):
    with ChatServer(lambda _: RawAnswer(endless(chunk), status)) as server:
        before, began = memory_mb(), time.monotonic()
        (reply,) = complete(spec_for(server), [ask("x")])
        assert time.monotonic() - began < 20
        assert memory_mb() - before < 200
    assert (reply.error.kind, reply.attempts) == ("malformed_response" if status == 200 else "bad_request", 1)


def test_the_error_in_a_bodys_beginning_is_told_of_a_large_one_too():
    large = json.dumps({"error": {"message": "no such thing", "code": "x"}, "trace": "y" * 50_000_000}).encode()
    with ChatServer(lambda _: RawAnswer(large, 400)) as server:
        began = time.monotonic()
        (reply,) = complete(spec_for(server), [ask("x")])
        assert time.monotonic() - began < 10
    assert (reply.error.kind, reply.attempts) == ("bad_request", 1)


def bomb(n_bytes):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = b"0" * 1_000_000
    packed = b"".join(packer.compress(zeros) for _ in range(n_bytes // 1_000_000))
    return packed + packer.flush()


def test_a_bomb_does_not_go_off():
    headers = (JSON, ("content-encoding", "gzip"))
    packed = bomb(500_000_000)
    with ChatServer(lambda _: RawAnswer(packed, headers=headers)) as server:
        before = memory_mb()
        (reply,) = complete(spec_for(server), [ask("x")])
        assert memory_mb() - before < 200
    assert (reply.error.kind, reply.attempts) == ("malformed_response", 1)
    assert "larger than" in reply.error.message


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("gzip", lambda body: gzip.compress(body[:20]) + gzip.compress(body[20:])),
        ("deflate", zlib.compress),
        ("identity", bytes),
    ],
)
def test_packed_answers_are_read(encoding, pack):
    body = pack(json.dumps(chat("fine")).encode())
    with ChatServer(lambda _: RawAnswer(body, headers=(JSON, ("content-encoding", encoding)))) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.text, reply.error) == ("fine", None)


@pytest.mark.parametrize(("encoding", "body"), [("gzip", b"no gzip"), ("br", b"x"), ("gzip", b"")])
def test_answers_that_cannot_be_unpacked_are_errors(encoding, body):
    with ChatServer(lambda _: RawAnswer(body, headers=(JSON, ("content-encoding", encoding)))) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert reply.error.kind == "malformed_response"


# --- the bound of a label's answer -----------------------------------------------------------------------------------


def limit_of(body):
    return body.get("max_completion_tokens", body.get("max_tokens"))


def test_a_labels_answer_has_a_bound_and_a_text_has_none():
    with ChatServer() as server:
        complete(spec_for(server), [ask("x", LABELS), ask("x")])
        bounds = {
            received.body.get("response_format") is not None: limit_of(received.body) for received in server.received
        }
    assert bounds == {True: 87, False: None}


@pytest.mark.parametrize("label", ["x" * 500, "größer", "東京" * 30, '"' * 40])
def test_the_bound_has_room_for_the_longest_label(label):
    with ChatServer() as server:
        complete(spec_for(server), [ask("x", Choices((label, "b"))), ask("x", Choices((label, "b"), True, 2))])
        one, both = (limit_of(received.body) for received in server.received)
    assert one >= len(json.dumps({"label": label})) + 50
    assert both >= len(json.dumps({"label": [label, "b"]})) + 50


def test_white_space_without_end_is_cut_and_is_an_answer_that_is_none():
    def answer(body):
        return RawAnswer(chat('{"label": ' + "\n" * 80, "length", {"completion_tokens": limit_of(body)}))

    with ChatServer(answer) as server:
        replies = complete(spec_for(server), [ask("x", LABELS)] * 5)
        assert server.n_requests == 5
    assert {reply.attempts for reply in replies} == {1}


@pytest.mark.parametrize(
    "cut",
    [
        {"content": None, "reasoning_content": "Let me think"},
        {"content": "<think>Let me think"},
        {"content": "<think>Short.</think>{\"label\": \"posi"},
        {"content": "Let me weigh the words, one after the other"},
        {"content": ""},
    ],
    ids=str,
)  # fmt: skip
def test_a_thought_that_the_bound_cut_lifts_it_once_for_all(cut):
    def answer(body):
        limit = limit_of(body)
        usage = {"prompt_tokens": 5, "completion_tokens": limit or 300}
        if limit is None:
            return RawAnswer(chat('{"label": "positive"}', usage=usage))
        return RawAnswer(chat(finish_reason="length", usage=usage, **cut))

    with ChatServer(answer) as server:
        replies = complete(spec_for(server), [ask("x", LABELS)] * 50)
        assert server.n_requests == 51
    assert {reply.text for reply in replies} == {'{"label": "positive"}'}
    assert sorted(reply.attempts for reply in replies) == [1] * 49 + [2]
    assert max(reply.usage.completion_tokens for reply in replies) == 387  # what was cut was paid for


@pytest.mark.parametrize("changes", [{"model": "gpt-5.4-mini"}, {"request_options": {"max_tokens": 7}}])
def test_who_thinks_first_or_has_a_limit_gets_no_other(changes):
    with ChatServer() as server:
        complete(spec_for(server, **changes), [ask("x", LABELS)])
        body = server.received[0].body
    assert limit_of(body) == (7 if "request_options" in changes else None)


def test_a_server_that_takes_no_limit_is_asked_without_and_nobody_is_warned(recwarn):
    def answer(body):
        name = next((name for name in ("max_tokens", "max_completion_tokens") if name in body), None)
        return StatusFault(400, f"Unknown parameter: {name}", param=name) if name else '{"label": "positive"}'

    with ChatServer(answer) as server:
        replies = complete(spec_for(server), [ask("x", LABELS)] * 20)
        assert server.n_requests == 22
    assert {reply.error for reply in replies} == {None}
    assert not recwarn.list


HARD = ChatRequest(({"role": "user", "content": "x"},), max_output_tokens=50, limit_is_hard=True)


def test_a_hard_limit_that_nobody_takes_is_sent_to_nobody():
    def answer(body):
        name = next((name for name in ("max_tokens", "max_completion_tokens") if name in body), None)
        return StatusFault(400, f"Unknown parameter: {name}", param=name) if name else "a long answer"

    with ChatServer(answer) as server:
        replies = complete(spec_for(server), [HARD] * 20)
        assert server.n_requests == 2
        assert all(limit_of(received.body) for received in server.received)
    assert (replies[0].error.kind, replies[0].error.fatal) == ("not_supported", True)
    assert {reply.error.kind for reply in replies[1:]} == {"cancelled"}


def test_a_hard_limit_that_nobody_heeds_is_relied_on_once():
    long = RawAnswer(chat("a long answer", usage={"prompt_tokens": 5, "completion_tokens": 900}))
    with ChatServer(lambda _: long) as server:
        replies = complete(spec_for(server), [HARD] * 20)
        assert server.n_requests == 1
    assert replies[0].usage.completion_tokens == 900
    assert {reply.error.kind for reply in replies[1:]} <= {"not_supported", "cancelled"}


def test_a_budgets_label_is_bounded_by_the_budget_alone():
    request = replace(HARD, choices=LABELS, max_output_tokens=1024)
    with ChatServer() as server:
        complete(spec_for(server), [request])
        assert limit_of(server.received[0].body) == 1024
