"""The HTTP side of the fake servers of tuning, files and batches: requests are read, and answers are written."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit


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


class Routed:
    """A server on this machine that answers by routes, in a thread of its own.

    A route is a method, a pattern of the path, and the name of the method that answers; it gets the pattern's groups,
    and ``query``, ``headers`` and ``body``.
    """

    routes: ClassVar[list[tuple[str, str, str]]]

    def _listen(self, port: int = 0) -> None:
        self._http = Listener(("127.0.0.1", port), Handler)
        self._http.answering = self._answer
        self.root = f"http://127.0.0.1:{self._http.server_port}"
        self.url = f"{self.root}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serves(self, handle: str) -> bool:
        """Return whether a route is there."""
        del handle
        return True

    def _answer(self, method: str, target: str, headers: Any, body: bytes) -> Response:
        parts = urlsplit(target)
        path, query = unquote(parts.path), {name: found[0] for name, found in parse_qs(parts.query).items()}
        for verb, pattern, handle in self.routes:
            match = re.fullmatch(pattern, path)
            if verb == method and match and self._serves(handle):
                answer: Response = getattr(self, handle)(*match.groups(), query=query, headers=headers, body=body)
                return answer
        return error_response(404, f"no such path: {method} {path}")


def json_response(value: dict[str, Any]) -> Response:
    """Return an object."""
    return Response(200, json.dumps(value).encode())


def error_response(status: int, message: str) -> Response:
    """Return an HTTP error in the API's own form."""
    return Response(status, json.dumps({"error": {"code": status, "message": message, "status": str(status)}}).encode())
