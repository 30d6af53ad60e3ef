"""Fakes for tests of code that uses this library: a backend in the process, and a server with faults."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import random
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from skllm_ray.testing.backend import FakeBackend, FakeSpec, _hashed_words

__all__ = ["ChatServer", "FakeBackend", "FakeSpec", "RawAnswer", "Received", "StatusFault", "WireFault", "prompt_of"]


@dataclass(frozen=True, slots=True)
class StatusFault:
    """An HTTP error with a JSON body in the API's own form."""

    status: int
    message: str = "scripted fault"
    code: str | None = None
    """The server's error code, such as ``insufficient_quota``."""
    param: str | None = None
    """The parameter that the server complains about."""
    headers: tuple[tuple[str, str], ...] = ()
    """Extra headers, such as ``(("retry-after-ms", "5"),)``."""


class WireFault(Enum):
    """What a broken server or network does."""

    DROP = "closes the connection without an answer"
    HALF = "closes the connection in the middle of the answer"
    HTML = "a web page with status 200"
    MALFORMED_JSON = "broken JSON with status 200"
    NO_CHOICES = "an answer without choices"
    CONTENT_FILTER = "an answer that a content filter stopped"
    SILENCE = "never answers"


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer of any form, sent as it stands.

    Examples
    --------
    >>> RawAnswer({"error": {"message": "No credit.", "code": 402}}).status
    200
    """

    body: Any = b""
    """Bytes; a str or what JSON can hold, which is written as such; or a function without parameters that returns an
    iterator of bytes, which may be without end."""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    """All headers, but for the length."""


Answer: TypeAlias = Callable[[dict[str, Any]], "str | StatusFault | WireFault | RawAnswer"]


@dataclass(frozen=True, slots=True)
class Received:
    """A request that a `ChatServer` saw. Of a credential it keeps only the header's name."""

    path: str
    body: dict[str, Any]
    auth: str | None
    """``authorization``, ``api-key`` or None."""


def prompt_of(body: dict[str, Any]) -> str:
    """Return all the text of a request, be it OpenAI's or Vertex AI's, a chat's or an embedding's."""
    if "messages" in body:
        return "\n".join(str(message["content"]) for message in body["messages"])
    if "input" in body:
        return body["input"] if isinstance(body["input"], str) else "\n".join(map(str, body["input"]))
    if "instances" in body:
        return "\n".join(str(item["content"]) for item in body["instances"])
    turns = [body.get("systemInstruction") or {}, body.get("content") or {}, *body.get("contents", [])]
    return "\n".join(part.get("text", "") for turn in turns for part in turn.get("parts", []))


