"""What a person is told of a running job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from skllm_ray.batch.ledger import Ledger, Progress
from skllm_ray.batch.screen import LineScreen, State
from skllm_ray.execution.rate_limiter import BucketInfo
from skllm_ray.execution.standing import Standing

BUCKET = BucketInfo("openai m", 90, None, None, 64, 90, 4000, 12, 380, 2, 0, 0.0)


def line_of(state: State) -> str:
    lines: list[str] = []
    LineScreen(lines.append, 0.0).show(state)
    return lines[0]


@pytest.mark.parametrize(
    ("bucket", "told"),
    [
        (BUCKET, "held up: waiting for quota: 90 of 90 requests/min; 380 waiting"),
        (
            replace(BUCKET, tokens_per_minute=5000),
            "quota: 90 of 90 requests/min, 4,000 of 5,000 tokens/min; 380 waiting",
        ),
        (replace(BUCKET, requests_per_minute=None, max_concurrency=12), "quota: 12 of 12 requests in flight; 380"),
        (replace(BUCKET, paused_s=12.0), "quota: the server refuses, for 12 s more; 380 waiting"),
        (replace(BUCKET, waiting=0), ""),
        (replace(BUCKET, requests_per_minute=None), ""),
    ],
)
def test_a_quota_is_told_where_it_holds_the_job_back(bucket, told):
    line = line_of(State("m", 400, 0, standing=Standing(quotas=(bucket,))))
    assert told in line
    assert ("held up" in line) == bool(told)


def test_replicas_are_told():
    state = State("m", 400, 0, standing=Standing(replicas=(("gguf::demo", 3, 2), ("gguf::v", 1, 1))))
    assert "replicas: 3 of gguf::demo on 2 nodes; 1 of gguf::v on 1 node" in line_of(state)


def test_counts_add_up_where_another_ledger_takes_over():
    state = State("m", 400, 0)
    for ledger, rows in ((Ledger(), 30), (Ledger(), 12)):
        ledger.report(Progress(rows=rows, cost_usd=0.5), answered=True)
        state.see(ledger.snapshot())
        state.see(ledger.snapshot())
    assert (state.rows, state.progress.cost_usd) == (42, 1.0)
