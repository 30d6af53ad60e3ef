"""Servers that are not there, for a while or for ever, and servers that are not whom they seem. Real sockets."""

import itertools
import re
import ssl
import subprocess
import threading
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from skllm_ray.llm.api.request_runner import _Tries
from skllm_ray.llm.api.retry_policy import RetryPolicy
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault, WireFault
from tests.llm.gpt.clients.openai.test_chat import KEY, ask, complete, scripted, spec_for

# A row that is refused just before another is served has used a try: at both edges of an outage, and late answers.
WAITING = RetryPolicy(timeout_s=5, deadline_s=30, max_tries=5, backoff_s=0.05)


def while_restarting(n_rows=300, patience=WAITING, between=None, is_over=None):
    """Ask for rows while the server goes away in the middle, for a second or until `is_over`; return the replies."""
    with ChatServer(latency_s=0.01) as server:
        backend = spec_for(server, patience=patience).open(lambda ref: KEY)
        assert backend.complete([ask("x")])[0].text == "ok"
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        found, is_back = [], threading.Event()

        def ask_until_it_is_back():
            while not is_back.is_set():
                found.extend(backend.complete([ask(str(i)) for i in range(n_rows)]))

        asking = threading.Thread(target=ask_until_it_is_back)
        asking.start()
        time.sleep(0.1)
    with between(port) if between else nullcontext():
        time.sleep(1)
        while is_over and not is_over():
            time.sleep(0.05)
    with ChatServer(port=port):
        is_back.set()
        asking.join(60)
    backend.close()
    return found


def test_a_server_that_starts_again_loses_no_row(monkeypatch):
    failures, count = Counter(), _Tries.count

    def counted(self, *given):
        failures[id(self)] += 1
        count(self, *given)

    monkeypatch.setattr(_Tries, "count", counted)
    replies = while_restarting(is_over=lambda: max(list(failures.values()), default=0) > WAITING.max_tries)
    assert {reply.text for reply in replies} == {"ok"}
    assert max(reply.attempts for reply in replies) > WAITING.max_tries


NOBODY = "litellm.InternalServerError: InternalServerError: OpenAIException - Connection error."


@pytest.mark.parametrize(
    "fault",
    [StatusFault(502), StatusFault(503), RawAnswer(b"<html>Bad gateway</html>", 502), StatusFault(500, NOBODY, "500")],
)
def test_so_does_none_behind_a_gateway(fault):
    replies = while_restarting(between=lambda port: ChatServer(lambda body: fault, port=port))
    assert {reply.text for reply in replies} == {"ok"}


def test_a_proxy_that_takes_and_drops_connections_meanwhile_loses_no_row():
    # A dropped connection costs a quarter of a try.
    replies = while_restarting(between=lambda port: ChatServer(lambda _: WireFault.DROP, port=port))
    assert {reply.text for reply in replies} == {"ok"}


def test_a_row_that_alone_meets_no_server_has_its_tries_and_no_more():
    def answer(body):
        return StatusFault(503) if body["messages"][-1]["content"] == "poison" else "fine"

    with ChatServer(answer, latency_s=0.005) as server:
        spec = spec_for(server, patience=replace(WAITING, backoff_s=0.01))
        backend, stop = spec.open(lambda ref: KEY), threading.Event()

        def serve_others():
            while not stop.is_set():
                backend.complete([ask("x")] * 20)

        others = threading.Thread(target=serve_others)
        others.start()
        time.sleep(0.1)
        (reply,) = backend.complete([ask("poison")])
        stop.set()
        others.join()
        backend.close()
    assert reply.error.kind == "server_error"
    assert 5 <= reply.attempts <= 12


def test_a_server_that_never_was_there_fails_soon_and_is_named():
    with ChatServer() as server:
        pass
    replies = complete(spec_for(server, patience=WAITING), [ask(str(i)) for i in range(100)])
    assert max(reply.attempts for reply in replies) <= WAITING.max_tries  # it is not waited for
    assert {reply.error.kind for reply in replies} <= {"connection", "cancelled"}
    assert server.url in replies[0].error.message
    assert "refused" in replies[0].error.message.lower() or "connect" in replies[0].error.message.lower()
    assert replies[0].error.down


