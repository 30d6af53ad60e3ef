"""Jobs on a cluster that begins with no worker: Ray's own autoscaler brings nodes, and nodes are taken away."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.cluster.scripts import ROOT, environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def measure(*arguments: str) -> Any:
    """Return what the benchmark of elastic clusters tells. One that takes too long ends its cluster before it ends."""
    command = [sys.executable, "-m", "benchmarks.elastic", *arguments]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=environment(), cwd=ROOT, **pipes)
    try:
        told, errors = process.communicate(timeout=250)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(told[told.index("{") :])


def test_a_job_begins_without_a_node_grows_shrinks_and_leaves_none() -> None:
    found = measure("job", "--rows", "1500", "--last", "30", "--nodes", "2")
    nodes = found["nodes over time"]
    assert nodes[0] == nodes[-1] == 0 and max(nodes) == 2
    assert nodes.index(2) < len(nodes) - 1 - nodes[::-1].index(1)  # it has shrunk to one before it went to none
    assert (found["rows"], found["rows asked again"]) == (1516, 0)
    assert list(found["of it"]) == [
        "waiting for a node", "for the model's files", "loading the model", "for the first block",
    ]  # fmt: skip


def test_nodes_that_are_taken_away_cost_what_was_in_flight_on_them_and_with_a_notice_nothing() -> None:
    found = measure("spot", "--losses", "2", "--rows", "3000", "--nodes", "2")
    assert (found["losses"], found["with notice"], found["rows failed"]) == (2, 1, 0)
    assert found["rows asked again"] <= found["rows in flight on killed nodes"]
