"""What is loaded, and where: questions that need no model."""

from __future__ import annotations

from skllm_ray.execution.model_actor import ReplicaInfo as Replica
from skllm_ray.llm.gpt.clients.llama_cpp.handler import ModelCache

__all__ = ["Replica", "cluster_cpus", "loaded_replicas"]


def loaded_replicas(model: str) -> list[Replica]:
    """Return where the replicas of `model` (with its namespace) live; empty if no actor holds it."""
    from skllm_ray.execution.model_pool import PooledBackend

    held = ModelCache.get(model)
    return held.replicas() if isinstance(held, PooledBackend) else []


def cluster_cpus() -> float:
    """Return the cluster's CPUs."""
    import ray

    return float(ray.cluster_resources().get("CPU", 1.0))
