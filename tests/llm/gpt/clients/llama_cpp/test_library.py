"""llama.cpp as it is loaded into a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
from skllm_ray.llm.gpt.clients.llama_cpp.library import import_llama_cpp
import_llama_cpp()
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("own", "told", "left"),
    [({}, "GOMP_SPINCOUNT = '10000'", "None"), ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'", "77"),
     ({"OMP_WAIT_POLICY": "passive"}, "OMP_WAIT_POLICY = 'PASSIVE'", "None")],
)  # fmt: skip
def test_threads_that_wait_for_one_another_sleep_soon_unless_the_user_wants_it_otherwise(own, told, left):
    variables = {k: v for k, v in os.environ.items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=variables | own | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True,
        text=True, check=True, timeout=120,
    )  # fmt: skip
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this llama.cpp waits without libgomp")
    assert told in done.stderr
    assert done.stdout.split() == [left]
