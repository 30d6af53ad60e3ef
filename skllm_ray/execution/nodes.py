"""Which of the cluster's nodes come and go: those that are drained, those that are lost, and whether more can come."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from contextlib import suppress
from typing import Any, Final

import ray

_CONNECT_S: Final = 1.0
_FRESH_S: Final = 1.0
_AUTOSCALER_S: Final = 10.0
_logger = logging.getLogger(__name__)


_TASKS_HERE: Final = 8


class _Kept:
    """An answer of the cluster's that is asked for now and then."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Any]] = {}

    def get(self, name: str, seconds: float, ask: Any) -> Any:
        """Return what was last answered, or what `ask` returns where that is older than `seconds`."""
        key = f"{name} {ray.get_runtime_context().gcs_address}"
        at, found = self._known.get(key, (-seconds, None))
        if time.monotonic() - at >= seconds:
            found = ask()
            self._known[key] = time.monotonic(), found
        return found


_kept = _Kept()


def draining() -> frozenset[str]:
    """Return the IDs of the nodes that are about to go: Ray was told to drain them, as clouds' notices have it do."""
    found: frozenset[str] = _kept.get("draining", _FRESH_S, _draining)
    return found


def _draining() -> frozenset[str]:
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())


def this_node_is_draining() -> bool:
    """Return whether the node of this process is about to go."""
    return ray.get_runtime_context().get_node_id() in draining()


def where_tasks_go(n_tasks: int) -> Any:
    """Return Ray's strategy for tasks that hand blocks to model actors: a few stay on the node of the driver.

    There they keep no node that could go home, and are lost with none. Many are spread, so that one node's processors
    are not all that prepares prompts.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if n_tasks > max(_TASKS_HERE, os.cpu_count() or 1):
        return "SPREAD"
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def is_lost(node_id: str) -> bool:
    """Return whether what died there died with its node, and not of what it was asked.

    Ray takes seconds to miss a node. So the node's own process is asked, which answers at once where it lives.
    """
    node = next((one for one in ray.nodes() if one["NodeID"] == node_id), None)
    if node is None or not node["Alive"] or node_id in _draining():
        return True
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_CONNECT_S).close()
    except OSError:
        return True
    return False


def autoscales() -> bool:
    """Return whether an autoscaler runs that starts and ends nodes."""
    found: bool = _kept.get("autoscales", _AUTOSCALER_S, _autoscales)
    return found


def _autoscales() -> bool:
    """Look at the kinds of nodes that the autoscaler tells of: without one, each node is a kind of its own, or none."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    kinds: set[str] = set()
    with suppress(Exception):  # whatever a version of Ray answers: then nothing is known
        told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
        if told:
            kinds = set(json.loads(told).get("autoscaler_report", {}).get("active_nodes", {}))
        else:
            from ray.autoscaler.v2.sdk import get_cluster_status

            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            nodes = [*status.active_nodes, *status.idle_nodes]
            kinds = {node.ray_node_type_name for node in nodes}
    _logger.debug("The autoscaler's kinds of nodes: %s", sorted(kinds))
    return any(kind and not kind.startswith("node_") for kind in kinds)
