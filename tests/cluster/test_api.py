"""API backends as Dataset tasks: rows in order, keys handed over, errors as data."""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections import Counter

import pytest
import ray

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import JobFailedError, SkllmRayWarning
from skllm_ray.testing import ChatServer, StatusFault, WireFault, prompt_of
from tests.cluster.scripts import run_script

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

KEY = "sk-planted-0123456789abcdef"
LIMITS = """
import os
from skllm_ray.cli import main
for more in [], ["--json"]:
    main(["limits", "--address", os.environ["address"], *more], standalone_mode=False)
    print("as JSON" * (not more), flush=True)
"""


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


def test_the_command_shows_the_limits() -> None:
    with ChatServer(by_parity, key=KEY) as server:
        SKLLMConfig.set_gpt_url(server.url)
        SKLLMConfig.set_rate_limit("custom_url::shown", requests_per_minute=60_000)
        clf = ZeroShotGPTClassifier(model="custom_url::shown", key=KEY).fit(None, ["even", "odd"])
        clf.predict([f"number {i}" for i in range(300, 700)])
        address = ray.get_runtime_context().gcs_address
        told = run_script(LIMITS, address=address).stdout
    table, _, lines = told.partition("as JSON\n")
    assert "400 / 60000" in table
    (bucket,) = [one for one in map(json.loads, filter(None, lines.splitlines())) if "shown" in one["bucket"].split()]
    assert (bucket["requests_used"], bucket["refusals"]) == (400, 0)
    assert KEY not in table + lines


def test_a_refused_key_stops_the_call() -> None:
    with ChatServer(by_parity, key=KEY) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m", key="sk-wrong-key-0000").fit(None, ["even", "odd"])
        with pytest.raises(JobFailedError, match="authentication") as caught:
            clf.predict([f"number {i}" for i in range(600)])
        assert server.n_requests < 600
    assert "sk-wrong" not in str(caught.value)


def test_what_ends_a_call_stops_all_its_blocks_and_loses_nothing_that_was_paid_for() -> None:
    lock, paid, refused = threading.Lock(), [0], [0]

    def answer(body: dict) -> str | StatusFault:
        with lock:
            if paid[0] == 900:
                refused[0] += 1
                return StatusFault(429, "You exceeded your current quota", "insufficient_quota")
            paid[0] += 1
        return '{"label": "odd"}'

    with ChatServer(answer, latency_s=0.1) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::ends", on_error="coerce").fit(None, ["even", "odd"])
        with pytest.warns(SkllmRayWarning, match=r"rows were not asked \(insufficient_quota"):
            table = clf.predict_details([f"number {i}" for i in range(4000)])
        assert server.n_requests == paid[0] + refused[0] < 2000
    kinds = table["error_kind"].fillna("paid").value_counts().to_dict()
    assert kinds == {"paid": 900, "insufficient_quota": refused[0], "cancelled": 3100 - refused[0]}


def test_a_cap_on_one_call_holds_over_all_its_blocks() -> None:
    with ChatServer(by_parity, latency_s=0.02) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::capped", on_error="coerce").fit(None, ["even", "odd"])
        with pytest.warns(SkllmRayWarning, match="1 of 600 rows failed"):
            clf.predict([f"number {i}" for i in range(600)], num_workers=6)
        assert server.n_requests == 600
        assert server.most_in_flight <= 6


TRANSIENT = (WireFault.DROP, WireFault.HALF, WireFault.MALFORMED_JSON, StatusFault(500), StatusFault(503))


@pytest.mark.deep
@pytest.mark.parametrize("n_rows", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_bad_day(n_rows) -> None:
    """Of 100 rows one is refused, oversized or answered with nonsense, and five fail at the first try."""
    tries: Counter[int] = Counter()

    def answer(body: dict) -> str | StatusFault | WireFault:
        number = int(re.search(r"number (\d+)", prompt_of(body))[1])
        tries[number] += 1
        if number % 100 == 7:
            refused = StatusFault(400, "This row is refused.", "invalid_request")
            too_long = StatusFault(400, "maximum context length exceeded", "context_length_exceeded", "messages")
            return [refused, too_long, "I would rather not say."][number // 100 % 3]
        if number % 20 == 3 and tries[number] == 1:
            return TRANSIENT[number // 20 % 5]
        return '{"label": "even"}' if number % 2 == 0 else '{"label": "odd"}'

    with ChatServer(answer) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::bad-day", key=KEY, default_label="neither", on_error="coerce")
        clf.fit(None, ["even", "odd"])
        table = clf.predict_details([f"number {i}" for i in range(n_rows)])
        good = clf.predict_details(["number 0", "number 1"])
    kinds = {0: "bad_request", 1: "context_length", 2: "invalid_answer"}
    bad = {i: kinds[i // 100 % 3] for i in range(7, n_rows, 100)}
    assert table["error_kind"].dropna().to_dict() == bad
    failed = {"bad_request": None, "context_length": None, "invalid_answer": "neither"}
    assert table["prediction"].tolist() == [
        failed[bad[i]] if i in bad else ("even", "odd")[i % 2] for i in range(n_rows)
    ]
    assert list(good.columns) == list(table.columns)
    assert good.dtypes["prediction"] == table.dtypes["prediction"]
    assert {tries[i] for i in range(3, n_rows, 20)} == {2}
    assert {tries[i] for i in range(2, n_rows, 20)} == {1}  # and nobody else was asked again


def test_what_a_server_refuses_is_told_once_and_learnt_once_by_each_worker() -> None:
    refused: Counter[str] = Counter()

    def answer(body: dict) -> str | StatusFault:
        if "temperature" in body:
            refused["temperature"] += 1
            return StatusFault(400, "Unsupported parameter: 'temperature'", "unsupported_parameter", "temperature")
        return by_parity(body)

    rows = [f"number {i}" for i in range(600) if i != 5]
    with ChatServer(answer, latency_s=0.02) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::plain", key=KEY).fit(None, ["even", "odd"])
        with pytest.warns(SkllmRayWarning, match="does not accept 'temperature'") as caught:
            clf.predict(rows)
        ours = [one for one in caught if issubclass(one.category, SkllmRayWarning)]
        assert [one.filename for one in ours] == [__file__]
        assert 1 <= refused["temperature"] <= 8  # Dataset tasks at once
        before = refused["temperature"]
        with warnings.catch_warnings():
            warnings.simplefilter("error", SkllmRayWarning)
            clf.predict(rows)
            clf.predict_proba(rows[:300])
            clf.predict(rows[:20])
        assert refused["temperature"] == before


@pytest.mark.deep
def test_calls_of_several_blocks_leave_no_thread_behind() -> None:
    with ChatServer(by_parity) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::threads").fit(None, ["even", "odd"])
        texts = [f"number {i}" for i in range(10, 310)]

        def threads() -> Counter[str]:
            clf.predict(texts)
            return Counter(
                thread.name for thread in threading.enumerate() if "(" not in thread.name
            )  # not the server's

        before = threads()
        assert [threads() - before for _ in range(4)][-1].total() <= 1  # Ray Data's own, of an executor that is ending
