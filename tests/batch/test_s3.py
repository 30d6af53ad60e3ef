"""An object store that fails now and then, in the middle of writes too: no row is lost, none is paid for twice."""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.output import fence
from skllm_ray.errors import SkllmRayError
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.testing import ChatServer
from tests.batch.worlds import api_classifier, texts

pytestmark = pytest.mark.slow
BUSY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


class Faulty(BaseHTTPRequestHandler):
    """Passes requests on; some get an error, and some a closed connection, before or after they were done."""

    protocol_version = "HTTP/1.1"
    address: str
    chance: random.Random
    share = 0.0
    faults: Counter[str]

    def log_message(self, *arguments: object) -> None: ...

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size + 2)[:size])
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _do(self) -> None:
        body = self._body()
        kind = self.chance.choice(["500", "503", "before", "after"]) if self.chance.random() < self.share else ""
        self.faults[f"{self.command} {kind}"] += bool(kind)
        if kind.isdigit():
            self._send(int(kind), [], BUSY, str(len(BUSY)))
            return
        if kind != "before":
            store = http.client.HTTPConnection(self.address)
            kept = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            store.request(
                self.command, self.path, body or None, kept | ({"content-length": str(len(body))} if body else {})
            )
            reply = store.getresponse()
            data = reply.read()
        if kind:
            self.close_connection = True
            self.connection.close()
            return
        passed = [pair for pair in reply.getheaders() if pair[0].lower() not in {"transfer-encoding", "content-length"}]
        self._send(reply.status, passed, data, reply.getheader("content-length") or str(len(data)))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _do  # noqa: N815  the base class looks for these names


@pytest.fixture
def store(s3_server) -> Iterator[tuple[dict[str, Any], type[Faulty]]]:
    class Ours(Faulty):
        address = s3_server
        chance = random.Random(0)
        faults: Counter[str] = Counter()  # noqa: RUF012  that of this test

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Ours)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    options = {"scheme": "http", "region": "us-east-1", "access_key": "key", "secret_key": "secret"}
    yield {"endpoint_override": f"127.0.0.1:{proxy.server_port}", "allow_bucket_creation": True, **options}, Ours
    proxy.shutdown()


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_store_that_fails_now_and_then_costs_no_row(store, monkeypatch, share):
    options, proxy = store
    monkeypatch.setattr(fence, "HEARTBEAT_S", 1.0)
    s3 = pafs.S3FileSystem(**options)
    bucket = "bucket"
    s3.create_dir(bucket)
    pq.write_table(pa.table({"id": range(600), "text": texts(600)}), f"{bucket}/in/a.parquet", filesystem=s3)
    skllm_ray.init(local_mode=True)
    proxy.share = share
    prices = {"budget_usd": 1000.0, "input_price": 1.0, "output_price": 1.0}
    try:
        with ChatServer(latency_s=0.005) as server:
            clf = api_classifier(server)
            told: list[str] = []
            done = None
            for _ in range(20):
                try:
                    where = (f"s3://{bucket}/in/a.parquet", f"s3://{bucket}/out")
                    done = batch.run(clf, *where, storage_options=options, unit_rows=100, **prices)
                except (OSError, SkllmRayError) as error:
                    told.append(str(error))
                    continue
                if done.complete:
                    break
            assert done is not None, told
            assert done.complete, told
            assert proxy.faults.total() > 5
            assert server.n_requests <= 600 + 64  # a segment that could not be written is paid for again
    finally:
        ModelCache.clear()
        skllm_ray.shutdown()
    proxy.share = 0.0
    parts = [info.path for info in s3.get_file_info(pafs.FileSelector(f"{bucket}/out")) if "part-" in info.path]
    found = pa.concat_tables([pq.read_table(part, filesystem=s3) for part in parts]).sort_by("id")
    assert found["id"].to_pylist() == list(range(600))
    assert found["prediction"].null_count == 0
