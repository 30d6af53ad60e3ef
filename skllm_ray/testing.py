"""Fakes for tests of code that uses this library: a backend in the process, and a server with faults."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skllm_ray.config import RateLimit
from skllm_ray.llm.base import Placement, SecretResolver
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError, Usage

__all__ = ["ChatServer", "FakeBackend", "FakeSpec", "Received", "StatusFault", "WireFault", "prompt_of"]


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


Answer: TypeAlias = Callable[[dict[str, Any]], "str | StatusFault | WireFault"]


@dataclass(frozen=True, slots=True)
class Received:
    """A request that a `ChatServer` saw. Of a credential it keeps only the header's name."""

    path: str
    body: dict[str, Any]
    auth: str | None
    """``authorization``, ``api-key`` or None."""


def prompt_of(body: dict[str, Any]) -> str:
    """Return all the text of a request's messages, be it OpenAI's or Vertex AI's."""
    if "messages" in body:
        return "\n".join(str(message["content"]) for message in body["messages"])
    turns = [body.get("systemInstruction") or {}, *body.get("contents", [])]
    return "\n".join(part.get("text", "") for turn in turns for part in turn.get("parts", []))


class ChatServer:
    """A local server of the OpenAI, Azure OpenAI and Vertex AI chat APIs that answers as a script says.

    Parameters
    ----------
    answer : callable, optional
        Takes a request's JSON body; returns the answer's text, a `StatusFault` or a `WireFault`. By default a
        classification gets the label that the prompt names most often, and any other request gets ``"ok"``.
    latency_s : float, default=0
        How long every answer takes, in seconds.
    key : str or None, default=None
        The API key to insist on; None takes any.

    Attributes
    ----------
    url : str
        The OpenAI-compatible base URL; it ends in ``/v1``.
    root : str
        The base URL for Azure and Vertex AI.
    n_requests : int
        Chat requests so far.
    received : deque of Received
        The last 1,000 of them.

    Examples
    --------
    >>> from urllib.request import urlopen
    >>> with ChatServer() as server, urlopen(server.url + "/models") as reply:
    ...     reply.status
    200
    """

    def __init__(self, answer: Answer | None = None, *, latency_s: float = 0, key: str | None = None) -> None:
        self.answer = answer or _default_answer
        self.latency_s = latency_s
        self.n_requests = 0
        self.received: deque[Received] = deque(maxlen=1000)
        self._key = key
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._http = _Listener(("127.0.0.1", 0), _Handler)
        self._http.chat = self
        self.root = f"http://127.0.0.1:{self._http.server_port}"
        self.url = f"{self.root}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.set()
        self._http.shutdown()
        self._http.server_close()

    def _reply_to(self, path: str, body: dict[str, Any], auth: str | None, key: str) -> _Response:
        with self._lock:
            self.n_requests += 1
            self.received.append(Received(path, body, auth))
        self._ending.wait(self.latency_s)
        if self._key is not None and key != self._key:
            return _error(StatusFault(401, "Incorrect API key provided.", "invalid_api_key"))
        answer = self.answer(body)
        form = _vertex_form if path.partition("?")[0].endswith(":generateContent") else _openai_form
        if isinstance(answer, StatusFault):
            return _error(answer)
        if answer is WireFault.SILENCE:
            self._ending.wait()
        if isinstance(answer, str):
            return _Response(200, json.dumps(form(body, answer, "stop")).encode())
        return _broken(answer, form(body, "", "content_filter"), form(body, None, "stop"))


_JSON = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (_JSON,)
    sent: int | None = None
    """How many bytes of it to send before closing; None sends it all."""


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    chat: ChatServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        path = self.path.partition("?")[0]
        if not path.endswith(("/chat/completions", ":generateContent")):
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
        head = [f"HTTP/1.1 {response.status} Scripted", f"content-length: {len(response.body)}"]
        head += [f"{name}: {value}" for name, value in response.headers]
        whole = "\r\n".join([*head, "", ""]).encode() + response.body
        self.close_connection = self.close_connection or response.sent is not None
        try:
            self.wfile.write(whole[: response.sent])
        except OSError:  # the client went away
            self.close_connection = True


