"""The command line's help: groups, examples that parse, and no word that a newcomer cannot know."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from click.testing import CliRunner

from skllm_ray.cli import main
from skllm_ray.cli.grouped import Commands, Examples

COMMANDS = sorted(main.commands)
JARGON = re.compile(r"\bunits?\b|probe|dispatch|dialect|lessons|journal|ledger|fence|backend|manifest", re.IGNORECASE)


def help_of(*command: str) -> str:
    done = CliRunner().invoke(main, [*command, "--help"], terminal_width=80)
    assert done.exit_code == 0
    return done.output


def all_helps(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = command.commands.items() if isinstance(command, click.Group) else ()
    return [path, *(found for name, one in inner for found in all_helps(one, (*path, name)))]


@pytest.mark.parametrize("path", all_helps(main), ids=lambda path: " ".join(path) or "skllm-ray")
def test_help_has_no_jargon_and_fits(path):
    told = help_of(*path).replace("--unit-rows", "")
    assert JARGON.findall(told) == []
    assert all(len(line) <= 80 for line in told.splitlines())
    assert "..." not in told.partition("\n")[2]  # no description is cut


def test_commands_and_options_stand_in_groups():
    told = help_of()
    assert [told.index(f"\n{title}:\n") for title in ("Begin", "Decide, before the big job", "Do it, and look at it")]
    told = help_of("run")
    assert re.search(r"\nMoney:\n  --budget-usd", told)
    last = told.partition("\nMore:\n")[2].partition("\nExamples:\n")[0]
    assert re.findall(r"^  (?:-\w, )?(--[\w-]+)", last, re.MULTILINE) == ["--config", "--help"]


def examples() -> list[str]:
    commands = [main, *(one for one in main.commands.values() if isinstance(one, (Commands, Examples)))]
    told = [example for one in commands for example in one.examples]
    lines = (line for one in told for line in one.replace("\\\n", " ").splitlines())
    return [line for line in lines if not line.startswith("# ")]


@pytest.mark.parametrize("example", examples())
def test_an_example_s_flags_exist(example):
    program, name, *words = shlex.split(example)
    assert program == "skllm-ray"
    known = {opt for param in main.commands[name].get_params(click.Context(main)) for opt in param.opts}
    assert {word for word in words if word.startswith("--")} - {"--help"} <= known
