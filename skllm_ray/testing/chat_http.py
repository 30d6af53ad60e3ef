"""The HTTP side of the fake chat server: requests are read, and answers or faults are written to the socket."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from skllm_ray.testing.script import RawAnswer, StatusFault, WireFault

JSON = ("content-type", "application/json")
PATHS = ("/chat/completions", "/embeddings", ":generateContent", ":embedContent", ":predict")


@dataclass(frozen=True, slots=True)
class Response:
    """What is written to the socket."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (JSON,)
    sent: int | None = None
    """How many bytes of it to send before closing; None sends it all."""
    more: Callable[[], Iterator[bytes]] | None = None
    """What to send in place of a body, until the client goes away."""


Answering: TypeAlias = Callable[[str, dict[str, Any], "str | None", str], Response]
"""Takes a request's path, its body, the header that held a credential, and the credential."""


class Listener(ThreadingHTTPServer):
    """Listens, and knows its open connections, so that they can be closed with it."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    answering: Answering
    paths: tuple[str, ...] = PATHS
    """How the paths end that are answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*args, **kwargs)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that closed the connection; print what else went wrong, as ever."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, and writes what `Listener.answering` returns for it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def setup(self) -> None:
        """Note the connection."""
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.server.connections.discard(self.connection)
        super().finish()

    def do_POST(self) -> None:
        """Answer a chat or an embedding."""
        sent = self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}"
        try:
            body = json.loads(sent)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self._write(error_response(StatusFault(400, "The body is no JSON object.")))
            return
        path = self.path.partition("?")[0]
        if not path.endswith(self.server.paths):
            self._write(error_response(StatusFault(404, f"no such path: {path}")))
            return
        auth = next((name for name in ("api-key", "authorization") if name in self.headers), None)
        key = (self.headers.get(auth) or "" if auth else "").removeprefix("Bearer ")
        self._write(self.server.answering(self.path, body, auth, key))

    def do_GET(self) -> None:
        """Answer what models there are."""
        found = self.path.partition("?")[0].endswith("/models")
        models = {"object": "list", "data": [{"id": "scripted", "object": "model"}]}
        self._write(Response(200, json.dumps(models).encode()) if found else error_response(StatusFault(404)))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
        """Keep the tests' output clean."""

    def _write(self, response: Response) -> None:
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


def error_response(fault: StatusFault) -> Response:
    """Return an HTTP error in the API's own form."""
    error = {"message": fault.message, "code": fault.code, "param": fault.param, "type": None, "status": fault.code}
    return Response(fault.status, json.dumps({"error": error}).encode(), (JSON, *fault.headers))


def raw_response(answer: RawAnswer) -> Response:
    """Return an answer of any form."""
    if callable(answer.body):
        return Response(answer.status, b"", answer.headers, more=answer.body)
    body = answer.body if isinstance(answer.body, (bytes, str)) else json.dumps(answer.body)
    return Response(answer.status, body.encode() if isinstance(body, str) else body, answer.headers)


def broken_response(fault: WireFault, filtered: dict[str, Any], empty: dict[str, Any]) -> Response:
    """Return what a broken server sends; `filtered` and `empty` are answers in the API's own form."""
    whole = json.dumps(empty).encode()
    match fault:
        case WireFault.HTML:
            return Response(200, b"<html>Sign in</html>", (("content-type", "text/html"),))
        case WireFault.MALFORMED_JSON:
            return Response(200, whole[:-3])
        case WireFault.HALF:
            return Response(200, whole, sent=100)
        case WireFault.NO_CHOICES:
            return Response(200, whole)
        case WireFault.CONTENT_FILTER:
            return Response(200, json.dumps(filtered).encode())
        case _:
            return Response(200, b"", sent=0)