def _error(fault: StatusFault) -> _Response:
    error = {"message": fault.message, "code": fault.code, "param": fault.param, "type": None, "status": fault.code}
    return _Response(fault.status, json.dumps({"error": error}).encode(), (_JSON, *fault.headers))


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
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    n_prompt, n_answer = len(prompt_of(body)) // 4, len(text or "") // 4
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", ""),
        "choices": [] if text is None else [choice],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer},
    }


def _vertex_form(body: dict[str, Any], text: str | None, finish_reason: str) -> dict[str, Any]:
    reason = {"stop": "STOP", "content_filter": "SAFETY"}[finish_reason]
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": reason}
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


class FakeBackend:
    """A backend in this process that answers as a function says.

    Parameters
    ----------
    answer : callable
        Takes a `ChatRequest`; returns the answer's text or a `RowError`.
    latency_s : float, default=0
        How long a call of `complete` takes, in seconds.

    Attributes
    ----------
    n_requests : int
        Requests so far.
    closed : bool
        Whether `close` was called.

    Examples
    --------
    >>> backend = FakeBackend(lambda request: request.messages[-1]["content"].upper())
    >>> backend.complete([ChatRequest(({"role": "user", "content": "hello"},))])[0].text
    'HELLO'
    """

    def __init__(self, answer: Callable[[ChatRequest], str | RowError], latency_s: float = 0) -> None:
        self.answer = answer
        self.latency_s = latency_s
        self.n_requests = 0
        self.closed = False

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, in order."""
        self.n_requests += len(requests)
        time.sleep(self.latency_s)
        return [self._reply(request) for request in requests]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return a unit vector of 64 dimensions per text: its words, hashed. Like texts lie close together."""
        self.n_requests += len(texts)
        return [Embedding(_hashed_words(text), model="fake") for text in texts]

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def _reply(self, request: ChatRequest) -> Reply:
        answer = self.answer(request)
        n_prompt = sum(len(message["content"]) for message in request.messages) // 4
        if isinstance(answer, RowError):
            return Reply(error=answer, model="fake")
        return Reply(answer, usage=Usage(n_prompt, len(answer) // 4), model="fake")


def _hashed_words(text: str) -> NDArray[np.float32]:
    buckets = [zlib.crc32(word.encode("utf-8", "replace")) % 64 for word in text.lower().split()] or [0]
    vector = np.bincount(buckets, minlength=64).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


@dataclass(frozen=True)
class FakeSpec:
    """The spec of a `FakeBackend`; it travels to workers as far as `answer` pickles (Ray's cloudpickle takes lambdas).

    Every `FakeSpec` is a backend of its own: two with the same arguments have different keys, copies the same.

    Examples
    --------
    >>> spec = FakeSpec(lambda request: "yes", batch_size=8)
    >>> spec.placement.batch_size
    8
    """

    answer: Callable[[ChatRequest], str | RowError]
    batch_size: int = 256
    latency_s: float = 0
    limit: RateLimit | None = field(default=None, kw_only=True)
    """The declared limit; nothing enforces it."""
    key: str = field(default_factory=lambda: f"fake-{uuid.uuid4().hex}", kw_only=True)
    """Identifies the backend."""

    @property
    def model(self) -> str:
        """Always ``"fake"``."""
        return "fake"

    @property
    def gives_probabilities(self) -> bool:
        """It answers with texts alone."""
        return False

    @property
    def placement(self) -> Placement:
        """Stateless, in blocks of `batch_size` rows."""
        return Placement(batch_size=self.batch_size)

    def check(self) -> None:
        """Accept everything."""

    def open(self, resolve_secret: SecretResolver) -> FakeBackend:  # noqa: ARG002  the protocol's signature
        """Open the backend in this process."""
        return FakeBackend(self.answer, self.latency_s)
