"""A task that the library does not know works like its own: in a call, in a job with a budget, in an estimate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.tools.estimate import estimate_job
from skllm_ray.config import SKLLMConfig
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.testing import ChatServer, prompt_of
from tests.batch.worlds import read, write
from tests.rating import Rater

N = 600
PRICES: dict[str, Any] = {"input_price": 1000.0, "output_price": 1000.0}


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    skllm_ray.init(local_mode=True)
    yield
    ModelCache.clear()
    skllm_ray.shutdown()


def answer(body: dict[str, Any]) -> str:
    n = int(re.search(r"<(\d+)>", prompt_of(body))[1])
    assert body["response_format"]["type"] == "json_schema"
    return "no idea" if n == 7 else f'{{"rating": {1 + n % 5}}}'


def rater(server: ChatServer) -> Rater:
    SKLLMConfig.set_gpt_url(server.url)
    return Rater(model="custom_url::m", on_error="coerce").fit()


def texts(n: int) -> list[str]:
    return [f"text <{i}>" for i in range(n)]


def test_a_call_rates_texts_and_tells_details():
    with ChatServer(answer) as server:
        clf = rater(server)
        with pytest.warns(UserWarning, match="not of the form"):
            found = clf.transform([*texts(9), None])
        details = clf.predict_details(texts(2))
    assert found.tolist() == [1, 2, 3, 4, 5, 1, 2, None, 4, None]
    assert details["prediction"].tolist() == [1, 2]


def test_a_job_rates_rows_within_a_budget(tmp_path):
    source = write(tmp_path / "in.parquet", texts(N))
    with ChatServer(answer) as server:
        told = estimate_job(batch.job_for(rater(server), source, str(tmp_path / "out"), **PRICES), sample=50)
        whole = batch.run(rater(server), source, str(tmp_path / "out"), **PRICES)
        cost = whole.total.cost_usd
        half = batch.run(rater(server), source, str(tmp_path / "half"), budget_usd=cost / 2, unit_rows=100, **PRICES)
        n_asked = server.n_requests
        rest = batch.run(rater(server), source, str(tmp_path / "half"), budget_usd=10 * cost, unit_rows=100, **PRICES)
    found = read(tmp_path / "out")
    assert found["rating"].dtype.kind in "if"
    assert found["rating"].tolist()[:7] == [1, 2, 3, 4, 5, 1, 2]
    assert (found["valid"].tolist().count(False), whole.errors) == (1, {"invalid_answer": 1})
    assert half.out_of_budget
    assert 0.2 * cost < half.total.cost_usd <= cost / 2
    assert (rest.complete, rest.total.asked) == (True, N)
    assert read(tmp_path / "half")["rating"].tolist()[:7] == [1, 2, 3, 4, 5, 1, 2]
    assert n_asked < 50 + N + N // 2
    assert (told.requests, told.fewest_requests) == (N, N)
    assert told.cost_usd[0] <= cost <= told.cost_usd[1]
