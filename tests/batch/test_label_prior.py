"""The labels' prior of a job: asked for once, counted, kept for every row and every run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.tools.estimate import estimate_job
from skllm_ray.batch.tools.evaluate import compare_models
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import JobFailedError, OutputMismatchError
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.tasks.prior import CONTENT_FREE
from skllm_ray.testing import ChatServer
from tests.batch.worlds import LABELS, read, texts, write

PRICES = {"input_price": 1.0, "output_price": 2.0}
N_PRIOR = len(CONTENT_FREE)


@pytest.fixture(autouse=True)
def _world():
    SKLLMConfig.reset()
    skllm_ray.init(local_mode=True)
    ModelCache.clear()
    yield
    ModelCache.clear()
    skllm_ray.shutdown()
    SKLLMConfig.reset()


def answer(body):
    text = body["messages"][-1]["content"].rpartition("Text:")[2]
    return json.dumps({"label": "good" if "good" in text else "bad"})


def classifier(server, X=None, **params):
    SKLLMConfig.set_gpt_url(server.url)
    y = LABELS if X is None else [LABELS[i % 2] for i in range(len(X))]
    return ZeroShotGPTClassifier(
        model="custom_url::m", key="sk-test", on_error="coerce", label_prior="uniform", **params
    ).fit(X, y)


def job(server, source, output, **options):
    return batch.run(classifier(server), source, str(output), unit_rows=5, **PRICES, **options)


def prior_in(output):
    return pq.read_table(Path(output) / "_skllm_ray" / "prior.parquet")["probability"].to_pylist()


def test_a_job_asks_once_and_counts_it(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12))
    with ChatServer(answer) as server:
        result = job(server, source, tmp_path / "out", budget_usd=1.0)
        assert (result.complete, result.rows_done, result.errors) == (True, 12, {})
        assert server.n_requests == result.total.asked == result.this_run.asked == 12 + N_PRIOR
        clf = classifier(server)
        expected = clf.predict_details(texts(12))
    found = read(tmp_path / "out")
    assert prior_in(tmp_path / "out") == pytest.approx(clf.label_prior_.tolist())
    np.testing.assert_allclose(found["probability"], expected["probability"])
    assert found["prediction"].tolist() == expected["prediction"].tolist()
    in_parts = found[["prompt_tokens", "completion_tokens"]].sum()
    assert result.total.prompt_tokens > in_parts["prompt_tokens"]  # what the prior took is told, too
    assert result.total.cost_usd > (in_parts["prompt_tokens"] + 2 * in_parts["completion_tokens"]) / 1e6


def test_a_resume_takes_the_prior_of_the_output_and_pays_nothing_again(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12))
    with ChatServer(answer) as server:
        first = job(server, source, tmp_path / "out", limit=5)
        prior, before = prior_in(tmp_path / "out"), server.n_requests
    with ChatServer(lambda body: json.dumps({"label": "bad"})) as server:  # it would tell another prior now
        server_clf = classifier(server)
        SKLLMConfig.set_gpt_url(server.url)
        manifest = tmp_path / "out" / "_skllm_ray" / "manifest.json"
        told = json.loads(manifest.read_text())
        told["identity"] = json.dumps(server_clf._checked_spec().identity)
        manifest.write_text(json.dumps(told))
        result = batch.run(server_clf, source, str(tmp_path / "out"), **PRICES)
        assert server.n_requests == 7
    assert (result.complete, prior_in(tmp_path / "out")) == (True, prior)
    assert result.total.asked == before + 7
    assert result.total.cost_usd > first.total.cost_usd
    assert batch.job_for(server_clf, source, str(tmp_path / "out"), **PRICES).result().total.asked == before + 7


def test_an_estimator_that_knows_its_prior_gives_it_to_the_job(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12))
    with ChatServer(answer) as server:
        clf = classifier(server)
        clf.predict(["a good thing"])
        before = server.n_requests
        result = batch.run(clf, source, str(tmp_path / "out"), **PRICES)
        assert server.n_requests == before + 12
    assert prior_in(tmp_path / "out") == clf.label_prior_.tolist()
    assert result.total.asked == 12


def test_texts_of_fit_belong_to_the_question(tmp_path):
    source = write(tmp_path / "in.parquet", texts(6))
    with ChatServer(answer) as server:
        batch.run(classifier(server, texts(30)), source, str(tmp_path / "out"), **PRICES)
        assert server.n_requests == 30 + 6
        with pytest.raises(OutputMismatchError, match="another question"):
            batch.run(classifier(server, texts(40)), source, str(tmp_path / "out"), **PRICES)


def test_a_budget_covers_the_prior_first(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12))
    with ChatServer(answer) as server:
        result = job(server, source, tmp_path / "out", budget_usd=1e-6)
        assert (result.out_of_budget, result.rows_done, server.n_requests) == (True, 0, 0)
        result = job(server, source, tmp_path / "out", budget_usd=1.0)
        assert (result.complete, server.n_requests) == (True, 12 + N_PRIOR)


def test_a_prior_that_cannot_be_had_ends_the_job_before_its_rows(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12))
    with ChatServer(lambda body: "I cannot tell.") as server:
        result = job(server, source, tmp_path / "out")
        assert (result.complete, result.rows_done, server.n_requests) == (False, 0, N_PRIOR)
        assert "label_prior cannot be estimated" in result.stopped
        assert result.total.asked == N_PRIOR  # paid for all the same
        assert job(server, source, tmp_path / "out").total.asked == N_PRIOR  # and not again


def test_a_damaged_prior_is_not_replaced(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12))
    with ChatServer(answer) as server:
        job(server, source, tmp_path / "out", limit=5)
        (tmp_path / "out" / "_skllm_ray" / "prior.parquet").write_bytes(b"PAR1 cut off")
        with pytest.raises(OutputMismatchError, match="labels' prior"):
            job(server, source, tmp_path / "out")


def test_estimates_and_samples_know_of_it(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12), label=["good" if i % 3 else "bad" for i in range(12)])
    with ChatServer(answer) as server:
        plain = ZeroShotGPTClassifier(model="custom_url::m", key="sk-test")
        ours = batch.job_for(classifier(server), source, str(tmp_path / "out"), **PRICES)
        theirs = batch.job_for(plain.fit(None, LABELS), source, str(tmp_path / "out"), **PRICES)
        one, other = estimate_job(ours), estimate_job(theirs)
        assert one.requests == other.requests + N_PRIOR
        assert one.prompt_tokens[0] > other.prompt_tokens[0]
        assert server.n_requests == 0
        estimate_job(ours, sample=4)
        assert server.n_requests == 4 + N_PRIOR
        capped = batch.job_for(classifier(server), source, str(tmp_path / "out"), budget_usd=1.0, **PRICES)
        [found] = compare_models({"m": capped}, "label", 6).evaluations
        assert (server.n_requests, found.rows) == (10 + 2 * N_PRIOR, 6)
        told = batch.job_for(classifier(server), source, str(tmp_path / "out"), **PRICES)
    with ChatServer(lambda body: "?") as server:
        told = batch.job_for(classifier(server), source, str(tmp_path / "out"), **PRICES)
        with pytest.raises(JobFailedError, match="label_prior cannot be estimated"):
            estimate_job(told, sample=4)


RUN = """
import sys
import skllm_ray
from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
url, source, output, n = sys.argv[1:]
skllm_ray.init(local_mode=True)
SKLLMConfig.set_gpt_url(url)
clf = ZeroShotGPTClassifier(model="custom_url::m", key="sk-test", on_error="coerce", label_prior="uniform")
clf.fit([f"text {i}" for i in range(int(n))], [["bad", "good"][i % 2] for i in range(int(n))])
batch.run(clf, source, output, input_price=1.0, output_price=2.0, budget_usd=1.0)
"""


@pytest.mark.deep
def test_a_kill_in_the_middle_loses_no_answer_that_was_written_down(tmp_path):
    source, n = write(tmp_path / "in.parquet", texts(12)), 150

    slow = [True]

    def slowly(body):
        if slow and server.n_requests > 80:
            time.sleep(0.2)
        return answer(body)

    with ChatServer(slowly) as server:
        order = [sys.executable, "-c", RUN, server.url, source, str(tmp_path / "out"), str(n)]
        process = subprocess.Popen(order)
        journal = tmp_path / "out" / "_skllm_ray" / "journal" / "prior"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any('"t"' in p.read_text() for p in journal.glob("*.jsonl")):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        paid = sum('"k"' in line for p in journal.glob("*.jsonl") for line in p.read_text().splitlines())
        assert 0 < paid < n
        before = server.n_requests
        slow.clear()
        subprocess.run(order, check=True, timeout=120)
        assert server.n_requests - before == n - paid + 12
    assert len(read(tmp_path / "out")) == 12
    assert sum(prior_in(tmp_path / "out")) == pytest.approx(1)
    assert not math.isnan(read(tmp_path / "out")["probability"].sum())


def test_integer_labels_are_evaluated_and_predicted_by_their_names(tmp_path):
    source = write(tmp_path / "in.parquet", texts(12), label=[int(i % 3 > 0) for i in range(12)])
    with ChatServer(answer) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m", key="sk-test", label_names=LABELS).fit(None, [0, 1])
        [found] = compare_models(
            {"m": batch.job_for(clf, source, str(tmp_path / "out"), **PRICES)}, "label", 12
        ).evaluations
        assert (found.accuracy, found.foreign) == (1.0, 0)
        assert batch.run(clf, source, str(tmp_path / "out"), **PRICES).complete
    parts = pq.read_table(tmp_path / "out")
    assert parts["prediction"].to_pylist() == parts["label"].to_pylist()
