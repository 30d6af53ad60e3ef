"""A cluster on this machine whose autoscaler brings nodes and takes them away, with logical GPUs.

Ray's own ``AutoscalingCluster`` ends every Ray of the machine, and needs a file that Ray's wheels lack. This one has
its own folder and port, and ends only what it started.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


@dataclass
class AutoscalingCluster:
    """A running cluster: a head, and the nodes that its autoscaler has started."""

    address: str
    folder: Path
    _own: set[int] = field(default_factory=set)

    def nodes(self) -> list[str]:
        """Return the IDs of the nodes that are there, besides the head."""
        import ray

        return [node["NodeID"] for node in ray.nodes() if node["Alive"] and "GPU" in node["Resources"]]

    def kill(self, node_id: str) -> None:
        """End a node at once, with all its processes, as a cloud takes a machine away; nothing if it is gone."""
        import ray

        node = next((one for one in ray.nodes() if one["NodeID"] == node_id and one["Alive"]), None)
        if node is None:
            return
        named = f"--raylet_socket_name={node['RayletSocketName']} "
        for raylet in [one for one in self._raylets() if named in command_of(one)]:
            for process in [*raylet.children(recursive=True), raylet]:
                with_no_answer(process.kill)

    def drain(self, node_id: str, seconds: float) -> None:
        """Tell Ray that a node goes away soon, as a cloud's notice has it do."""
        import ray
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        client = GcsClient(address=ray.get_runtime_context().gcs_address)
        client.drain_node(node_id, reason, "spot", int((time.time() + seconds) * 1000))

    def stop(self) -> None:
        """End all processes of this cluster."""
        for process in self._processes():
            with_no_answer(process.terminate)
        time.sleep(1.0)
        for process in self._processes():
            with_no_answer(process.kill)

    def _processes(self) -> list[psutil.Process]:
        return [one for one in psutil.process_iter() if str(self.folder) in command_of(one)]

    def _raylets(self) -> list[psutil.Process]:
        return [one for one in self._processes() if "raylet/raylet" in command_of(one)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def with_no_answer(act: Any) -> None:
    """Do something to a process that may be gone by now."""
    with suppress(psutil.Error):
        act()


@contextmanager
def autoscaling_cluster(
    folder: str, *, most: int = 4, idle_s: float = 6.0, node: dict[str, float] | None = None, head_cpus: int = 2
) -> Iterator[AutoscalingCluster]:
    """Start a head whose autoscaler brings up to `most` nodes of the resources `node`, and ends them when idle.

    Parameters
    ----------
    folder : str
        Where its files lie; the name is short, since sockets are among them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kinds: dict[str, Any] = {
        "ray.head.default": {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000, **(node or {})},
            "node_config": {},
            "min_workers": 0,
            "max_workers": most,
        },
    }
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")
    config = {
        "cluster_name": "test",
        "max_workers": most,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("auth", "head_node", "worker_nodes", "file_mounts")},
        **{name: [] for name in (*lists, "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
    path = Path(folder) / "autoscaler.json"
    path.write_text(json.dumps(config))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--num-gpus=0"]
    command += [f"--num-cpus={head_cpus}", "--node-ip-address=127.0.0.1", f"--autoscaling-config={path}"]
    command += ["--object-store-memory=100000000", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
    variables = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    variables["RAY_prestart_worker_first_driver"] = "0"  # a process for each CPU, which takes seconds of this machine
    cluster = AutoscalingCluster(f"127.0.0.1:{port}", Path(folder))
    try:
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **variables})
        yield cluster
    finally:
        cluster.stop()


def until(condition: Any, timeout_s: float) -> bool:
    """Wait until a condition holds; return whether it does."""
    deadline = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return bool(holds)
