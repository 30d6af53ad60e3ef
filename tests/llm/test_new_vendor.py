"""A new API vendor is one file (`acme.py`) and one row of the table of providers; everything else works as it is."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from skllm_ray import batch
from skllm_ray.batch.tools.estimate import estimate_job
from skllm_ray.classification import DynamicFewShotGPTClassifier, GPTClassifier, ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, JobFailedError, NotSupportedError, UnknownModelError
from skllm_ray.llm.registry import PROVIDERS
from skllm_ray.vectorization import GPTVectorizer
from tests.llm import acme

KEY = "acme-0123456789abcdef"
LABELS = ["bad", "good"]
IN, OUT = 400, 5
ROW_USD = acme.PRICES["small"].cost_usd(IN, OUT)


class AcmeServer:
    """The vendor's server: refuses other keys, is busy once for each text that says so, and counts texts."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []
        lock, owner = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                text = re.search(r"number \d+[^`]*", body["turns"][-1])[0].strip()
                with lock:
                    owner.asked[text] += 1
                    owner.bodies.append(body)
                    times = owner.asked[text]
                if self.headers["x-acme-key"] != KEY or self.path != "/answers":
                    self._send(401, {"error": {"message": f"no such key {self.headers['x-acme-key']}"}})
                elif "busy" in text and times == 1:
                    self._send(429, {"error": {"message": "slow down"}}, {"retry-after-ms": "20"})
                else:
                    said = {"label": "good" if "good" in text else "bad"}
                    counts = {"in": IN, "out": OUT}
                    self._send(200, {"said": json.dumps(said), "model": "small-7", "counts": counts})

            def _send(self, status: int, body: dict, headers: dict | None = None) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> AcmeServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AcmeServer]:
    with AcmeServer() as running:
        monkeypatch.setitem(PROVIDERS, "acme", acme.ROW)
        monkeypatch.setitem(acme.URL, "acme", running.url)
        yield running


def texts(n: int) -> list[str]:
    return [f"number {i} is {'good' if i % 2 else 'awful'}{' busy' if i == 3 else ''}" for i in range(n)]


def classifier(**parameters: object) -> ZeroShotGPTClassifier:
    return ZeroShotGPTClassifier(**{"model": "acme::small", "key": KEY, **parameters}).fit(None, LABELS)


def test_its_row_is_all_that_makes_it_known():
    with pytest.raises(UnknownModelError, match="Unknown namespace 'acme'"):
        classifier()


@pytest.mark.usefixtures("local_mode")
def test_predict(server):
    SKLLMConfig.set_rate_limit("acme::small", max_concurrency=2)
    details = classifier(request_options={"mood": "brief"}).predict_details(texts(20))
    assert details["prediction"].tolist() == ["bad", "good"] * 10
    assert details["attempts"].tolist() == [2 if i == 3 else 1 for i in range(20)]
    assert details["cost_usd"].tolist() == pytest.approx([ROW_USD] * 20)
    assert set(details["model"]) == {"small-7"}
    assert {body["mood"] for body in server.bodies} == {"brief"}
    assert KEY not in details.to_csv()


@pytest.mark.usefixtures("local_mode")
def test_what_it_refuses_ends_the_call_and_shows_no_key(server):
    with pytest.raises(JobFailedError, match="authentication") as caught:
        classifier(key="acme-of-nobody-123").predict(texts(100))
    assert "nobody" not in str(caught.value)
    assert server.asked.total() <= 60
    with pytest.raises(ConfigurationError, match="no call without a key"):
        classifier(key=None).predict(texts(1))


@pytest.mark.usefixtures("local_mode")
def test_what_it_cannot_do_is_said_before_anything_is_sent(server):
    clf = classifier()
    with pytest.raises(NotSupportedError, match="probabilities"):
        clf.predict_proba(texts(1))
    with pytest.raises(NotSupportedError, match=r"acme::small.*embed"):
        GPTVectorizer(model="acme::small", key=KEY).fit_transform(texts(1))
    with pytest.raises(NotSupportedError, match="cannot be tuned"):
        GPTClassifier(base_model="acme::small", key=KEY).fit(texts(20), LABELS * 10)
    with pytest.raises(ConfigurationError, match=r"vectorizer=?.*acme"):
        DynamicFewShotGPTClassifier(model="acme::small", key=KEY).fit(texts(4), LABELS * 2)
    assert server.asked.total() == 0


@pytest.mark.usefixtures("local_mode")
def test_its_replies_are_cached(server, tmp_path):
    SKLLMConfig.set_reply_cache(tmp_path / "replies.sqlite")
    first, second = (classifier().predict(texts(10)).tolist() for _ in range(2))
    assert first == second
    assert server.asked.total() == 11


@pytest.mark.usefixtures("local_mode")
@pytest.mark.parametrize("own", [True, False], ids=["its list price", "a price that is given"])
def test_a_batch_job_with_a_budget(server, tmp_path, own):
    pd.DataFrame({"text": texts(60)}).to_parquet(tmp_path / "in.parquet")
    prices = {} if own else {"input_price": 4.0, "output_price": 20.0}
    row_usd = ROW_USD * (1 if own else 2)
    options = {"unit_rows": 20, "max_output_tokens": 20, "keep_columns": ["text"], **prices}
    plenty = batch.run(classifier(), str(tmp_path / "in.parquet"), str(tmp_path / "all"), budget_usd=5.0, **options)
    assert plenty.complete
    assert plenty.total.cost_usd == pytest.approx(60 * row_usd)
    assert _labels(tmp_path / "all") == ["bad", "good"] * 30
    assert server.asked.total() == 61
    assert {body["most_tokens"] for body in server.bodies} == {20}
    scarce = batch.run(
        classifier(), str(tmp_path / "in.parquet"), str(tmp_path / "few"), budget_usd=0.9 * 60 * row_usd, **options
    )
    assert not scarce.complete
    assert 0 < scarce.total.cost_usd <= 0.9 * 60 * row_usd


def _labels(output: Path) -> list[str]:
    parts = sorted(output.glob("part-*.parquet"))
    return [label for part in parts for label in pq.read_table(part).column("prediction").to_pylist()]


@pytest.mark.usefixtures("local_mode")
def test_an_estimate(server, tmp_path):
    pd.DataFrame({"text": texts(50)}).to_parquet(tmp_path / "in.parquet")
    job = (classifier(), str(tmp_path / "in.parquet"), str(tmp_path / "out"))
    low, high = estimate_job(batch.job_for(*job)).cost_usd
    assert 0 < low <= high < 1
    assert server.asked.total() == 0
    measured = estimate_job(batch.job_for(*job), sample=10)
    low, high = measured.cost_usd
    assert low <= 50 * ROW_USD * 1.0001
    assert high >= 50 * ROW_USD * 0.9999
    assert measured.sample_cost_usd == pytest.approx(10 * ROW_USD)
    SKLLMConfig.set_price("acme::small", input_per_million=0.0)
    assert estimate_job(batch.job_for(*job)).cost_usd == (0.0, 0.0)
