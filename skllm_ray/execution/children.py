"""Child processes, such as joblib's: they join their parent's Ray and find the credentials that it holds there."""

from __future__ import annotations

import os
from collections.abc import Mapping

from skllm_ray.config import Secret

_PARENT = "SKLLM_RAY_PARENT"


def announce(address: str, job: str) -> None:
    """Tell the processes that this one will start which cluster to join, and as whose children."""
    os.environ[_PARENT] = f"{os.getpid()} {address} {job}"


def withdraw() -> None:
    """Take back what `announce` told, if this process told it."""
    if os.environ.get(_PARENT, "").startswith(f"{os.getpid()} "):
        del os.environ[_PARENT]


def parent() -> tuple[str, str] | None:
    """Return the address and the job of the parent's Ray, if a parent told them."""
    pid, _, rest = os.environ.get(_PARENT, "").partition(" ")
    if not pid or pid == str(os.getpid()):
        return None
    address, _, job = rest.partition(" ")
    return address, job


def share(secrets: Mapping[str, str]) -> None:
    """Put `secrets` where children of this process find them, if it uses Ray; called before an estimator travels."""
    from skllm_ray.execution import session

    if secrets and session.is_initialised() and not session.is_local_mode() and not session.in_ray_worker():
        from skllm_ray.execution.vault import hand_over

        hand_over(secrets)


def inherited(secrets: Mapping[str, str]) -> dict[str, str]:
    """Return `secrets` and those that the parent holds; in a process without a parent, `secrets` alone."""
    from skllm_ray.execution import session

    known = parent()
    if known is None or session.is_local_mode() or session.in_ray_worker():
        return dict(secrets)
    return {**_of_parent(known[1]), **secrets}


def recalled(key: str | None) -> str | None:
    """Return `key`; where its text stayed behind in a pickle, from where the parent or this job's driver put it."""
    from skllm_ray.execution import session

    if not isinstance(key, Secret) or key or session.is_local_mode():
        return key
    known, held = parent(), dict[str, str]()
    if known is not None and not session.in_ray_worker():
        held = _of_parent(known[1])
    if key.fingerprint not in held and session.is_initialised():
        from skllm_ray.execution.vault import fetch_secrets

        held = fetch_secrets()
    return Secret(held[key.fingerprint]) if key.fingerprint in held else key


def _of_parent(job: str) -> dict[str, str]:
    from skllm_ray.execution import session

    session.ensure()
    from skllm_ray.execution.vault import fetch_secrets

    return fetch_secrets(job)
