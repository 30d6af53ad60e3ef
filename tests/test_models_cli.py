"""``skllm-ray models``, run as a user runs it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from skllm_ray.cli import main
from skllm_ray.cli.demo import DemoResult, render
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.weights import Fetched
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE, supported_models
from tests.cluster.scripts import environment
from tests.hub import Hub


@pytest.fixture(autouse=True)
def folder(tmp_path):
    SKLLMConfig.set_gguf_download_path(str(tmp_path / "models"))
    return tmp_path / "models"


def run(*arguments, code=0, width="100"):
    result = CliRunner().invoke(main, ["models", *arguments], env={"COLUMNS": width})
    assert result.exit_code == code, result.output
    return result.output


def test_the_list_names_every_model_and_fits_a_narrow_terminal():
    text = run("list", width="80")
    assert all(f"gguf::{name} " in text for name in supported_models)
    assert max(map(len, text.splitlines())) <= 80
    assert "Begin with gguf::qwen3-4b" in text
    rows = [json.loads(line) for line in run("list", "--json").splitlines()]
    assert [row["name"] for row in rows if row["is_here"]] == ["demo"]


def test_show_tells_what_a_model_takes_and_where_its_labels_are_scored():
    text = run("show", "gguf::demo")
    assert "1,024 tokens" in text and "KV cache for 1,024 tokens" in text and "Q8_0" in text
    assert '<|assistant|>{"label": "' in text
    shorter = json.loads(run("show", "demo", "--n-ctx", "256", "--json"))
    assert shorter["memory"]["n_ctx"] == 256 and shorter["n_vocab"] == 6144 and shorter["problem"] == ""
    assert shorter["path"] == str(DEMO_FILE)


def test_paths_and_commands_are_not_broken_at_80_columns():
    assert f"  file: {DEMO_FILE}\n" in run("show", "gguf::demo", width="80")
    listed = run("show", "qwen3-4b", width="80")
    known = supported_models["qwen3-4b"]
    assert f"  hub: {known.repo}/{known.file}\n" in listed
    assert "  not here: skllm-ray models pull qwen3-4b\n" in listed


def test_show_tells_of_a_model_that_is_not_here_how_to_get_it():
    assert "skllm-ray models pull qwen3-4b" in run("show", "qwen3-4b")
    assert "models pull owner/repo/model.gguf" in run("show", "owner/repo/model.gguf", code=1)
    assert "models pull qwen3-4b" in run("check", "qwen3-4b", code=1)


def test_pull_downloads_and_checks(folder, tmp_path):
    with Hub(DEMO_FILE.read_bytes()) as hub:
        variables = environment(
            HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), SKLLM_CONFIG_GGUF_DOWNLOAD_PATH=str(folder), COLUMNS="200"
        )
        command = [sys.executable, "-m", "skllm_ray.cli", "models", "pull", "owner/repo/model.gguf"]
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.stdout == f"{folder / 'owner' / 'repo' / 'model.gguf'} is here and whole.\n", done.stderr
    assert "llama (Q8_0)" in run("check", "owner/repo/model.gguf")


@pytest.mark.parametrize(
    ("content", "message"), [(b"<html>[/inst]", "is not a GGUF file"), (DEMO_FILE.read_bytes()[:5000], "cannot load")]
)
def test_check_says_why_a_file_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "a[bold]b.gguf"
    path.write_bytes(content)
    text = run("check", str(path), code=1)
    assert message in text and "a[bold]b.gguf" in text


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    assert "qwen3-4b" in run("show", "qwen", code=1)


def test_what_a_file_or_a_name_says_is_shown_and_not_obeyed(monkeypatch, tmp_path):
    """Names, licences and notes come from files that others made."""
    hostile = "x[/red] \x1b[35m"
    monkeypatch.setitem(supported_models, hostile, replace(supported_models["demo"], licence=hostile, note="[/b]"))
    for arguments, code in ((["list"], 0), (["show", hostile], 0), (["show", f"/{hostile}.gguf"], 1)):
        text = run(*arguments, code=code, width="200")
        assert "[/red]" in text and "\x1b[35m" not in text
    model = f"gguf::/{hostile}.gguf"
    row = {"text": hostile, "label": hostile, "prediction": "[/b]", "probability": 0.5, "prompt_tokens": 1}
    row["is_plain"] = True
    shown = Console(record=True, width=200, file=io.StringIO())
    shown.print(render(DemoResult(pd.DataFrame([row]), [hostile, "[/b]"], [], 1, 1, 1, 1), model))
    assert "[/red]" in (text := shown.export_text()) and "\x1b[35m" not in text


def test_pull_on_cluster_tells_how_the_files_came_to_each_node(monkeypatch):
    joined = []

    def warm(name, folder, tell):
        found = [Fetched("10.0.0.1", "/m", 20.0, "the hub"), Fetched("10.0.0.2", "/m", 4.0, "a node")]
        for one in (*found, Fetched("10.0.0.3", "/m", 0.0, "here")):
            tell(one)
        return [*found, None]

    monkeypatch.setattr("skllm_ray.execution.session.init", joined.append)
    monkeypatch.setattr("skllm_ray.execution.weights.warm_nodes", warm)
    done = CliRunner().invoke(main, ["models", "pull", "qwen3-4b", "--on-cluster", "--address", "10.0.0.1:6379"])
    assert done.exit_code == 0, done.output
    assert joined == ["10.0.0.1:6379"]
    assert done.output.splitlines() == [
        "10.0.0.1: /m (from the hub, 20.0 s)",
        "10.0.0.2: /m (from a node, 4.0 s)",
        "10.0.0.3: /m (was here)",
        "qwen3-4b is whole on 3 node(s).",
    ]
    refused = CliRunner().invoke(main, ["models", "pull", "qwen3-4b", "--address", "10.0.0.1:6379"])
    assert refused.exit_code == 2 and "--on-cluster" in refused.output
