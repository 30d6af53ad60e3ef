"""The examples run, or compile where they need a server or a cluster."""

from __future__ import annotations

import py_compile
import re
import runpy
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from skllm_ray.models._base.results import DETAIL_COLUMNS

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_compiles(path: Path, tmp_path: Path) -> None:
    py_compile.compile(str(path), cfile=str(tmp_path / "out.pyc"), doraise=True)


def test_classify_dataframe(tmp_path: Path) -> None:
    path = next(path for path in EXAMPLES if path.name == "classify_dataframe.py")
    output = tmp_path / "labelled.csv"
    done = CliRunner().invoke(
        runpy.run_path(str(path))["main"], ["--output", str(output), "--rows", "5", "--local-mode"]
    )
    assert done.exit_code == 0, done.output
    table = pd.read_csv(output)
    assert len(table) == 5
    assert set(DETAIL_COLUMNS) < set(table.columns)


@pytest.mark.deep
def test_calibration() -> None:
    path = next(path for path in EXAMPLES if path.name == "calibration.py")
    done = CliRunner().invoke(runpy.run_path(str(path))["main"], ["--local-mode"])
    assert done.exit_code == 0, done.output
    before, after = (
        [float(figure) for figure in re.findall(r"│ +(\d+\.\d+)", line)]
        for line in done.output.splitlines()
        if "as it is" in line or "calibrated on" in line
    )
    assert after[1] < before[1]  # log loss
    assert abs(after[2] - after[0]) < abs(before[2] - before[0])  # as sure as it is right
