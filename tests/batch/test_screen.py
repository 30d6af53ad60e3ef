"""What a person is told of a running job."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from skllm_ray.batch.job.budget import Ledger, Snapshot
from skllm_ray.batch.job.progress_display import LineScreen, LiveScreen, State
from skllm_ray.batch.output.progress import Progress
from skllm_ray.errors import ClusterError
from skllm_ray.execution.cluster_status import ClusterStatus, StatusPoller
from skllm_ray.execution.pool_state import Standing
from skllm_ray.execution.rate_limiter import BucketInfo

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
            replace(BUCKET, tokens_per_minute=4100),
            "quota: 90 of 90 requests/min, 4,000 of 4,100 tokens/min; 380 waiting",
        ),
        (
            replace(BUCKET, requests_per_minute=None, max_concurrency=12, concurrency=12),
            "waiting for max_concurrency: 12 of 12 requests in flight",
        ),
        (
            replace(BUCKET, requests_per_minute=30_000, requests_used=1184, in_flight=64),
            "waiting for answers: as many requests are in flight as the server has taken well: 64 of 64",
        ),
        (replace(BUCKET, requests_per_minute=30_000, requests_used=1184), ""),  # 4% of a quota holds nobody up
        (replace(BUCKET, requests_per_minute=150), ""),
        (
            replace(BUCKET, requests_per_minute=150, paced_by=("requests",)),
            "keeping to the pace of 150 requests/min; 380 waiting",
        ),
        (replace(BUCKET, paused_s=12.0), "quota: the server refuses, for 12 s more; 380 waiting"),
        (replace(BUCKET, waiting=0), ""),
        (replace(BUCKET, requests_per_minute=None), ""),
    ],
)
def test_a_quota_is_told_where_it_holds_the_job_back(bucket, told):
    line = line_of(State("m", 400, 0, status=ClusterStatus(quotas=(bucket,))))
    assert told in line
    assert ("held up" in line) == bool(told)


def test_replicas_are_told():
    state = State(
        "m",
        400,
        0,
        status=ClusterStatus(replicas=(("gguf::demo", Standing(3, 2)), ("gguf::v", Standing(1, 1, waiting=2)))),
    )
    told = "replicas: 3 of gguf::demo on 2 nodes; 1 of gguf::v on 1 node (2 waiting for room)"
    assert told in line_of(state)


def test_no_part_is_left_to_workers_when_all_is_done():
    assert "workers: 2 at 1 of 3 parts" in line_of(State("m", 400, 0, n_units=3, units_done=2, n_tasks=2))
    assert "workers" not in line_of(State("m", 400, 0, n_units=3, units_done=3, n_tasks=2))


def test_counts_add_up_where_another_ledger_takes_over():
    state = State("m", 400, 0)
    for ledger, rows in ((Ledger(), 30), (Ledger(), 12)):
        ledger.report(Progress(rows=rows, cost_usd=0.5), answered=True)
        state.see(ledger.snapshot())
        state.see(ledger.snapshot())
    assert (state.rows, state.progress.cost_usd) == (42, 1.0)


HOSTILE = "[/inst] [red]x[/] \x1b[35m\x00\x07\x9b2J \u202e \ud800"


def test_what_is_not_ours_is_shown_and_never_obeyed():
    from rich.console import Console

    state = State(HOSTILE, 400, 0, reason=f"bad_request: {HOSTILE}", stopped=HOSTILE)
    state.progress.errors["bad_request"] = 3
    out = io.StringIO()
    with LiveScreen(Console(file=out, force_terminal=True, width=300)) as screen:
        screen.show(state)
    for shown in (line_of(state), out.getvalue()):
        assert "[/inst] [red]x[/]" in shown
        assert "first reason" in shown
        for bad in ("\x1b[35m", "\x00", "\x07", "\x9b", "\u202e", "\ud800"):
            assert bad not in shown
        shown.encode()


def test_a_limiter_that_gives_no_answer_ends_no_job(monkeypatch):
    def fail() -> None:
        raise ClusterError("The cluster's rate limiter gives no answer.")

    monkeypatch.setattr("skllm_ray.execution.rate_limiter.show_limits", fail)
    assert StatusPoller(["m"], []).look() == ClusterStatus()


@pytest.mark.parametrize(("block", "each_s"), [(128, 200.0), (256, 8.0), (20, 0.1)])
def test_the_rate_of_rows_that_are_told_a_block_at_a_time_is_theirs(monkeypatch, block, each_s):
    now = [1000.0]
    monkeypatch.setattr("skllm_ray.batch.job.progress_display.time.monotonic", lambda: now[0])
    state = State("m", 40 * block, 0, began=1000.0)
    told, true = [], block / each_s
    for look in range(400):  # ten looks for each block
        now[0] = 1000.0 + look * each_s / 10
        progress = Progress()
        progress.rows = look // 10 * block
        state.see(Snapshot(progress, "", ""))
        told.append(state.rate)
    assert told[:10] == [0.0] * 10 and "rate" not in State("m", 1, 0).facts()
    assert all(true / 2 <= rate <= true * 1.01 for rate in told[10:30])
    assert all(true * 0.8 <= rate <= true * 1.01 for rate in told[70:])
