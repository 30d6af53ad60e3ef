"""Do the cluster's workers have what the driver has? Asked once per cluster, before the first call."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.exceptions import RayError

from skllm_ray.errors import WorkerMismatchError
from skllm_ray.execution.plan import Plan
from skllm_ray.llm.base import is_stateful

_checked: set[tuple[str, tuple[str, ...]]] = set()
_TIMEOUT_S = 60.0


def compare_workers(plan: Plan) -> None:
    """Raise if a node's Python or packages would break the call; does nothing on the driver's own node alone.

    Raises
    ------
    WorkerMismatchError
        Naming the nodes, the differences, and the ``runtime_env`` that mends them.
    """
    context = ray.get_runtime_context()
    packages = tuple(dict.fromkeys(name for step in plan if is_stateful(step.spec) for name in step.spec.packages))
    key = (context.get_node_id(), packages)  # another cluster at the same address has other nodes
    if key in _checked:
        return
    compare_packages(("ray", "skllm-ray", *packages))
    _checked.add(key)


def compare_packages(needed: Sequence[str]) -> None:
    """Raise if a node's Python, or its version of a package of `needed`, is not that of this process.

    Raises
    ------
    WorkerMismatchError
        Naming the nodes, the differences, and the ``runtime_env`` that mends them.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    expected = {"python": ".".join(platform.python_version_tuple()[:2]), **{name: _version(name) for name in needed}}
    differing = _compare(nodes, expected)
    if differing:
        pins = [f"{name}=={found}" for name, found in expected.items() if name not in {"python", "ray"} and found]
        raise WorkerMismatchError(
            "The cluster's workers differ from this process:\n" + "\n".join(differing),
            f"Install the same versions on every node, or start with init(runtime_env={{'pip': {pins}}}).",
        )


def _compare(nodes: list[dict[str, Any]], expected: dict[str, str]) -> list[str]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def probe(names: list[str]) -> dict[str, str]:
        import platform
        from importlib import metadata

        found = {"python": ".".join(platform.python_version_tuple()[:2])}
        for name in names:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = ""
        return found

    probe.__module__ = "__main__"  # pickled by value: a worker without skllm_ray must be able to answer
    remote = ray.remote(probe)
    names = [name for name in expected if name != "python"]
    answers = {
        node["NodeManagerAddress"]: remote.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(names)
        for node in nodes
    }
    differing = []
    for address, answer in answers.items():
        try:
            found = ray.get(answer, timeout=_TIMEOUT_S)
        except RayError as error:
            differing.append(f"  {address}: gave no answer ({type(error).__name__})")
            continue
        wrong = [
            f"{name} {found[name] or 'missing'} (here {value or 'missing'})"
            for name, value in expected.items()
            if found[name] != value
        ]
        if wrong:
            differing.append(f"  {address}: {', '.join(wrong)}")
    return differing


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