class ChatServer:
    """A local server of the OpenAI, Azure OpenAI and Vertex AI chat APIs that answers as a script says.

    Parameters
    ----------
    answer : callable, optional
        Takes a request's JSON body; returns the answer's text, a `StatusFault`, a `WireFault` or a `RawAnswer`. By
        default a classification gets the label that the prompt names most often, and any other request gets ``"ok"``.
        It is asked about embeddings too, which get a fault if it returns one and vectors otherwise, also where it
        raises because it is written for chats. Where it raises at a chat, the server answers with status 500 and the
        exception.
    latency_s : float, default=0
        How long every answer takes, in seconds.
    key : str or None, default=None
        The API key to insist on; None takes any.
    requests_per_minute, tokens_per_minute : int or None, default=None
        Quotas, enforced in a sliding window of 60 s: what is above gets a 429 with ``retry-after-ms``, and every answer
        tells what is left in ``x-ratelimit-*`` headers. Tokens are a quarter of the characters of the prompt and the
        answer.
    reserve_output : bool, default=False
        Whether a request is charged as OpenAI does it: with the most tokens that it allows its answer, where it says
        so, whatever the answer's length.
    log_probs : bool, default=True
        Whether to give log probabilities to who asks for them; without, such a request is refused with a 400.
    host : str, default="127.0.0.1"
        The address to listen at.
    port : int, default=0
        The port to listen at; 0 takes a free one.

    Attributes
    ----------
    url : str
        The OpenAI-compatible base URL; it ends in ``/v1``.
    root : str
        The base URL for Azure and Vertex AI.
    n_requests : int
        Chat and embedding requests so far.
    n_refused : int
        How many of them got a 429 for the quota.
    most_in_window, most_tokens_in_window : int
        The most requests and tokens that any 60 s held, refused requests not counted.
    most_in_flight : int
        The most requests at once.
    received : deque of Received
        The last 1,000 of them.

    Examples
    --------
    >>> from urllib.request import urlopen
    >>> with ChatServer() as server, urlopen(server.url + "/models") as reply:
    ...     reply.status
    200
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        latency_s: float = 0,
        key: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        reserve_output: bool = False,
        log_probs: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.answer = answer or _default_answer
        self.latency_s = latency_s
        self.log_probs = log_probs
        self.reserve_output = reserve_output
        self.n_requests = 0
        self.n_refused = 0
        self.most_in_flight = 0
        self._in_flight = 0
        self._requests = _Window(requests_per_minute)
        self._tokens = _Window(tokens_per_minute)
        self.received: deque[Received] = deque(maxlen=1000)
        self._key = key
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._http = _Listener((host, port), _Handler)
        self._http.chat = self
        self.root = f"http://{host}:{self._http.server_port}"
        self.url = f"{self.root}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.set()
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._http.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def most_in_window(self) -> int:
        """The most requests that any 60 s held."""
        return self._requests.most

    @property
    def most_tokens_in_window(self) -> int:
        """The most tokens that any 60 s held."""
        return self._tokens.most

    def _reply_to(self, path: str, body: dict[str, Any], auth: str | None, key: str) -> _Response:
        with self._lock:
            self.n_requests += 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            self.received.append(Received(path, body, auth))
        try:
            return self._answer_to(path.partition("?")[0], body, key)
        except Exception as error:  # noqa: BLE001  a script may raise anything, and whoever asked is told
            return _error(StatusFault(500, f"The script raised {type(error).__name__}: {error}"))
        finally:
            with self._lock:
                self._in_flight -= 1

    def _answer_to(self, path: str, body: dict[str, Any], key: str) -> _Response:
        if self._key is not None and key != self._key:
            self._ending.wait(self.latency_s)
            return _error(StatusFault(401, "Incorrect API key provided.", "invalid_api_key"))
        vectors = _embedding_form(path, body)
        answer = self.answer(body) if vectors is None else self._fault_for(body)
        n_answer = len(answer) // 4 if isinstance(answer, str) else 0
        reserved = _reserved_tokens(body) if self.reserve_output else None
        refused, headers = self._charge(_tokens_of(body) + (n_answer if reserved is None else reserved))
        if refused is not None:
            return refused
        self._ending.wait(self.latency_s)
        if _asks_log_probs(body) and not self.log_probs:
            return _error(StatusFault(400, "Unsupported parameter: 'logprobs'", "unsupported_parameter", "logprobs"))
        if isinstance(answer, StatusFault):
            return _error(answer)
        if isinstance(answer, RawAnswer):
            return _raw(answer)
        if answer is WireFault.SILENCE:
            self._ending.wait()
        form = _vertex_form if path.endswith(":generateContent") else _openai_form
        if isinstance(answer, WireFault):
            if vectors is not None:
                nothing = dict.fromkeys(vectors, ())
                return _broken(answer, nothing, nothing)
            return _broken(answer, form(body, "", "content_filter"), form(body, None, "stop"))
        whole = form(body, answer, "stop") if vectors is None else vectors
        return _Response(200, json.dumps(whole).encode(), (_JSON, *headers))

    def _fault_for(self, body: dict[str, Any]) -> str | StatusFault | WireFault | RawAnswer:
        """Return the fault that the script has for an embedding, if any."""
        try:
            answer = self.answer(body)
        except Exception:  # noqa: BLE001  it may look for messages, which an embedding has not
            return ""
        return "" if isinstance(answer, str) else answer

    def _charge(self, tokens: int) -> tuple[_Response | None, tuple[tuple[str, str], ...]]:
        """Return a refusal if a quota is used up, and the headers that tell what is left."""
        with self._lock:
            now = time.monotonic()
            wait_s = max(self._requests.wait_s(now, 1), self._tokens.wait_s(now, tokens))
            if wait_s > 0:
                self.n_refused += 1
            else:
                self._requests.add(now, 1)
                self._tokens.add(now, tokens)
            headers = (*self._requests.headers("requests", now), *self._tokens.headers("tokens", now))
        if wait_s <= 0:
            return None, headers
        after = (("retry-after-ms", str(int(wait_s * 1000) + 1)), ("retry-after", str(int(wait_s) + 1)))
        return _error(StatusFault(429, "Rate limit reached.", "rate_limit_exceeded", None, (*after, *headers))), headers


class _Window:
    """Counts what the last 60 s held, and the most that any 60 s held."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.most = 0
        self._used = 0
        self._seen: deque[tuple[float, int]] = deque()

    def wait_s(self, now: float, amount: int) -> float:
        """Return how long `amount` has to wait; 0 if there is room."""
        self._forget(now)
        if self.limit is None or self._used + amount <= self.limit:
            return 0.0
        left = self._used + amount - self.limit
        for date, used in self._seen:
            left -= used
            if left <= 0:
                return date + _WINDOW_S - now
        return _WINDOW_S

    def add(self, now: float, amount: int) -> None:
        self._forget(now)
        self._seen.append((now, amount))
        self._used += amount
        self.most = max(self.most, self._used)

    def headers(self, what: str, now: float) -> tuple[tuple[str, str], ...]:
        if self.limit is None:
            return ()
        self._forget(now)
        left = max(0, self.limit - self._used)
        reset_s = self._seen[-1][0] + _WINDOW_S - now if self._seen else 0.0
        return (
            (f"x-ratelimit-limit-{what}", str(self.limit)),
            (f"x-ratelimit-remaining-{what}", str(left)),
            (f"x-ratelimit-reset-{what}", f"{reset_s:.3f}s"),
        )

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0][0] <= now - _WINDOW_S:
            self._used -= self._seen.popleft()[1]


