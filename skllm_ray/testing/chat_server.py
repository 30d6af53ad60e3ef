"""A chat server on this machine, with faults, for tests of code that uses this library."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import deque
from typing import Any

from skllm_ray.testing.chat_forms import (
    asks_log_probs,
    default_answer,
    embedding_form,
    openai_form,
    reserved_tokens,
    tokens_of,
    vertex_form,
)
from skllm_ray.testing.chat_http import (
    JSON,
    Handler,
    Listener,
    Response,
    broken_response,
    error_response,
    raw_response,
)
from skllm_ray.testing.quota import Window
from skllm_ray.testing.script import Answer, LabelAnswer, RawAnswer, Received, StatusFault, WireFault


class ChatServer:
    """A local server of the OpenAI, Azure OpenAI and Vertex AI chat APIs that answers as a script says.

    Parameters
    ----------
    answer : callable, optional
        Takes a request's JSON body; returns the answer's text, a `LabelAnswer`, a fault or a `RawAnswer`. By
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
    slots : int or None, default=None
        How many requests are worked on at once; the others wait. None sets no limit.
    thrashes : bool, default=False
        Whether those that wait slow the others down, as they do where a small server's memory is full of them.
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
        slots: int | None = None,
        thrashes: bool = False,
        log_probs: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.answer = answer or default_answer
        self.latency_s = latency_s
        self.log_probs = log_probs
        self.reserve_output = reserve_output
        self.n_requests = 0
        self.n_refused = 0
        self.most_in_flight = 0
        self._in_flight = 0
        self._requests = Window(requests_per_minute)
        self._tokens = Window(tokens_per_minute)
        self.received: deque[Received] = deque(maxlen=1000)
        self._key = key
        self._lock = threading.Lock()
        self._slots = None if slots is None else threading.BoundedSemaphore(slots)
        self._n_slots, self._thrashes = slots or 0, thrashes
        self._ending = threading.Event()
        self._http = Listener((host, port), Handler)
        self._http.answering = self._reply_to
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

    def _reply_to(self, path: str, body: dict[str, Any], auth: str | None, key: str) -> Response:
        with self._lock:
            self.n_requests += 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            self.received.append(Received(path, body, auth))
        try:
            return self._answer_to(path.partition("?")[0], body, key)
        except Exception as error:  # noqa: BLE001  a script may raise anything, and whoever asked is told
            return error_response(StatusFault(500, f"The script raised {type(error).__name__}: {error}"))
        finally:
            with self._lock:
                self._in_flight -= 1

    def _answer_to(self, path: str, body: dict[str, Any], key: str) -> Response:
        if self._key is not None and key != self._key:
            self._ending.wait(self.latency_s)
            return error_response(StatusFault(401, "Incorrect API key provided.", "invalid_api_key"))
        vectors = embedding_form(path, body)
        answer = self.answer(body) if vectors is None else self._fault_for(body)
        told = answer.probabilities if isinstance(answer, LabelAnswer) else None
        answer = answer.text if isinstance(answer, LabelAnswer) else answer
        n_answer = len(answer) // 4 if isinstance(answer, str) else 0
        reserved = reserved_tokens(body) if self.reserve_output else None
        refused, headers = self._charge(tokens_of(body) + (n_answer if reserved is None else reserved))
        if refused is not None:
            return refused
        self._work()
        if asks_log_probs(body) and not self.log_probs:
            return error_response(
                StatusFault(400, "Unsupported parameter: 'logprobs'", "unsupported_parameter", "logprobs")
            )
        if isinstance(answer, StatusFault):
            return error_response(answer)
        if isinstance(answer, RawAnswer):
            return raw_response(answer)
        if answer is WireFault.SILENCE:
            self._ending.wait()
        form = vertex_form if path.endswith(":generateContent") else openai_form
        if isinstance(answer, WireFault):
            if vectors is not None:
                nothing = dict.fromkeys(vectors, ())
                return broken_response(answer, nothing, nothing)
            return broken_response(answer, form(body, "", "content_filter"), form(body, None, "stop"))
        whole = form(body, answer, "stop", told) if vectors is None else vectors
        return Response(200, json.dumps(whole).encode(), (JSON, *headers))

    def _work(self) -> None:
        """Take as long as an answer takes, once there is a slot for it."""
        with self._slots or contextlib.nullcontext():
            waiting = max(0, self._in_flight - self._n_slots) if self._thrashes else 0
            self._ending.wait(self.latency_s * (1 + waiting / max(1, self._n_slots)))

    def _fault_for(self, body: dict[str, Any]) -> str | StatusFault | WireFault | RawAnswer:
        """Return the fault that the script has for an embedding, if any."""
        try:
            answer = self.answer(body)
        except Exception:  # noqa: BLE001  it may look for messages, which an embedding has not
            return ""
        return "" if isinstance(answer, str | LabelAnswer) else answer

    def _charge(self, tokens: int) -> tuple[Response | None, tuple[tuple[str, str], ...]]:
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
        return error_response(
            StatusFault(429, "Rate limit reached.", "rate_limit_exceeded", None, (*after, *headers))
        ), headers
