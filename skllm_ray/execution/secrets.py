"""Credentials on their way to the workers: an actor's memory, filled by a method call, never a constructor argument."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import ray
from ray.exceptions import RayError

from skllm_ray.config import Secret
from skllm_ray.errors import ClusterError
from skllm_ray.execution.ray_state import NAMESPACE, job_key

_TRIES: Final = 3
_ANSWER_S: Final = 30.0
_COMES_BACK_S: Final = 10.0
"""How long a worker waits for an actor that died and is started again."""

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_kept: dict[str, Any] = {}
_known: dict[str, dict[str, Secret]] = {}
"""What this process handed over or was told, by job: whoever knows it fills an actor that has lost it."""


class Sealed:
    """Credentials between two processes of a job: their texts travel, and nothing shows them on either side."""

    __slots__ = ("_secrets",)

    def __init__(self, secrets: Iterable[Secret]) -> None:
        self._secrets = tuple(secrets)

    def open(self) -> dict[str, Secret]:
        """Return the credentials by fingerprint."""
        return {secret.fingerprint: secret for secret in self._secrets if secret}

    def __reduce__(self) -> tuple[Any, ...]:
        return (_sealed, tuple(secret.reveal() for secret in self._secrets))


def _sealed(*texts: str) -> Sealed:
    return Sealed(map(Secret, texts))


class _Vault:
    def __init__(self) -> None:
        self._secrets: dict[str, Secret] = {}

    def put(self, secrets: Sealed) -> None:
        self._secrets.update(secrets.open())

    def get(self) -> Sealed:
        return Sealed(self._secrets.values())


def _name(job: str | None = None) -> str:
    return f"vault-{job or ray.get_runtime_context().get_job_id()}"


def hand_over(secrets: Mapping[str, Secret]) -> None:
    """Give this job's workers `secrets`, by fingerprint. Does nothing if there are none.

    Raises
    ------
    ClusterError
        If the actor that takes them is lost again and again.
    """
    if not secrets:
        return
    job = job_key()
    with _lock:
        known = _known.setdefault(job, {})
        known.update(secrets)
        lost: RayError | None = None
        for _ in range(_TRIES):
            try:
                ray.get(_vault(job).put.remote(Sealed(known.values())), timeout=_ANSWER_S)
            except RayError as error:  # it died, alone or with its node: a new one is filled with all that is known
                lost = error
                _kept.pop(job, None)
            else:
                return
    raise ClusterError(
        f"The actor that gives credentials to the workers is lost again and again ({type(lost).__name__}).",
        "See Ray's logs for what ends it, and call again.",
    )


def fetch_secrets(job: str | None = None) -> dict[str, Secret]:
    """Return what the driver of this job, or of `job`, handed over, by fingerprint; empty if it handed over nothing.

    An actor that died is waited for, as long as Ray starts it again; what it has lost, it gets from here.
    """
    mine = job or job_key()
    known = _known.get(mine, {})
    deadline = time.monotonic() + _COMES_BACK_S
    while True:
        try:
            vault: Any = ray.get_actor(_name(job), namespace=NAMESPACE)
            answer: Sealed = ray.get(vault.get.remote(), timeout=_ANSWER_S)
            told = answer.open()
        except ValueError:  # there is none
            return dict(known)
        except RayError as error:
            _logger.debug("the actor with the credentials gave no answer (%s)", type(error).__name__)
            told = {}
        if set(known) - set(told):
            vault.put.remote(Sealed(known.values()))
        if told or known or time.monotonic() > deadline:
            with _lock:
                found = _known.setdefault(mine, {})
                found.update(told)
                return dict(found)
        time.sleep(0.2)


def known_here() -> dict[str, Secret]:
    """Return what this process handed over in its job, or was told, without asking anyone."""
    return dict(_known.get(job_key(), {}))


def _vault(job: str) -> Any:
    """Return the actor of this job; kept, since it lives as long as the handle that created it."""
    if job not in _kept:
        options: dict[str, Any] = {
            "name": _name(),
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
        }
        _kept.clear()  # of a Ray that this process has left
        _kept[job] = ray.remote(_Vault).options(**options).remote()
    return _kept[job]