_WINDOW_S = 60.0
_JSON = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (_JSON,)
    sent: int | None = None
    """How many bytes of it to send before closing; None sends it all."""
    more: Callable[[], Iterator[bytes]] | None = None
    """What to send in place of a body, until the client goes away."""


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    chat: ChatServer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*args, **kwargs)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}"
        try:
            body = json.loads(sent)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self._write(_error(StatusFault(400, "The body is no JSON object.")))
            return
        path = self.path.partition("?")[0]
        if not path.endswith(("/chat/completions", "/embeddings", ":generateContent", ":embedContent", ":predict")):
            self._write(_error(StatusFault(404, f"no such path: {path}")))
            return
        auth = next((name for name in ("api-key", "authorization") if name in self.headers), None)
        key = (self.headers.get(auth) or "" if auth else "").removeprefix("Bearer ")
        self._write(self.server.chat._reply_to(self.path, body, auth, key))

    def do_GET(self) -> None:
        found = self.path.partition("?")[0].endswith("/models")
        models = {"object": "list", "data": [{"id": "scripted", "object": "model"}]}
        self._write(_Response(200, json.dumps(models).encode()) if found else _error(StatusFault(404)))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
        """Keep the tests' output clean."""

    def _write(self, response: _Response) -> None:
        length = "connection: close" if response.more else f"content-length: {len(response.body)}"
        head = [f"HTTP/1.1 {response.status} Scripted", length]
        head += [f"{name}: {value}" for name, value in response.headers]
        whole = "\r\n".join([*head, "", ""]).encode() + response.body
        self.close_connection = self.close_connection or response.sent is not None or response.more is not None
        try:
            self.wfile.write(whole[: response.sent])
            for chunk in response.more() if response.more else ():
                self.wfile.write(chunk)
        except OSError:  # the client went away
            self.close_connection = True


