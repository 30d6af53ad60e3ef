"""Credentials of child processes, such as joblib's: they find those that their parent holds in its Ray."""

from __future__ import annotations

from collections.abc import Mapping

from skllm_ray.config import Secret
from skllm_ray.execution import ray_state
from skllm_ray.execution.parent_process import parent


def inherited(secrets: Mapping[str, Secret]) -> dict[str, Secret]:
    """Return `secrets` and those that the parent holds; in a process without a parent, `secrets` alone."""
    known = parent()
    if known is None or ray_state.is_local_mode() or ray_state.in_ray_worker():
        return dict(secrets)
    return {**_of_parent(known[1]), **secrets}


def recalled(key: str | None) -> str | None:
    """Return `key`; where its text stayed behind in a pickle, from where the parent or this job's driver put it."""
    if not isinstance(key, Secret) or key or ray_state.is_local_mode():
        return key
    known, held = parent(), dict[str, Secret]()
    if known is not None and not ray_state.in_ray_worker():
        held = _of_parent(known[1])
    if key.fingerprint not in held and ray_state.is_initialised():
        held = _of_this_job(key.fingerprint)
    return held.get(key.fingerprint, key)


def _of_parent(job: str) -> dict[str, Secret]:
    from skllm_ray.execution import session

    session.ensure()
    from skllm_ray.execution.secrets import fetch_secrets

    return fetch_secrets(job)


def _of_this_job(fingerprint: str) -> dict[str, Secret]:
    from skllm_ray.execution.secrets import fetch_secrets, known_here

    held = known_here()
    if fingerprint in held or not ray_state.in_ray_worker():  # the driver knows all that it handed over
        return held
    return fetch_secrets()
