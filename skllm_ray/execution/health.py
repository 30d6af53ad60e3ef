"""What stands in the way of Ray on this machine, found without starting it; and whether a cluster's nodes fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skllm_ray.errors import WorkerMismatchError
from skllm_ray.execution.session import _fault_at, _last_cluster, init, shutdown

_TOKEN_FILE = Path(".ray") / "auth_token"


@dataclass(frozen=True)
class RayHealth:
    """How Ray stands on this machine."""

    version: str
    """Ray's version."""
    given: str = ""
    """What ``RAY_ADDRESS`` says."""
    address: str = ""
    """The address that a call would join; empty where it would start a Ray of its own."""
    fault: str = ""
    """Why no Ray answers at `address`; empty where one does."""
    uses_token: bool = False
    """Whether this user has a token of Ray's, which Ray sends by itself."""
    forces_token: bool = False
    """Whether ``RAY_AUTH_MODE=token`` is set."""


def ray_health(address: str | None = None) -> RayHealth:
    """Return how Ray stands: its version, the cluster that a call would join, and whether that one answers.

    Parameters
    ----------
    address : str or None, default=None
        The cluster to look for. None looks where a call would: at ``RAY_ADDRESS``, then at this machine's last cluster.
    """
    from importlib.metadata import version

    given = os.environ.get("RAY_ADDRESS", "")
    wanted = address or given
    found = _last_cluster() if wanted in {"", "auto"} else wanted
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / _TOKEN_FILE)
    return RayHealth(
        version=version("ray"),
        given=given,
        address="" if found == "local" else found,
        fault="" if found == "local" else _fault_at(found),
        uses_token=bool(os.environ.get("RAY_AUTH_TOKEN")) or token.is_file(),
        forces_token=os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
    )


@dataclass(frozen=True)
class NodeSummary:
    """What a cluster offers, and how its nodes differ from this process."""

    n_nodes: int
    cpus: float
    gpus: float
    differing: str
    """Which nodes have another Python or other packages; empty where none has."""


def nodes_of(address: str, packages: Sequence[str]) -> NodeSummary:
    """Join the cluster at `address`, compare its nodes' Python and `packages` with this process's, and leave it.

    Raises
    ------
    ClusterError
        If it cannot be joined.
    """
    init(address)
    try:
        import ray

        from skllm_ray.execution.worker_check import compare_packages

        try:
            compare_packages(packages)
            differing = ""
        except WorkerMismatchError as error:
            differing = str(error)
        total = ray.cluster_resources()
        alive = sum(node["Alive"] for node in ray.nodes())
        return NodeSummary(alive, float(total.get("CPU", 0)), float(total.get("GPU", 0)), differing)
    finally:
        shutdown()
