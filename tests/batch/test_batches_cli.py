"""The provider batches of an output, on the command line and from Python."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from skllm_ray import batch
from skllm_ray.cli import main
from skllm_ray.errors import AmbiguousSubmission, InputError
from skllm_ray.testing.batch_server import BatchFault, SubmitFault
from tests.batch.delivery_worlds import Death, N, World, die_at


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["batches", *arguments])
    return done.exit_code, done.output


def facts(world: World, command: str, *more: str) -> list[dict[str, Any]]:
    code, told = call(command, world.output, *more, "--json")
    assert code == 0, told
    return [json.loads(line) for line in told.splitlines()]


def test_live_batches_are_listed_looked_at_and_stopped(world, monkeypatch):
    assert call("list", world.output) == (0, "No batches.\n")
    world.server.batch_faults.append(BatchFault.STUCK)
    with monkeypatch.context() as patch:
        die_at(patch, "recorded")
        with pytest.raises(Death):
            world.run()
    (listed,) = facts(world, "list")
    assert (listed["id"], listed["state"], listed["requests"], listed["collected"]) == (
        "batch_1",
        "running",
        N - 1,
        False,
    )
    assert 0 < listed["most_usd"] < 1
    assert facts(world, "status", "batch_1")[0]["state"] == "running"
    assert facts(world, "cancel")[0]["state"] in {"cancelling", "cancelled"}
    assert facts(world, "status")[0]["state"] == "cancelled"
    assert world.run().complete  # what it had answered came home, and the rest by another one
    world.check_home()
    assert [one["answered"] for one in facts(world, "list")] == [29, 30]
    assert facts(world, "cancel") == []
    code, table = call("list", world.output)
    assert (code, table.count("yes")) == (0, 2)


def test_a_batch_whose_submission_nobody_knows_of_is_adopted(world):
    world.server.submit_faults.append(SubmitFault.LATE)
    world.server.late_s = 3600.0
    with pytest.raises(AmbiguousSubmission) as told:
        world.run()
    key = told.value.key
    assert f"skllm-ray batches adopt {world.output} {key} ID" in str(told.value)
    for given, message in ((("nothing", "batch_1"), "No batch job"), ((key, "batch_9"), "knows no batch")):
        with pytest.raises(InputError, match=message):
            batch.adopt_batch(world.output, *given)
    assert facts(world, "adopt", key, "batch_1")[0]["id"] == "batch_1"
    with pytest.raises(InputError, match="already"):
        batch.adopt_batch(world.output, key, "batch_1")
    assert world.run().complete
    world.check_home()
    assert len(world.server.batches) == 1


def test_what_cannot_be_is_said_without_a_trace(world):
    for arguments, told in (
        (("status", world.output, "batch_7"), "No batch job 'batch_7'"),
        (("list", world.output, "--storage-options", "{"), "it must be JSON"),
    ):
        code, output = call(*arguments)
        assert code != 0
        assert told in output
        assert "Traceback" not in output