def _error(fault: StatusFault) -> _Response:
    error = {"message": fault.message, "code": fault.code, "param": fault.param, "type": None, "status": fault.code}
    return _Response(fault.status, json.dumps({"error": error}).encode(), (_JSON, *fault.headers))


def _raw(answer: RawAnswer) -> _Response:
    if callable(answer.body):
        return _Response(answer.status, b"", answer.headers, more=answer.body)
    body = answer.body if isinstance(answer.body, (bytes, str)) else json.dumps(answer.body)
    return _Response(answer.status, body.encode() if isinstance(body, str) else body, answer.headers)


def _broken(fault: WireFault, filtered: dict[str, Any], empty: dict[str, Any]) -> _Response:
    whole = json.dumps(empty).encode()
    match fault:
        case WireFault.HTML:
            return _Response(200, b"<html>Sign in</html>", (("content-type", "text/html"),))
        case WireFault.MALFORMED_JSON:
            return _Response(200, whole[:-3])
        case WireFault.HALF:
            return _Response(200, whole, sent=100)
        case WireFault.NO_CHOICES:
            return _Response(200, whole)
        case WireFault.CONTENT_FILTER:
            return _Response(200, json.dumps(filtered).encode())
        case _:
            return _Response(200, b"", sent=0)


def _openai_form(body: dict[str, Any], text: str | None, finish_reason: str) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": text},
    }
    if body.get("logprobs") and text is not None:
        choice["logprobs"] = {"content": [_openai_token(*token) for token in _log_probs(body, text)]}
    n_prompt, n_answer = len(prompt_of(body)) // 4, len(text or "") // 4
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", ""),
        "choices": [] if text is None else [choice],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer},
    }


