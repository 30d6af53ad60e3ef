"""How much of the cluster a model's actors take, and whether it has that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import ray

from skllm_ray.errors import PlacementError
from skllm_ray.execution.nodes import autoscales
from skllm_ray.llm.base import Placement, StatefulSpec

_PATIENCE_S: Final = 60.0
_PATIENCE_WITH_AUTOSCALER_S: Final = 1200.0  # clouds may take minutes to start a machine, and have none left meanwhile
_MOST_THREADS: Final = 8  # per replica, where the user does not say: llama.cpp gains little beyond on most machines


@dataclass(frozen=True, slots=True)
class Share:
    """What one replica takes."""

    num_cpus: float
    num_gpus: float
    threads: int
    """0 where the replica's node decides."""


def share_of(placement: Placement) -> Share:
    """Return what each replica takes, from what was asked and from the cluster's largest node that has such GPUs.

    Threads are the CPUs that were asked for. Without such a wish a replica uses all of its node, which is fastest, and
    reserves one CPU less: whatever the user's own Datasets read and write with must find room beside it. Where nodes
    with such GPUs are still to come, it reserves one CPU.
    """
    if placement.num_cpus is not None:
        return Share(float(placement.num_cpus), placement.num_gpus, max(1, int(placement.num_cpus)))
    fit = [node.get("CPU", 0.0) for node in _nodes() if node.get("GPU", 0.0) >= placement.num_gpus]
    if not fit:
        return Share(1.0, placement.num_gpus, 0)
    threads = int(max(1, min(_MOST_THREADS, max(fit))))
    return Share(float(threads - 1), placement.num_gpus, threads)


def cpu_share_of(placement: Placement) -> Share:
    """Return what a replica without a GPU takes."""
    share = share_of(replace(placement, num_gpus=0.0))
    return replace(share, num_cpus=max(1.0, share.num_cpus))


def replicas_to_add(placement: Placement, share: Share, n_replicas: int = 0) -> int:
    """Return how many replicas to start beside those that there are: what is still due, and more if there is room."""
    most = most_replicas(placement)
    more = min(most - n_replicas, room(share)) if most > n_replicas else 0
    return max(placement.min_replicas - n_replicas, more)


def most_replicas(placement: Placement) -> int:
    """Return how many replicas there may be: as many as the user said, else one for each node that is there."""
    return placement.max_replicas or max(placement.min_replicas, len(_nodes()))


def patience_s(placement: Placement) -> float:
    """Return how long actors wait for room: longer where an autoscaler may bring it."""
    if placement.placement_timeout_s is not None:
        return placement.placement_timeout_s
    return _PATIENCE_WITH_AUTOSCALER_S if autoscales() else _PATIENCE_S


def waits_for_room(share: Share, n: int) -> str:
    """Return what is told of actors that wait for room."""
    brings = "the autoscaler was asked for nodes" if autoscales() else "no autoscaler runs, so that others must end"
    return (
        f"waiting for room for {n} actor(s), each of {share.num_cpus:g} CPU and {share.num_gpus:g} GPU: {brings}; the "
        f"cluster has {_shown(ray.cluster_resources())}"
    )


def room(share: Share) -> int:
    """Return how many replicas the cluster's free resources are enough for."""
    free = ray.available_resources()
    needs = (("CPU", share.num_cpus), ("GPU", share.num_gpus))
    fits = [free.get(name, 0.0) / need for name, need in needs if need]
    return int(min(fits)) if fits else len(_nodes())


def room_beside(share: Share) -> int:
    """Return how many replicas on CPUs find room on single nodes now, so that no node is asked for them."""
    from ray._private.state import available_resources_per_node

    return sum(int(node.get("CPU", 0.0) / share.num_cpus) for node in available_resources_per_node().values())


def fits_a_node(share: Share) -> bool:
    """Return whether any node is large enough, were it free."""
    return any(_fits(share, node) for node in _nodes())


def nodes_to_avoid(share: Share, failed: set[str]) -> frozenset[str]:
    """Return the nodes where loading failed, if there are others that could hold a replica; else none."""
    others = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in failed]
    return frozenset(failed - {""}) if any(_fits(share, node) for node in others) else frozenset()


def no_room(spec: StatefulSpec, share: Share, waited_s: float | None = None) -> PlacementError:
    """Return the error that names what was asked and what the cluster has."""
    within = "" if waited_s is None else f" within {waited_s:g} s"
    return PlacementError(
        f"No room for {spec.placement.min_replicas} actor(s) of {spec.model}, each of {share.num_cpus:g} CPU and "
        f"{share.num_gpus:g} GPU{within}. The cluster has {_shown(ray.cluster_resources())}; "
        f"free now: {_shown(ray.available_resources())}.",
        "Ask for less with SKLLMConfig.set_gguf_resources(…), free the cluster, or add nodes and give them time with "
        "placement_timeout_s.",
    )


def _nodes() -> list[dict[str, Any]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(share: Share, node: dict[str, Any]) -> bool:
    return bool(node.get("CPU", 0) >= share.num_cpus and node.get("GPU", 0) >= share.num_gpus)


def _shown(resources: dict[str, float]) -> str:
    shown = (f"{name} {amount:g}" for name, amount in sorted(resources.items()) if name in {"CPU", "GPU"})
    return ", ".join(shown) or "none"
