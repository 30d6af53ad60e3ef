"""Posting JSON: redirects, proxies, packed answers and large bodies, over real sockets."""

import asyncio
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from skllm_ray.llm.api.http_client import HttpClient, SentHeaders
from skllm_ray.llm.api.response_body import StatusError

HEADERS = SentHeaders({"api-key": "sk-planted", "content-type": "application/json"})


@pytest.fixture
def server():
    """Answer what was posted; paths say how."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.path, dict(self.headers), body))
            if self.path.startswith("/to/"):
                self.send_response(307)
                self.send_header("location", self.path.removeprefix("/to/").replace("%3A", ":"))
                body = b""
            elif self.path == "/packed":
                self.send_response(200)
                self.send_header("content-encoding", "gzip")
                body = gzip.compress(body)
            else:
                self.send_response(404 if self.path == "/none" else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given):
            pass

    seen = []
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}", seen
    found.shutdown()
    found.server_close()


def post(url, body=None, timeout_s=20.0):
    async def run():
        client = HttpClient(timeout_s)
        try:
            return await client.post(url, {"a": "ü"} if body is None else body, HEADERS)
        finally:
            await client.close()

    return asyncio.run(run())


def test_a_redirect_of_the_server_to_itself_is_followed(server):
    url, seen = server
    assert json.loads(post(f"{url}/to//answers").content) == {"a": "ü"}
    assert [path for path, _, _ in seen] == ["/to//answers", "/answers"]


def test_nobody_else_gets_the_headers_by_a_redirect(server):
    url, seen = server
    elsewhere = url.replace("127.0.0.1", "localhost").replace(":", "%3A")
    with pytest.raises(StatusError) as caught:
        post(f"{url}/to/{elsewhere}/answers")
    assert caught.value.answer.status == 307
    assert len(seen) == 1


def test_a_redirect_without_end_is_an_error(server):
    url, seen = server
    with pytest.raises(StatusError):
        post(f"{url}/to/")
    assert 1 <= len(seen) <= 6


def test_an_answer_is_unpacked_and_a_large_body_sent(server):
    url, _ = server
    body = {"a": "x" * 3_000_000}
    assert json.loads(post(f"{url}/packed", body).content) == body


def test_the_proxy_of_the_environment_is_asked_unless_it_is_to_be_left_out(server, monkeypatch):
    url, seen = server
    monkeypatch.setenv("http_proxy", url.replace("http://", "http://user:word@"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert post("http://example.invalid/answers").status == 200
    path, headers, _ = seen[0]
    assert path == "http://example.invalid/answers"
    assert headers["Proxy-Authorization"].startswith("Basic ")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert post(f"{url}/answers").status == 200
    assert seen[1][0] == "/answers"


def test_an_error_has_its_status_and_what_it_says(server):
    url, _ = server
    with pytest.raises(StatusError) as caught:
        post(f"{url}/none")
    assert (caught.value.answer.status, json.loads(caught.value.answer.content)) == (404, {"a": "ü"})