def _log_probs(body: dict[str, Any], text: str) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return the tokens of an answer, each with its alternatives and their probabilities: the label has 0.8."""
    found = next(_label_schemas(body), {})
    labels = found.get("enum", [])
    label = _label_in(text) if labels else text
    written = next((form for form in (label, json.dumps(label)[1:-1]) if form and form in text), text)
    head, _, tail = text.partition(written) if written else ("", "", "")
    others = [other for other in labels if other != label][:19]
    tops = [(written, 0.8 if others else 1.0), *((other, 0.2 / len(others)) for other in others)]
    return [(head, [(head, 1.0)]), (written, tops), (tail, [(tail, 1.0)])]


def _label_in(text: str) -> str:
    """Return the one label of an answer; empty where there is none, or several."""
    try:
        answer = json.loads(text)
    except ValueError:
        return text
    label = answer.get("label") if isinstance(answer, dict) else None
    return label if isinstance(label, str) else ""


def _asks_log_probs(body: dict[str, Any]) -> bool:
    return bool(body.get("logprobs") or (body.get("generationConfig") or {}).get("responseLogprobs"))


def _reserved_tokens(body: dict[str, Any]) -> int | None:
    """Return the most tokens that a request allows its answer, if it says so."""
    given = {**(body.get("generationConfig") or {}), **body}
    named = (given.get(name) for name in ("max_completion_tokens", "max_tokens", "maxOutputTokens"))
    return next((number for number in named if isinstance(number, int)), None)


def _openai_token(piece: str, alternatives: Sequence[tuple[str, float]]) -> dict[str, Any]:
    top = [{"token": other, "logprob": math.log(share)} for other, share in alternatives]
    return {"token": piece, "logprob": top[0]["logprob"], "top_logprobs": top}


def _vertex_token(piece: str, share: float) -> dict[str, Any]:
    return {"token": piece, "logProbability": math.log(share)}


def _tokens_of(body: dict[str, Any]) -> int:
    texts = body.get("input")
    if texts is None:
        return len(prompt_of(body)) // 4
    return sum(len(str(text)) for text in ([texts] if isinstance(texts, str) else texts)) // 4


def _embedding_form(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the vectors of an embedding request: its words, hashed; None if it is another request."""
    if path.endswith("/embeddings"):
        texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input", [])
        data = []
        for index, text in enumerate(texts):
            vector = _hashed_words(str(text))
            raw = base64.b64encode(vector.tobytes()).decode()
            shown: object = raw if body.get("encoding_format") == "base64" else vector.tolist()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        usage = {"prompt_tokens": _tokens_of(body), "total_tokens": _tokens_of(body)}
        return {"object": "list", "data": data, "model": body.get("model", ""), "usage": usage}
    if path.endswith(":embedContent"):
        text = "".join(part.get("text", "") for part in (body.get("content") or {}).get("parts", []))
        return {
            "embedding": {"values": _hashed_words(text).tolist()},
            "usageMetadata": {"promptTokenCount": len(text) // 4},
        }
    if path.endswith(":predict"):
        found = [
            {"embeddings": {"values": _hashed_words(item["content"]).tolist(), "statistics": {"token_count": 1}}}
            for item in body.get("instances", [])
        ]
        return {"predictions": found}
    return None


def _vertex_form(body: dict[str, Any], text: str | None, finish_reason: str) -> dict[str, Any]:
    reason = {"stop": "STOP", "content_filter": "SAFETY"}[finish_reason]
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": reason}
    if _asks_log_probs(body) and text is not None:
        tokens = _log_probs(body, text)
        candidate["logprobsResult"] = {
            "chosenCandidates": [_vertex_token(*alternatives[0]) for _, alternatives in tokens],
            "topCandidates": [{"candidates": [_vertex_token(*one) for one in others]} for _, others in tokens],
        }
    n_prompt, n_answer = len(prompt_of(body)) // 4, len(text or "") // 4
    usage = {"promptTokenCount": n_prompt, "candidatesTokenCount": n_answer}
    return {"candidates": [] if text is None else [candidate], "usageMetadata": usage, "modelVersion": "scripted"}


def _default_answer(body: dict[str, Any]) -> str:
    found = next(_label_schemas(body), None)
    if found is None:
        return "ok"
    labels = (found.get("items") or found)["enum"]
    prompt = prompt_of(body)
    best = max(labels, key=lambda label: len(re.findall(rf"(?<!\w){re.escape(label)}(?!\w)", prompt, re.IGNORECASE)))
    return json.dumps({"label": [best] if "items" in found else best})


def _label_schemas(part: object) -> Iterator[dict[str, Any]]:
    """Yield the schema of every ``label`` property in `part` of a request."""
    if isinstance(part, dict):
        properties = part.get("properties")
        if isinstance(properties, dict) and "label" in properties:
            yield properties["label"]
        for inner in part.values():
            yield from _label_schemas(inner)


def main() -> None:
    """Serve until Ctrl-C; ``python -m skllm_ray.testing --help`` shows what."""
    import click

    @click.command()
    @click.option("--port", default=8008, show_default=True)
    @click.option("--latency-s", default=0.0, show_default=True, help="How long every answer takes.")
    @click.option("--key", default=None, help="The API key to insist on.")
    @click.option("--requests-per-minute", default=None, type=int)
    @click.option("--tokens-per-minute", default=None, type=int)
    @click.option("--reserve-output", is_flag=True, help="Charge the most tokens that a request allows its answer.")
    @click.option("--faults", default=0.0, show_default=True, help="The share of requests that fail in a passing way.")
    def serve(port: int, latency_s: float, faults: float, **quota: Any) -> None:
        """Serve an OpenAI-compatible API that answers with the label that the prompt names most often."""
        passing: list[StatusFault | WireFault] = [
            WireFault.DROP,
            WireFault.HALF,
            WireFault.HTML,
            WireFault.MALFORMED_JSON,
            StatusFault(500),
        ]

        def answer(body: dict[str, Any]) -> str | StatusFault | WireFault:
            return random.choice(passing) if random.random() < faults else _default_answer(body)

        with ChatServer(answer, latency_s=latency_s, port=port, **quota) as server:
            click.echo(f"Serving at {server.url}; Ctrl-C ends it.")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            click.echo(f"{server.n_requests} requests, {server.n_refused} refused for the quota.")

    serve()
