"""The page on BANKING77, 77 labels: its blocks and commands run, at a smaller size, and show what the page shows."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import threading
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import skllm_ray
from skllm_ray.cli import main
from tests.conformance.conftest import free_port
from tests.conformance.test_real_model import MODEL

FOLDER = os.environ.get("SKLLM_BANKING77", "")
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="SKLLM_BANKING77 names no folder with BANKING77's train.csv and test.csv"),
    pytest.mark.filterwarnings("ignore::skllm_ray.errors.SkllmRayWarning"),  # of few rows and of a base model
    pytest.mark.timeout(900),
]
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SMALLER = {
    "TICKETS = 3000": "TICKETS = 150",
    "EACH = 200": "EACH = 10",
    "head(10)": "head(2)",
    "--sample 400": "--sample 60",
    "--sample 40 ": "--sample 3 ",
}


def steps(port: int) -> list[tuple[str, str]]:
    """Return the page's Python blocks and its commands, in their order."""
    text = (ROOT / "docs" / "banking77.md").read_text("utf-8").replace("8011", str(port))
    for large, small in SMALLER.items():
        assert large in text
        text = text.replace(large, small)
    found = []
    for kind, block in BLOCK.findall(text):
        lines = block.replace("\\\n", "").splitlines()
        found += [(kind, block)] if kind == "python" else [(kind, line[2:]) for line in lines if line.startswith("$ ")]
    return found


@pytest.mark.usefixtures("local_mode")
def test_the_page_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train.csv", "test.csv", "categories.json"):
        shutil.copy(Path(FOLDER) / name, name)
    if MODEL.exists():
        Path("gemma3-270m.gguf").symlink_to(MODEL)
    port, told, namespace = free_port(), [], {}
    run = [step for step in steps(port) if "gemma3" not in step[1] or MODEL.exists()]
    kind, first = run[0]
    exec(compile(first, "banking77", "exec"), namespace)  # noqa: S102  the page's own code
    served = next(text for kind, text in run if "stand_in_server" in text).removesuffix("&").split()[1:]
    serve = runpy.run_path(str(ROOT / served[0]))["main"]
    threading.Thread(target=serve.main, args=(served[1:],), kwargs={"standalone_mode": False}, daemon=True).start()
    for kind, text in run[1:]:
        if kind == "python":
            exec(compile(text, "banking77", "exec"), namespace)  # noqa: S102
        elif text.startswith("skllm-ray"):
            skllm_ray.init(local_mode=True)  # a command ends what it began
            done = CliRunner().invoke(main, shlex.split(text)[1:], env={"COLUMNS": "100"})
            assert done.exit_code == 0, done.output
            told.append(done.output)
    assert "4,000,000, as if they were like the 150 of the input" in " ".join(told[1].split())
    assert len(pd.read_parquet("out")) == 150
    assert "What people found" in Path("report.html").read_text("utf-8")
    assert {"evaluation.html", "review.csv"} <= {file.name for file in tmp_path.iterdir()}
