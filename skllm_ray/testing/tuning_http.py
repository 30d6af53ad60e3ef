"""The HTTP side of the fake tuning server: requests are read, and answers are written to the socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Response:
    """What is written to the socket; nothing where `dropped`."""

    status: int
    body: bytes
    content_type: str = "application/json"
    dropped: bool = False


Answering: TypeAlias = Callable[[str, str, Any, bytes], Response]
"""Takes a request's method, its path with the query, its headers and its body."""


class Listener(ThreadingHTTPServer):
    """Listens, and asks `answering` about each request."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    answering: Answering

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep the tests' output clean when a client dies."""


class Handler(BaseHTTPRequestHandler):
    """Reads a request, and writes what `Listener.answering` returns for it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def do_GET(self) -> None:
        """Answer a GET."""
        self._serve("GET")

    def do_POST(self) -> None:
        """Answer a POST."""
        self._serve("POST")

    def do_DELETE(self) -> None:
        """Answer a DELETE."""
        self._serve("DELETE")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
        """Keep the tests' output clean."""

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        answer = self.server.answering(method, self.path, self.headers, body)
        try:
            if answer.dropped:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
        except OSError:  # the client went away
            self.close_connection = True


def json_response(value: dict[str, Any]) -> Response:
    """Return an object."""
    return Response(200, json.dumps(value).encode())


def error_response(status: int, message: str) -> Response:
    """Return an HTTP error in the API's own form."""
    return Response(status, json.dumps({"error": {"code": status, "message": message, "status": str(status)}}).encode())
