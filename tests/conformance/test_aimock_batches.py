"""Files and batches of OpenAI's protocol as aimock speaks them.

Whatever a line asks, aimock answers it with the same text. A header of the request that creates a batch says how it
ends. aimock keeps what it was sent: its journal tells the requests, and its files the lines.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from skllm_ray import batch
from skllm_ray.batch.delivery import deliver, order
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import AmbiguousSubmission
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.llm.gpt.clients.openai.batch_service import OpenAIBatches
from skllm_ray.llm.submissions import GracePeriod
from skllm_ray.text2text import GPTSummarizer
from tests.batch.worlds import read, write
from tests.conformance.conftest import LABELS

N = 30
TEXTS = [f"Number {i}: it is {LABELS[i % 3]} 🎉\u2028" for i in range(N)]
ANSWER = "Mock batch completion"
IN_BATCH = 1e-6 * 0.5 * (1 * 1.0 + 1 * 2.0)
"""What one of its answers costs: a token in and one out."""


class Job:
    """A job on aimock, and what aimock tells of it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.source = write(folder / "in.parquet", TEXTS)
        self.output = str(folder / "out")
        SKLLMConfig.set_gpt_url(f"{url}/v1")

    def run(self, estimator: Any = None, **options: Any) -> Any:
        prices = {"input_price": 1.0, "output_price": 2.0, "batch_price_share": 0.5}
        estimator = estimator or GPTSummarizer(model="custom_url::m", on_error="coerce").fit()
        given = {"delivery": "batch", "unit_rows": 10, "keep_remote_files": True, **prices, **options}
        return batch.run(estimator, self.source, self.output, **given)

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path).raise_for_status().json()

    def suffer(self, **chaos: float) -> None:
        """Say how aimock's answers go wrong from now on."""
        httpx.post(f"{self.url}/__aimock/chaos", json=chaos).raise_for_status()

    @property
    def asked(self) -> Counter[str]:
        """How often each path was asked, and with which verb."""
        told = self.get("/__aimock/journal?limit=1000")
        return Counter(f"{one['method']} {one['path'].partition('?')[0]}" for one in told)

    @property
    def batches(self) -> list[dict[str, Any]]:
        return self.get("/v1/batches")["data"]

    @property
    def lines(self) -> Counter[str]:
        """How often each text was sent in the file of a batch."""
        found: Counter[str] = Counter()
        for one in self.batches:
            content = httpx.get(f"{self.url}/v1/files/{one['input_file_id']}/content").raise_for_status().content
            sent = [json.loads(line) for line in content.split(b"\n") if line]
            found.update(line["body"]["messages"][-1]["content"] for line in sent)
        return found

    def check_home(self) -> None:
        """Check that every row is there once, with the answer of a batch or of the one that was asked directly."""
        found = read(self.output)
        assert found["id"].tolist() == list(range(N))
        assert found["summary"].value_counts()[ANSWER] == N - 1
        assert found["error_kind"].isna().all()


@pytest.fixture
def job(aimock: Any, local_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(deliver, "POLLING", Polling(0.01, 1.0, 0.01, 0.0))
    monkeypatch.setattr(order, "GRACE", GracePeriod(0.3, 0.05))
    with aimock() as url:
        yield Job(tmp_path, url)


def test_each_line_is_sent_once_and_comes_home(job):
    result = job.run()
    job.check_home()
    assert (result.complete, result.errors, result.unknown_usd) == (True, {}, 0)
    assert (len(job.lines), set(job.lines.values())) == (N - 1, {1})
    assert {verb: n for verb, n in job.asked.items() if verb.startswith("POST")} == {
        "POST /v1/chat/completions": 1,
        "POST /v1/files": 1,
        "POST /v1/batches": 1,
    }
    by_batch, directly = IN_BATCH * (N - 1), result.total.cost_usd - IN_BATCH * (N - 1)
    assert result.delivered == f"1 batch: 29 answers for {by_batch:,.4f} USD; directly: {directly:,.4f} USD"
    (record,) = batch.list_batches(job.output)
    assert (record.answered, record.cost_usd) == (N - 1, pytest.approx(by_batch))


def test_answers_that_are_no_labels_are_errors_of_their_rows_and_paid(job):
    result = job.run(ZeroShotGPTClassifier(model="custom_url::m", on_error="coerce").fit(None, LABELS))
    assert (result.complete, result.errors) == (True, {"invalid_answer": N - 1})
    assert set(job.lines.values()) == {1}
    assert read(job.output)["cost_usd"].sum() == pytest.approx(result.total.cost_usd)


def test_its_files_go_when_all_is_home(job):
    job.run(keep_remote_files=False)
    job.check_home()
    assert job.get("/v1/files")["data"] == []


@pytest.mark.parametrize(("outcome", "n_runs"), [("failed", 2), ("expired", 1), ("cancelled", 1)])
def test_a_batch_that_ends_without_an_answer_costs_nothing_and_no_row(job, monkeypatch, outcome, n_runs):
    real = OpenAIBatches.create

    def fated(self: OpenAIBatches, *given: Any) -> Any:
        if not job.batches:
            self._client = self._client.with_options(default_headers={"x-aimock-batch-outcome": outcome})
        return real(self, *given)

    monkeypatch.setattr(OpenAIBatches, "create", fated)
    results = [job.run() for _ in range(n_runs)]
    job.check_home()
    assert [one.complete for one in results] == [False, True][-n_runs:]
    assert [one["status"] for one in job.batches] == ["completed", outcome]
    assert results[-1].unknown_usd == 0
    assert read(job.output)["cost_usd"].sum() == pytest.approx(results[-1].total.cost_usd)


@pytest.mark.parametrize("fault", ["dropRate", "malformedRate", "disconnectRate", "rateLimitRate"])
def test_a_server_that_is_away_while_the_batch_runs_is_looked_at_again(job, monkeypatch, fault):
    looks: list[str] = []
    real = OpenAIBatches.get

    def unsteady(self: OpenAIBatches, job_id: str) -> Any:
        looks.append(job_id)
        job.suffer(**{fault: float(len(looks) in {1, 3})})
        return real(self, job_id)

    monkeypatch.setattr(OpenAIBatches, "get", unsteady)
    assert job.run().complete
    job.check_home()
    assert (len(looks), len(job.batches)) == (4, 1)


@pytest.mark.parametrize("fault", ["dropRate", "malformedRate", "disconnectRate"])
def test_a_batch_of_unknown_outcome_is_never_sent_again(job, monkeypatch, fault):
    real = OpenAIBatches.create

    def unsteady(self: OpenAIBatches, *given: Any) -> Any:
        job.suffer(**{fault: 1.0})
        try:
            return real(self, *given)
        finally:
            job.suffer()

    monkeypatch.setattr(OpenAIBatches, "create", unsteady)
    for _ in range(2):
        with pytest.raises(AmbiguousSubmission):
            job.run()
    assert (job.asked["POST /v1/batches"], job.batches) == (1, [])
    (record,) = batch.list_batches(job.output)
    batch.forget_batch(job.output, record.key)
    monkeypatch.undo()
    monkeypatch.setattr(deliver, "POLLING", Polling(0.01, 1.0, 0.01, 0.0))
    assert job.run().complete
    job.check_home()
    assert set(job.lines.values()) == {1}
