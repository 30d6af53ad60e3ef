"""Credentials on their way to the workers: an actor's memory, filled by a method call, never a constructor argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from skllm_ray.execution.session import NAMESPACE, job_key

_kept: dict[str, Any] = {}


class _Vault:
    def __init__(self) -> None:
        self._secrets: dict[str, str] = {}

    def put(self, secrets: Mapping[str, str]) -> None:
        self._secrets.update(secrets)

    def get(self) -> dict[str, str]:
        return dict(self._secrets)


def _name(job: str | None = None) -> str:
    return f"vault-{job or ray.get_runtime_context().get_job_id()}"


def hand_over(secrets: Mapping[str, str]) -> None:
    """Give this job's workers `secrets`, by fingerprint. Does nothing if there are none."""
    if not secrets:
        return
    job = job_key()
    if job not in _kept:  # kept: the actor lives as long as the handle that created it
        options: dict[str, Any] = {"name": _name(), "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0}
        _kept[job] = ray.remote(_Vault).options(**options).remote()
    ray.get(_kept[job].put.remote(dict(secrets)))


def fetch_secrets(job: str | None = None) -> dict[str, str]:
    """Return what the driver of this job, or of `job`, handed over, by fingerprint; empty if it handed over nothing."""
    try:
        vault = ray.get_actor(_name(job), namespace=NAMESPACE)
    except ValueError:
        return {}
    return dict(ray.get(vault.get.remote()))
