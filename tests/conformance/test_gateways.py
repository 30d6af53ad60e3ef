"""Gateways that others wrote: no row is lost, and none asked for where it is certain that no row can work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gateways import AIMock, Gateway, LiteLLM, LLMock, scenes
from tests.conformance.conftest import AIMOCK, FOLDER

PROGRAMS = {
    AIMock: AIMOCK,
    LLMock: FOLDER / "llmock" / "bin" / "llmock",
    LiteLLM: FOLDER / "litellm" / "bin" / "litellm",
}
ROWS = 500
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("local_mode")]


@pytest.fixture(params=PROGRAMS, ids=lambda kind: kind.name)
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gateway]:
    program = PROGRAMS[request.param]
    if not program.exists() or (request.param is AIMock and shutil.which("node") is None):
        pytest.skip(f"{program} is missing: `make conformance` installs aimock and llmock, `make gateways` LiteLLM")
    found = request.param(str(program), tmp_path)
    found.start()
    yield found
    found.kill()


def test_429s_outages_a_wrong_key_and_a_wrong_model(gateway: Gateway) -> None:
    for scene, told in scenes(gateway, ROWS, outage_s=5.0):
        shown = f"{scene}: {json.dumps(told)}"
        if scene.startswith("wrong"):
            assert told["lost"] == ROWS, shown
            assert sum(told["sent"].values()) <= 4, shown  # two for each block: whether it scores labels is seen first
        else:
            assert told["lost"] == 0, shown
            assert told["sent"]["200"] == ROWS, shown
