"""What a type checker tells the user of this library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from typing import Any, assert_type

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skllm_ray.classification import MultiLabelZeroShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.text2text import GPTSummarizer
from skllm_ray.vectorization import GPTVectorizer

clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["good", "bad"])
assert_type(clf, ZeroShotGPTClassifier)
assert_type(clf.predict(["a text"]), NDArray[Any])
assert_type(clf.predict_proba(["a text"]), NDArray[np.float64])
assert_type(clf.predict_details(["a text"]), pd.DataFrame)
assert_type(clf.score(["a text"], ["good"]), float)
assert_type(MultiLabelZeroShotGPTClassifier().score(["a text"], [["good"]]), float)
assert_type(GPTSummarizer().fit_transform(["a text"]), NDArray[Any])
assert_type(GPTVectorizer().fit_transform(["a text"]), NDArray[Any])
ZeroShotGPTClassifier(modle="a misspelt parameter")
"""
CONFIG = """
[mypy]
strict = True
follow_imports = silent
[mypy-aiohttp.*,google.*,httpx.*,llama_cpp.*,matplotlib.*,openai.*,pydantic.*,ray.*,rich.*,vertexai.*]
follow_imports = skip
"""
"""What the public types do not name is not read: that takes most of the time."""


@pytest.mark.types
def test_a_users_program_is_type_checked(tmp_path):
    """Strictly, as a user does it; the cache is kept, since numpy's and pandas' types take seconds to read."""
    pytest.importorskip("mypy")
    root = Path(__file__).parents[1]
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            "mypy.ini",
            "--cache-dir",
            str(root / ".mypy_cache" / "user"),
            "program.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in checked.stdout.splitlines() if ": error: " in line]
    last = len(PROGRAM.splitlines())
    assert [line.split(":")[:2] for line in errors] == [["program.py", str(last)]], checked.stdout + checked.stderr
    assert "modle" in errors[0]
