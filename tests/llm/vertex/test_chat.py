"""The Vertex AI backend: the real SDK over real sockets against a scripted server."""

import json
import pickle
import sys
import threading
from dataclasses import replace

import pytest

genai = pytest.importorskip("google.genai")

from skllm_ray.config import RateLimit, SecretRef  # noqa: E402  after the skip
from skllm_ray.errors import ConfigurationError, MissingExtraError, SkllmRayWarning  # noqa: E402
from skllm_ray.llm.api.retry_policy import RetryPolicy  # noqa: E402
from skllm_ray.llm.base import Backend, BackendSpec  # noqa: E402
from skllm_ray.llm.vertex.spec import VertexSpec  # noqa: E402
from skllm_ray.tasks.base import ChatRequest, Choices  # noqa: E402
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault, WireFault, prompt_of  # noqa: E402

TOKEN = "ya29.planted-token-0123456789"
REF = SecretRef("google_token", ("SKLLM_TEST_NO_SUCH_TOKEN",))
HASTY = RetryPolicy(timeout_s=5, deadline_s=20, max_tries=5, backoff_s=0.01)
LABELS = Choices(("positive", "negative"))


def spec_for(server, **changes):
    fixed = {"model": "gemini-x", "project": "P", "location": "L", "token_ref": REF, "patience": HASTY}
    return VertexSpec(**{**fixed, "base_url": server.root, **changes})


def ask(text, choices=None, **options):
    system = {"role": "system", "content": "You answer."}
    return ChatRequest((system, {"role": "user", "content": text}), choices, **options)


def complete(spec, requests):
    backend = spec.open(lambda ref: TOKEN)
    try:
        return backend.complete(requests)
    finally:
        backend.close()


def scripted(*answers):
    left, lock = list(answers), threading.Lock()

    def answer(body):
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


def last_text(body):
    return body["contents"][-1]["parts"][0]["text"]


def test_replies_keep_the_order_of_the_requests():
    with ChatServer(last_text, latency_s=0.005) as server:
        replies = complete(spec_for(server), [ask(f"text {i}") for i in range(40)])
    assert [reply.text for reply in replies] == [f"text {i}" for i in range(40)]
    assert {(reply.attempts, reply.model, reply.error) for reply in replies} == {(1, "scripted", None)}
    assert all(reply.usage.prompt_tokens > 0 for reply in replies)


@pytest.mark.parametrize("text", ["naïve café 🎉", 'quotes " \\ \n\t', "x" * 100_000])
def test_texts_arrive_and_return_unchanged(text):
    with ChatServer(last_text) as server:
        assert complete(spec_for(server), [ask(text)])[0].text == text


def test_what_is_sent():
    with ChatServer(key=TOKEN) as server:
        turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"})
        request = ask("so negative", LABELS, max_output_tokens=9)
        request = replace(request, messages=(request.messages[0], *turns, request.messages[1]))
        (reply,) = complete(spec_for(server, request_options={"seed": 7}), [request])
        (received,) = server.received
    assert json.loads(reply.text) == {"label": "negative"}
    assert received.path.endswith("/projects/P/locations/L/publishers/google/models/gemini-x:generateContent")
    assert received.auth == "authorization"
    assert received.body["systemInstruction"]["parts"] == [{"text": "You answer."}]
    assert [turn["role"] for turn in received.body["contents"]] == ["user", "model", "user"]
    config = received.body["generationConfig"]
    assert (config["responseMimeType"], config["maxOutputTokens"], config["seed"]) == ("application/json", 9, 7)
    assert config["responseJsonSchema"] == LABELS.json_schema()
    assert "temperature" not in config


FAULTS = [
    (StatusFault(400, "no", "INVALID_ARGUMENT"), "bad_request", 1),
    (StatusFault(400, "The input token count (9) exceeds the maximum"), "context_length", 1),
    (StatusFault(401, "no", "UNAUTHENTICATED"), "authentication", 1),
    (StatusFault(403, "no", "PERMISSION_DENIED"), "permission", 1),
    (StatusFault(404, "no such model", "NOT_FOUND"), "model_not_found", 1),
    (StatusFault(408), "timeout", 5),
    (StatusFault(500), "server_error", 5),
    (StatusFault(503), "server_error", 5),
    (StatusFault(504, "late", "DEADLINE_EXCEEDED"), "timeout", 5),
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
    assert reply.error.fatal == (kind in {"authentication", "permission", "model_not_found"})
    if isinstance(fault, StatusFault):
        assert all(part in reply.error.message for part in (str(fault.status), fault.message, fault.code or ""))


BUSY = StatusFault(429, "slow down", "RESOURCE_EXHAUSTED", headers=(("retry-after", "0.001"),))


@pytest.mark.parametrize("fault", [BUSY, *(row[0] for row in FAULTS if row[2] > 1)], ids=str)
def test_a_passing_fault_is_tried_again(fault):
    with ChatServer(scripted(fault, "fine")) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.text, reply.attempts, reply.error) == ("fine", 2, None)


