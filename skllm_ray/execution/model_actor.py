"""The Ray actor that holds a loaded model."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skllm_ray.llm.base import Backend, BackendSpec
from skllm_ray.tasks.base import ChatRequest, Reply


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """Where one replica of a model lives."""

    pid: int
    node: str
    """The node's address."""
    load_s: float
    """Seconds from the start of loading to the model being ready."""
    threads: int
    memory_mb: float
    """Resident memory of the process, in MB, the file's shared pages included."""


class ModelActor:
    """Holds one model for as long as the pool wants it. It is asked by blocks."""

    def __init__(self, hide_gpus: bool) -> None:
        if hide_gpus:  # Ray leaves GPUs visible to actors that asked for none; llama.cpp would take them
            os.environ.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
        self._backend: Backend | None = None
        self._load_s = 0.0
        self._threads = 0

    def ping(self) -> int:
        """Return this process's ID: the actor has been placed."""
        return os.getpid()

    def load(self, spec: BackendSpec, threads: int) -> ReplicaInfo:
        """Load the model; raises ``ModelLoadError`` as ``spec.open`` does."""
        started = time.perf_counter()
        own: Any = replace(spec, n_threads=threads)  # type: ignore[type-var]
        self._backend = own.open(_no_secrets)
        self._threads = own.n_threads
        self._load_s = time.perf_counter() - started
        return self.info()

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request."""
        if self._backend is None:
            raise RuntimeError("The model is not loaded.")
        return self._backend.complete(requests)

    def info(self) -> ReplicaInfo:
        """Return where this replica lives and what it takes."""
        import ray

        return ReplicaInfo(os.getpid(), ray.util.get_node_ip_address(), self._load_s, self._threads, _resident_mb())


def _no_secrets(reference: object) -> str:
    raise RuntimeError(f"A local model asked for the credential {reference}.")


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6
