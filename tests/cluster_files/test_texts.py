"""What stands in cluster/ beside its files: no secret anywhere, and flags that the command line has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from skllm_ray.cli import main

CLUSTER = Path(__file__).parents[2] / "cluster"
SECRETS = re.compile(r"sk-[A-Za-z0-9]{8}|AKIA[A-Z0-9]{12}|_KEY[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/]{16}")


@pytest.mark.parametrize(
    "file", sorted(path for path in CLUSTER.rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_no_secret_stands_in_a_file(file):
    text = file.read_text("utf-8")
    assert SECRETS.search(text) is None
    assert "env_vars:" not in text


def test_the_readme_names_flags_that_exist():
    text = (CLUSTER / "README.md").read_text("utf-8") + (CLUSTER / "kuberay" / "rayjob.yaml").read_text("utf-8")
    commands = re.findall(r"skllm-ray (run|estimate|report|limits)((?:[^\n`]|\\\n)*)", text)
    assert len(commands) >= 5
    for command, rest in commands:
        shown = CliRunner().invoke(main, [command, "--help"]).output
        for flag in re.findall(r"(?<!\w)--[a-z-]+", rest.partition("--\\")[0]):
            assert flag in shown, (command, flag)