def test_a_server_that_stays_away_ends_the_call_within_the_rows_time():
    with ChatServer() as server:
        backend = spec_for(server, patience=replace(WAITING, deadline_s=1)).open(lambda ref: KEY)
        backend.complete([ask("x")])
    replies = backend.complete([ask(str(i)) for i in range(50)])
    backend.close()
    assert {reply.error.kind for reply in replies} <= {"connection", "cancelled", "timeout"}


def test_the_silence_of_a_server_names_it():
    with ChatServer(lambda body: WireFault.SILENCE) as server:
        patience = RetryPolicy(timeout_s=0.1, deadline_s=20, max_tries=1, backoff_s=0.01)
        (reply,) = complete(spec_for(server, patience=patience), [ask("x")])
    assert reply.error.kind == "timeout"
    assert server.url in reply.error.message


# --- what is said meanwhile ------------------------------------------------------------------------------------------


def said(caplog):
    return [one.getMessage() for one in caplog.records if one.name == "skllm_ray.llm.api.outage_notice"]


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr("skllm_ray.llm.api.outage_notice._FAILING_S", 0.5)
    monkeypatch.setattr("skllm_ray.llm.api.request_runner._LOOK_S", 0.05)


def test_a_server_that_is_waited_for_is_named_once_with_the_times(soon, caplog):
    assert {reply.text for reply in while_restarting(is_over=lambda: said(caplog))} == {"ok"}
    waiting, again = said(caplog)
    told = re.fullmatch(
        r"skllm_ray: waiting for (http://127.0.0.1:\d+/v1), which has served no row since (\d\d:\d\d:\d\d) "
        r"\(connection: .*\)\. Rows are tried until (\d\d:\d\d:\d\d) at the latest "
        r"\(SKLLMConfig\.set_timeouts\(row_s=…\)\)\.",
        waiting,
    )
    assert told, waiting
    began, ends = (datetime.strptime(at, "%H:%M:%S") for at in told.groups()[1:])
    assert (ends - began).seconds in {29, 30, 31}
    assert again == f"skllm_ray: {told[1]} answers again."


def test_a_server_that_takes_requests_and_answers_none_is_named(soon, caplog, monkeypatch):
    monkeypatch.setattr("skllm_ray.llm.api.outage_notice._SILENT_S", 0.5)
    with ChatServer(lambda body: WireFault.SILENCE) as server:
        complete(spec_for(server, patience=replace(WAITING, timeout_s=1.5, max_tries=1)), [ask("x")])
    (told,) = said(caplog)
    assert f"{server.url}, which has served no row since" in told
    assert "requests are out, and none is answered" in told


def test_nothing_is_said_of_a_server_that_answers_or_that_a_batch_job_waits_for(soon, caplog, monkeypatch):
    monkeypatch.setattr("skllm_ray.llm.api.outage_notice._FAILING_S", 2.0)  # a busy machine may answer none for a while
    n_seen = itertools.count()
    with ChatServer(lambda body: StatusFault(500) if next(n_seen) % 2 else "fine", latency_s=0.01) as server:
        backend = spec_for(server, patience=replace(WAITING, max_tries=20)).open(lambda ref: KEY)
        ends = time.monotonic() + 4  # failures all the time, and answers all the time
        while time.monotonic() < ends:
            backend.complete([ask(str(i)) for i in range(20)])
        backend.close()
    with ChatServer(lambda body: WireFault.SILENCE) as server:
        complete(spec_for(server, patience=replace(WAITING, timeout_s=1.5, max_tries=1, waits=False)), [ask("x")])
    assert said(caplog) == []


# --- vectors ---------------------------------------------------------------------------------------------------------


def embedded(answer, texts, **changes):
    with ChatServer(answer) as server:
        backend = spec_for(server, **changes).open(lambda ref: KEY)
        found = backend.embed(texts)
        backend.close()
        return found, server.n_requests


FAULTS_OF_ONE = [
    StatusFault(500, "NaN in the vector"),
    StatusFault(500, "input is too large to process. increase the physical batch size"),
    StatusFault(400, "no"),
    StatusFault(422, "no"),
    StatusFault(413, "no"),
    StatusFault(429, "Request too large: Limit 100, Requested 200"),
    RawAnswer({"error": {"message": "no", "code": 500}}),
    WireFault.HTML,
    WireFault.DROP,
]


