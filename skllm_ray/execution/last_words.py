"""What an actor whose process died wrote to standard error last: llama.cpp's assertion, for one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skllm_ray.errors import ClusterError, ModelLoadError, SkllmRayError
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.gpt.clients.llama_cpp.words import death_hint, last_words, sentence

_WAIT_S: Final = 15.0
_KEPT_BYTES: Final = 20_000
_TELLING: Final = re.compile(r"GGML_|terminate called|what\(\)|Fatal Python error|CUDA error")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor's process lives, and where it writes its errors."""

    node: str
    """The node's ID."""
    stderr: str = ""
    """The file that standard error goes to; empty where the system does not tell."""


NOWHERE: Final = Place("")
"""Where an actor is that died before it told."""


def place_of_this_process() -> Place:
    """Return where this actor lives."""
    try:
        stderr = str(Path("/proc/self/fd/2").readlink())
    except OSError:  # not Linux
        stderr = ""
    return Place(str(ray.get_runtime_context().get_node_id()), stderr if stderr.startswith("/") else "")


def words_of(place: Place) -> str:
    """Return why an actor that lived at `place` died, by its own words; empty where it left none that tell.

    They are read on its node, by a task that takes no resources.
    """
    if not place.node or not place.stderr:
        return ""
    strategy = NodeAffinitySchedulingStrategy(place.node, soft=False)
    task = ray.remote(_read).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    try:
        text: str = ray.get(task.remote(place.stderr), timeout=_WAIT_S)
    except (RayError, GetTimeoutError):  # its node is gone, or too busy
        return ""
    return last_words(text) if _TELLING.search(text) else ""


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _KEPT_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def quoted(words: str) -> str:
    """Return the words as the end of a message; nothing where there are none."""
    return f" Its last words: {sentence(words)}" if words else ""


def why_not_loaded(spec: BackendSpec, error: Exception, words: str) -> BaseException:
    """Return what to raise where an actor could not load its model: its own error, or what it died of."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, SkllmRayError) else error
    if words:
        return ModelLoadError(f"The process that was to load {spec.model} died.{quoted(words)}", death_hint(words))
    return ModelLoadError(
        f"The process that was to load {spec.model} died.",
        "The node may be short of memory: ask for fewer replicas with SKLLMConfig.set_gguf_resources, or for a smaller "
        "model.",
    )


def why_given_up(spec: BackendSpec, deaths: int, words: str) -> ClusterError:
    """Return what to raise where a model's actors died so many times in a row without an answer."""
    return ClusterError(
        f"The processes that held {spec.model} died {deaths} times in a row without an answer.{quoted(words)}",
        death_hint(words) if words else "The machine may be short of memory, or the model or llama.cpp unfit for it.",
    )
