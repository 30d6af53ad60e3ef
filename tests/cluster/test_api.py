"""API backends as Dataset tasks: rows in order, keys handed over, errors as data."""

from __future__ import annotations

import re

import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import JobFailedError
from skllm_ray.testing import ChatServer, StatusFault, prompt_of

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

KEY = "sk-planted-0123456789abcdef"


def by_parity(body: dict) -> str | StatusFault:
    number = int(re.search(r"number (\d+)", prompt_of(body))[1])
    if number == 5:
        return StatusFault(400, "This row is refused.", "invalid_request", None, {})
    return '{"label": "even"}' if number % 2 == 0 else '{"label": "odd"}'


def test_many_rows_in_order_with_a_key_of_the_estimators_own() -> None:
    with ChatServer(by_parity, key=KEY) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m", key=KEY).fit(None, ["even", "odd"])
        table = clf.predict_details([f"number {i}" for i in range(600)])
    expected = ["odd" if i % 2 else "even" for i in range(600)]
    expected[5] = None
    assert table["prediction"].tolist() == expected
    assert table["error_kind"].dropna().to_dict() == {5: "bad_request"}
    assert KEY not in table.to_csv()


def test_a_refused_key_stops_the_call() -> None:
    with ChatServer(by_parity, key=KEY) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m", key="sk-wrong-key-0000").fit(None, ["even", "odd"])
        with pytest.raises(JobFailedError, match="authentication") as caught:
            clf.predict([f"number {i}" for i in range(600)])
        assert server.n_requests < 600
    assert "sk-wrong" not in str(caught.value)
