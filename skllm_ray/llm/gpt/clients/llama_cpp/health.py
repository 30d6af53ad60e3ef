"""Whether llama.cpp works on this machine: asked in a process of its own, which may die of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from skllm_ray.llm.gpt.clients.llama_cpp.kernels import lays_out_weights
from skllm_ray.llm.gpt.clients.llama_cpp.library import import_llama_cpp

_TIMEOUT_S = 60.0
_NO_FEATURES = {"LLAMAFILE", "OPENMP", "REPACK", "ACCELERATE"}  # of the build, not of the processor


@dataclass(frozen=True)
class LibraryHealth:
    """What this machine's llama.cpp is, or why it does not work."""

    version: str = ""
    """llama-cpp-python's version."""
    supports_gpu: bool = False
    """Whether it was built so that layers can be placed on a GPU."""
    features: tuple[str, ...] = ()
    """The processor's features that it was built to use, such as ``AVX2``."""
    lays_out_weights: bool = True
    """Whether it survives weights that are laid out for this processor; without, models are slower."""
    fault: str = ""
    """Why it cannot be used; empty where it can."""


def library_health() -> LibraryHealth:
    """Load llama.cpp in a process of its own and return what it says of itself.

    A library built for another processor ends the process that loads it ("illegal instruction"); this one survives.
    """
    command = [sys.executable, "-c", f"from {__name__} import _tell; _tell()"]
    try:
        done = subprocess.run(  # noqa: S603  this very interpreter
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return LibraryHealth(fault=f"it was not loaded within {_TIMEOUT_S:g} s")
    if done.returncode < 0:
        return LibraryHealth(fault=f"the process that loads it dies of signal {-done.returncode}")
    try:
        told = json.loads(done.stdout)
    except json.JSONDecodeError:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return LibraryHealth(fault=lines[-1])
    return LibraryHealth(told["version"], told["supports_gpu"], tuple(told["features"]), told["lays_out"])


def _tell() -> None:
    lib = import_llama_cpp()
    said = lib.llama_print_system_info().decode(errors="replace")
    pairs = (part.rpartition(":")[2].partition("=") for part in said.split("|"))
    features = [name.strip() for name, _, value in pairs if value.strip() == "1" and name.strip() not in _NO_FEATURES]
    told = {"version": lib.__version__, "supports_gpu": bool(lib.llama_supports_gpu_offload()), "features": features}
    told["lays_out"] = lays_out_weights(lib)
    sys.stdout.write(json.dumps(told))
