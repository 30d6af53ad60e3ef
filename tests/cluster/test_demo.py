"""``skllm-ray demo``: what a newcomer sees first."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import skllm_ray
from skllm_ray.cli import main
from skllm_ray.cli.demo import _interval, run_demo

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True, scope="module")
def _no_ray_of_our_own() -> None:
    skllm_ray.shutdown()


@pytest.mark.deep
def test_the_screen_shows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_demo(actors=2, model="gguf::demo", n_rows=480)
    screen = capsys.readouterr().out
    assert len(result.replicas) == 2
    assert len({replica.pid for replica in result.replicas}) == 2
    assert f"{result.accuracy:.1%}" in screen
    assert result.accuracy >= 0.9
    assert (len(result.plain), len(result.hard)) == (180, 300)
    words_of_tables = ("Confusion matrix", "How sure it is", "300 harder reviews", "A few rows", "probability")
    for words in ("rows/s", "2 on 1 node", *words_of_tables, *result.labels):
        assert words in screen


def test_a_model_that_is_not_local_is_refused() -> None:
    done = CliRunner().invoke(main, ["demo", "--model", "gpt-5.4-mini"])
    assert done.exit_code == 1
    assert "gguf::demo" in done.output


def test_an_unknown_model_is_a_message_not_a_trace() -> None:
    done = CliRunner().invoke(main, ["demo", "--model", "gguf::nonsense"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: Unknown GGUF model 'nonsense'")


def test_version_and_help() -> None:
    assert skllm_ray.__version__ in CliRunner().invoke(main, ["--version"]).output
    assert "demo" in CliRunner().invoke(main, ["--help"]).output


def test_the_interval_is_wilsons() -> None:
    low, high = _interval(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
