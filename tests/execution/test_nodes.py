"""Which nodes come and go, as Ray tells it."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from skllm_ray.execution import nodes


def told(monkeypatch: pytest.MonkeyPatch, kinds: list[str] | None, v2: list[str] | None = None) -> bool:
    report = None if kinds is None else json.dumps({"autoscaler_report": {"active_nodes": dict.fromkeys(kinds, 1)}})
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: report)
    held = [SimpleNamespace(ray_node_type_name=kind) for kind in v2 or ()]
    status = SimpleNamespace(active_nodes=held[:1], idle_nodes=held[1:])
    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", lambda address: status)
    monkeypatch.setattr(nodes.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    return nodes._autoscales()


def test_an_autoscaler_is_known_by_its_kinds_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, ["ray.head.default"])
    assert not told(monkeypatch, ["node_ffff", "node_eeee"])  # without one, each node is a kind of its own
    assert told(monkeypatch, None, ["headgroup", "gpu"])
    assert not told(monkeypatch, None, [""])  # a Ray that was started by a call
    assert not told(monkeypatch, None, [])


def test_a_node_is_lost_where_its_own_process_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    node: dict[str, Any] = {"NodeID": "n", "Alive": True, "NodeManagerAddress": "127.0.0.1"}
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [node])
    monkeypatch.setattr(nodes, "_draining", lambda: frozenset({"d"}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        node["NodeManagerPort"] = server.getsockname()[1]
        assert not nodes.is_lost("n")
        node["NodeID"] = "d"
        assert nodes.is_lost("d")  # it is about to go
        assert nodes.is_lost("n")  # it is gone
    node["NodeID"] = "n"
    assert nodes.is_lost("n")  # Ray has not missed it yet
    node["Alive"] = False
    assert nodes.is_lost("n")