@pytest.mark.parametrize("fault", FAULTS_OF_ONE, ids=str)
def test_one_text_that_makes_an_error_costs_itself_alone(fault):
    texts = [*(f"text {i}" for i in range(77)), "poison", *(f"text {i}" for i in range(77, 150))]
    found, n_requests = embedded(
        lambda body: fault if "poison" in body["input"] else "",
        texts,
        patience=replace(WAITING, backoff_s=0.005, deadline_s=10),
    )
    assert [i for i, one in enumerate(found) if one.error is not None] == [77]
    assert n_requests <= 50


def test_a_server_that_fails_at_every_text_is_not_asked_for_ever():
    _, n_requests = embedded(
        lambda body: StatusFault(500), [str(i) for i in range(128)], patience=replace(WAITING, backoff_s=0.001)
    )
    assert n_requests <= 64


@pytest.mark.parametrize("odd", [[1.0, 2.0, 3.0], [], [float("nan")] * 2])
def test_a_vector_of_another_length_costs_its_text_alone(odd):
    def answer(body):
        data = [{"index": i, "embedding": odd if t == "odd" else [1.0, 0.5]} for i, t in enumerate(body["input"])]
        return RawAnswer({"data": data, "model": "m", "usage": {"prompt_tokens": 9}})

    texts = ["a", "b", "odd", "c"]
    found, n_requests = embedded(answer, texts)
    assert [one.error and one.error.kind for one in found] == [None, None, "malformed_response", None]
    assert n_requests == 1
    found, _ = embedded(answer, [*texts * 60])  # in several requests
    assert [i for i, one in enumerate(found) if one.error is not None] == list(range(2, 240, 4))


@pytest.mark.filterwarnings("ignore:.* rows failed and")
def test_a_vector_of_another_length_loses_no_paid_vector():
    from skllm_ray.config import SKLLMConfig
    from skllm_ray.errors import PartialResultError
    from skllm_ray.vectorization import GPTVectorizer

    def answer(body):
        vectors = [[1.0] * (3 if "odd" in text else 2) for text in body["input"]]
        data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        return RawAnswer({"data": data, "model": "m"})

    # a hundred long texts fill a request, so that all of one request's vectors are odd
    texts = ["a", *["odd " + "x" * 2_000] * 100, *(f"text {i} " + "y" * 2_000 for i in range(150))]
    with ChatServer(answer) as server:
        SKLLMConfig.set_gpt_url(server.url)
        vectorizer = GPTVectorizer(model="custom_url::m")
        found = vectorizer.transform(texts, on_error="coerce")
        assert found.shape == (251, 2)
        assert np.isnan(found).any(axis=1).sum() == 100
        with pytest.raises(PartialResultError, match="3 numbers") as caught:
            vectorizer.transform(texts)
        SKLLMConfig.reset()
    assert caught.value.details["error_kind"].eq("malformed_response").sum() == 100


# --- secure connections ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert]
    subprocess.run([*made, *subject], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def secure_server(certificate):
    with ChatServer() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
        server.url = server.url.replace("http://", "https://")
        yield server


def test_a_certificate_that_nobody_knows_ends_the_job_at_once_and_says_what_to_do(secure_server):
    replies = complete(spec_for(secure_server), [ask("x")] * 20)
    first = replies[0].error
    assert (first.kind, first.fatal, replies[0].attempts) == ("connection", True, 1)
    assert secure_server.url in first.message
    assert "certificate" in first.message.lower()
    assert "SSL_CERT_FILE" in first.message
    assert {reply.error.kind for reply in replies[1:]} == {"cancelled"}
    assert secure_server.n_requests == 0


def test_an_authority_of_ones_own_is_trusted(secure_server, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    assert complete(spec_for(secure_server), [ask("x")])[0].text == "ok"


def test_a_server_that_speaks_no_tls_is_said_to_be_none():
    with ChatServer() as server:
        server.url = server.url.replace("http://", "https://")
        (reply,) = complete(spec_for(server), [ask("x")])
    assert (reply.error.kind, reply.error.fatal, reply.attempts) == ("connection", True, 1)
    assert server.url in reply.error.message


def test_a_fault_of_the_script_is_a_fault():  # the faults of this file are those of the shipped server
    with ChatServer(scripted(WireFault.DROP, "fine")) as server:
        assert complete(spec_for(server), [ask("x")])[0].attempts == 2
