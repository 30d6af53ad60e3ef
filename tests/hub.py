"""A server that speaks the Hugging Face hub's download protocol, with faults."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PIECE = 1 << 20


class Hub:
    """Serves the files of one repository at ``/owner/repo/resolve/main/FILE``.

    Parameters
    ----------
    content : bytes
        The file.
    cut_after : int, default=0
        Bytes after which a transfer is cut, while `n_cuts` lasts.
    n_cuts : int, default=0
        How many transfers are cut.
    token : str, default=""
        The bearer token that is asked for, if any.
    served : bytes, optional
        What is sent in the content's place: a transfer that damages the file.
    parts : dict of str to bytes, optional
        The repository's files, in place of the one file ``model.gguf``.
    bytes_per_s : float, optional
        How much it sends in a second, to all that ask together.
    """

    def __init__(
        self,
        content: bytes = b"",
        *,
        cut_after: int = 0,
        n_cuts: int = 0,
        token: str = "",
        served: bytes | None = None,
        parts: dict[str, bytes] | None = None,
        bytes_per_s: float = float("inf"),
    ) -> None:
        self.files = parts or {"model.gguf": content}
        self.served = served
        self.bytes_per_s, self._free_at = bytes_per_s, 0.0
        self._digests = {name: hashlib.sha256(held).hexdigest() for name, held in self.files.items()}
        self.cut_after, self.n_cuts, self.token = cut_after, n_cuts, token
        self.ranges: list[str | None] = []
        self.n_bytes = 0
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            self._headers(handler, 401, 0, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            return
        if handler.path.startswith("/api/models/owner/repo/tree/main"):
            self._list(handler)
            return
        name = handler.path.partition("?")[0].removeprefix("/owner/repo/resolve/main/")
        if name not in self.files:
            self._headers(handler, 404, 0, {"X-Error-Code": "EntryNotFound"})
            return
        content = self.files[name]
        served = content if self.served is None else self.served
        start = 0
        wanted = handler.headers.get("Range")
        if body:
            with self.lock:
                self.ranges.append(wanted)
            if wanted:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
        digest = self._digests[name]
        extra = {
            "ETag": f'"{digest}"',
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": "1" * 40,
            "Accept-Ranges": "bytes",
        }
        part = served[start:]
        if start:
            extra["Content-Range"] = f"bytes {start}-{len(served) - 1}/{len(served)}"
        self._headers(handler, 206 if start else 200, len(part), extra)
        if not body:
            return
        with self.lock:
            cut = self.n_cuts > 0
            self.n_cuts -= cut
        if cut:
            part = part[: self.cut_after]
        for begin in range(0, len(part), _PIECE):
            self._wait(len(part[begin : begin + _PIECE]))
            handler.wfile.write(part[begin : begin + _PIECE])
        self.n_bytes += len(part)
        if cut:
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_WR)  # what was written still arrives
            handler.close_connection = True

    def _wait(self, n: int) -> None:
        """Wait until some bytes may be sent."""
        with self.lock:
            self._free_at = max(self._free_at, time.monotonic()) + n / self.bytes_per_s
            wait_s = self._free_at - time.monotonic()
        if wait_s > 0.01:
            time.sleep(wait_s)

    def _list(self, handler: BaseHTTPRequestHandler) -> None:
        rows = [
            {"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in self.files.items()
        ]
        body = json.dumps(rows).encode()
        self._headers(handler, 200, len(body), {"Content-Type": "application/json"})
        handler.wfile.write(body)

    @staticmethod
    def _headers(handler: BaseHTTPRequestHandler, status: int, length: int, extra: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(length), **extra}.items():
            handler.send_header(name, value)
        handler.end_headers()