def holds(value, name):
    """Return whether a JSON body has a key, at any depth."""
    if isinstance(value, list):
        return any(holds(part, name) for part in value)
    return isinstance(value, dict) and (name in value or any(holds(part, name) for part in value.values()))


class Strict:
    """Refuses a request that has a field, and counts how often."""

    def __init__(self, field, message, good="fine"):
        self.field, self.message, self.good, self.n_refused = field, message, good, 0

    def __call__(self, body):
        if holds(body, self.field):
            self.n_refused += 1
            return StatusFault(400, self.message, "INVALID_ARGUMENT")
        return self.good


@pytest.mark.parametrize(
    ("field", "message", "n_refused"),
    [
        ("responseJsonSchema", "Unknown name \"responseJsonSchema\" at 'generation_config': Cannot find field.", 1),
        ("responseMimeType", "JSON mode is not enabled for models/gemma-3", 2),
        ("responseMimeType", "Controlled generation is not supported", 2),
    ],
)
def test_the_form_of_the_answer_is_negotiated_once(field, message, n_refused):
    strict = Strict(field, message, '{"label": "negative"}')
    with ChatServer(strict, latency_s=0.01) as server:
        backend = spec_for(server).open(lambda ref: TOKEN)
        replies = [reply for _ in range(2) for reply in backend.complete([ask("x", LABELS)] * 20)]
        backend.close()
    assert {(reply.text, reply.error) for reply in replies} == {('{"label": "negative"}', None)}
    assert strict.n_refused == n_refused


def test_a_refused_field_is_left_out_with_one_warning():
    strict = Strict("temperature", "Invalid value: temperature is not supported")
    with ChatServer(strict, latency_s=0.01) as server:
        backend = spec_for(server, request_options={"temperature": 0.5, "seed": 7}).open(lambda ref: TOKEN)
        with pytest.warns(SkllmRayWarning, match="temperature") as caught:
            replies = backend.complete([ask("x")] * 20)
        replies += backend.complete([ask("x")])
        backend.close()
        assert server.received[-1].body["generationConfig"]["seed"] == 7
    assert {reply.text for reply in replies} == {"fine"}
    assert [one.category for one in caught].count(SkllmRayWarning) == strict.n_refused == 1


def test_a_model_without_system_instructions_gets_them_in_the_first_turn():
    strict = Strict("systemInstruction", "Developer instruction is not enabled for models/gemma-3-27b-it")
    with ChatServer(strict) as server:
        with pytest.warns(SkllmRayWarning, match="system message"):
            replies = complete(spec_for(server), [ask("x"), ask("y")])
        assert last_text(server.received[-1].body).startswith("You answer.\n\n")
    assert ([reply.text for reply in replies], strict.n_refused) == (["fine", "fine"], 1)


@pytest.mark.parametrize("refuses", [True, False])
def test_log_probabilities_that_are_not_offered_are_asked_for_once(refuses, monkeypatch):
    field = "responseLogprobs" if refuses else "no such field"
    monkeypatch.setattr("skllm_ray.testing.chat_forms.asks_log_probs", lambda body: False)  # the server looks past them
    strict = Strict(field, "Logprobs is not enabled for models/gemini-3.5-flash", '{"label": "negative"}')
    with ChatServer(strict) as server:
        backend = spec_for(server, log_probs=True).open(lambda ref: TOKEN)
        first, again = (backend.complete([ask("x", LABELS)] * 9) for _ in range(2))
        backend.close()
        assert server.n_requests == 1 + refuses
    assert [(reply.error.kind, reply.error.fatal) for reply in first[:1] + again] == [("not_supported", True)] * 10


class CutOff(ChatServer):
    """Every answer ends at its largest number of tokens."""

    def _answer_to(self, path, body, key):
        found = super()._answer_to(path, body, key)
        return replace(found, body=found.body.replace(b'"STOP"', b'"MAX_TOKENS"'))


@pytest.mark.parametrize(
    ("choices", "text", "kind", "tries"),
    [
        (None, "half of a summ", "truncated", 1),
        (LABELS, '{"label": "negative"}', None, 1),
        (LABELS, "", "truncated", 2),  # the bound of a label's answer may have cut a thought off
    ],
)
def test_a_free_text_that_was_cut_off_is_an_error(choices, text, kind, tries):
    with CutOff(lambda body: text) as server:
        (reply,) = complete(spec_for(server), [ask("x", choices)])
    assert (reply.error and reply.error.kind, reply.attempts) == (kind, tries)
    assert reply.usage.prompt_tokens > 0


