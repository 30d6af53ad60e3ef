"""Whether weights may be laid out anew for this processor: tried in a process of its own, which may die of it.

llama.cpp that is compiled on a processor with AMX lays weights out for it, and computes with it. GCC leaves out the
set-up of AMX's registers (https://github.com/ggml-org/llama.cpp/pull/26954), so that the first decode of any model ends
its process with "illegal instruction". Weights that stand as in their file are computed without AMX, on the same build.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.trial import SCRIPT, child_environment, notes

REBUILD: Final = (
    "CMAKE_ARGS='-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__' "
    "pip install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
)
"""Compiles llama.cpp without AMX, and with all else that this processor has."""
NOTICE: Final = (
    "This llama.cpp was compiled with AMX, and dies where it uses it. Models are computed without it, and without the "
    f"layout of weights that is fastest. What mends it: {REBUILD}"
)
_ENDINGS: Final = ("works", "dies")
_TIMEOUT_S: Final = 60.0


def lays_out_weights(lib: ModuleType) -> bool:
    """Return whether llama.cpp survives a decode with weights that it lays out for this processor.

    Asked once per process, and tried once per machine and build: half a second. A build without AMX is not tried.
    """
    return "AMX_INT8 = 1" not in lib.llama_print_system_info().decode() or _survives()


@functools.cache
def _survives() -> bool:
    if not sys.executable:  # an embedded interpreter: there is nothing to start
        return False
    built = Path(str(importlib.util.find_spec("llama_cpp").origin)).with_name("lib")  # type: ignore[union-attr]
    states = [(str(part), part.stat().st_mtime_ns) for part in sorted(built.glob("*"))]
    identity = repr((states, importlib.metadata.version("llama-cpp-python"), platform.node()))
    note = notes() / f"layout-{hashlib.sha256(identity.encode()).hexdigest()}"
    with contextlib.suppress(OSError):
        if (told := note.read_text()) in _ENDINGS:  # not one that was being written
            return told == "works"
    ending = _tried()
    if ending in _ENDINGS:
        with contextlib.suppress(OSError):  # it will be tried again
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(ending)
    return ending == "works"


def _tried() -> str:
    """Return "works" or "dies"; nothing where that did not come out, as on a machine that is too busy."""
    command = [sys.executable, "-P", str(SCRIPT), str(DEMO_FILE), "laid out"]
    try:
        done = subprocess.run(  # noqa: S603 - this very Python, a script of ours, and a file of ours
            command, env=child_environment(), capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode == 0:
        return "works"
    return "dies" if done.returncode < 0 else ""