@pytest.mark.parametrize("options", [{"output_dimensionality": 64}, {"task_type": "CLASSIFICATION"}])
def test_the_options_of_vectors_are_those_of_that_call(options):
    with ChatServer() as server:
        spec = spec_for(server, request_options=options, embeds=True)
        spec.check()
        with pytest.raises(ConfigurationError, match="GenerateContentConfig"):
            replace(spec, embeds=False).check()
        backend = spec.open(lambda ref: TOKEN)
        assert backend.embed(["x"])[0].error is None
        backend.close()
        assert "64" in str(server.received[-1].body) or "CLASSIFICATION" in str(server.received[-1].body)
    with pytest.raises(ConfigurationError, match="EmbedContentConfig"):
        replace(spec, request_options={"temperature": 0.5}).check()


def test_a_silent_server_runs_into_both_timeouts():
    with ChatServer(lambda body: WireFault.SILENCE) as server:
        each_try = RetryPolicy(timeout_s=0.1, deadline_s=20, max_tries=2, backoff_s=0.01)
        (reply,) = complete(spec_for(server, patience=each_try), [ask("x")])
        assert (reply.error.kind, reply.attempts) == ("timeout", 2)
        (reply,) = complete(spec_for(server, patience=RetryPolicy(timeout_s=20, deadline_s=0.2)), [ask("x")])
        assert (reply.error.kind, reply.attempts) == ("timeout", 1)


def test_a_fatal_error_ends_the_job_and_keeps_what_was_answered():
    with ChatServer(scripted("one", StatusFault(403, "no"))) as server:
        replies = complete(spec_for(server, limit=RateLimit(max_concurrency=1)), [ask("x")] * 20)
        assert server.n_requests == 2
    assert [replies[0].text, replies[1].error.kind] == ["one", "permission"]
    assert {reply.error.kind for reply in replies[2:]} == {"cancelled"}


@pytest.mark.parametrize("status", [400, 401, 500])
def test_neither_token_nor_text_stands_in_a_message(status):
    diary = "my diary of 1987: I never told anyone"

    def answer(body):
        return StatusFault(status, f"token {TOKEN} is bad; input was {prompt_of(body)!r}")

    with ChatServer(answer) as server:
        (reply,) = complete(spec_for(server), [ask(diary)])
    assert all(secret not in repr(reply) for secret in (TOKEN, "planted", "diary", "1987", "told anyone"))
    assert f"HTTP {status}" in reply.error.message


def test_half_a_surrogate_pair_is_replaced():
    with ChatServer(last_text) as server:
        replies = complete(spec_for(server), [ask("half \ud83d"), ask("whole 🎉")])
    assert [reply.text for reply in replies] == ["half \ufffd", "whole 🎉"]


def test_missing_credentials_are_fatal(monkeypatch):
    from google.auth import default, exceptions

    def nothing(*args, **kwargs):
        raise exceptions.DefaultCredentialsError("none found")

    monkeypatch.setattr(f"{default.__module__}.default", nothing)
    monkeypatch.setattr("google.auth.default", nothing)
    with ChatServer() as server:
        (reply,) = complete(spec_for(server, token_ref=None), [ask("x")])
        assert server.n_requests == 0
    assert (reply.error.kind, reply.error.fatal) == ("authentication", True)


def test_a_spec_pickles_hashes_and_has_a_key():
    spec = VertexSpec(model="m", project="P", request_options={"temperature": 0.5})
    spec.check()
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(replace(spec))
    assert spec.key == replace(spec).key != replace(spec, location="europe-west4").key
    protocol: BackendSpec = spec
    assert not protocol.capabilities.stateful


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"project": None}, "google_project"),
        ({"request_options": {"no_such_field": 1}}, "no_such_field"),
        ({"request_options": {"http_options": {}}}, "http_options"),
    ],
)
def test_check_says_what_is_wrong(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        VertexSpec(**{"model": "m", "project": "P", **changes}).check()


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.genai", None)
    monkeypatch.setitem(sys.modules, "google.genai.types", None)
    monkeypatch.delattr("google.genai")
    spec = VertexSpec(model="m", project="P")
    with pytest.raises(MissingExtraError, match=r"skllm-ray\[vertex\]"):
        spec.check()
    with pytest.raises(MissingExtraError, match=r"skllm-ray\[vertex\]"):
        spec.open(lambda ref: TOKEN)


def test_a_closed_backend_stays_closed():
    with ChatServer() as server:
        backend = spec_for(server).open(lambda ref: TOKEN)
        assert isinstance(backend, Backend)
        backend.close()
        backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.complete([ask("x")])
    with pytest.raises(RuntimeError, match="closed"):
        backend.embed(["x"])


def test_what_gemini_thinks_is_billed_as_what_it_writes():
    told = {"promptTokenCount": 7, "candidatesTokenCount": 3, "thoughtsTokenCount": 40, "cachedContentTokenCount": 2}
    part = {"candidates": [{"content": {"parts": [{"text": "good"}]}, "finishReason": "STOP"}], "usageMetadata": told}
    with ChatServer(lambda _: RawAnswer(part)) as server:
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.text, reply.usage.prompt_tokens, reply.usage.completion_tokens) == ("good", 7, 43)
    assert reply.usage.cached_tokens == 2
