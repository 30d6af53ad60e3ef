"""What a running job has at its disposal, and what it waits for: replicas of models in actors, and quotas of APIs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from skllm_ray.errors import SkllmRayError
from skllm_ray.execution.model_actor import ReplicaInfo as Replica
from skllm_ray.execution.pool_state import Standing
from skllm_ray.llm.api.outage_notice import AGAIN
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.llm.rate_limit.messages import BucketInfo

if TYPE_CHECKING:
    from skllm_ray.execution.model_pool import PooledBackend

_EVERY_S: Final = 1.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterStatus:
    """How a job stands in its cluster."""

    quotas: tuple[BucketInfo, ...] = ()
    """The limits of the job's API models."""
    replicas: tuple[tuple[str, Standing], ...] = ()
    """How many replicas each model in actors has, and what becomes of them."""


class StatusPoller:
    """Asks the cluster now and then.

    Parameters
    ----------
    models : sequence of str
        The job's API models.
    pools : sequence of PooledBackend
        Its models in actors.
    since : float, default=0.0
        From when on it matters what became of replicas, in seconds since 1970-01-01 UTC.
    """

    def __init__(self, models: Sequence[str], pools: Sequence[PooledBackend], since: float = 0.0) -> None:
        self._models = set(models)
        self._pools = pools
        self._found = ClusterStatus()
        self._asked_at = -_EVERY_S
        self._heard = since
        self.timeline: list[tuple[float, str, str, int]] = []
        """What became of replicas: seconds since 1970-01-01 UTC, model, event, and the replicas that there are then."""

    def look(self) -> ClusterStatus:
        """Return how the job stands; what cannot be told just now is as it was."""
        from ray.exceptions import RayError

        from skllm_ray.execution.rate_limiter import show_limits

        if time.monotonic() - self._asked_at >= _EVERY_S:
            self._asked_at = time.monotonic()
            with suppress(RayError, SkllmRayError, ValueError, TimeoutError):
                buckets = show_limits() if self._models else []
                heard, self._heard = self._heard, time.time()
                replicas = tuple((pool.spec.model, pool.standing(heard)) for pool in self._pools)
                self._found = ClusterStatus(
                    tuple(bucket for bucket in buckets if self._models & set(bucket.bucket.split())), replicas
                )
                self._keep_events(replicas)
        return self._found

    def _keep_events(self, replicas: Sequence[tuple[str, Standing]]) -> None:
        found = [(at, model, what, one.replicas) for model, one in replicas for at, what in one.events]
        self.timeline += sorted(found)


@contextmanager
def outages_told(models: Sequence[str]) -> Iterator[None]:
    """Say on the driver what workers wait for: what they write themselves, a driver does not show.

    Parameters
    ----------
    models : sequence of str
        The call's API models.
    """
    over = threading.Event()

    def watch() -> None:
        poller, told = StatusPoller(models, ()), ""
        while not over.wait(_EVERY_S):
            trouble = next((bucket.trouble for bucket in poller.look().quotas if bucket.trouble), "")
            if trouble and not told:
                _logger.warning("skllm_ray: %s", trouble)
            elif told and not trouble:
                _logger.warning("skllm_ray: %s %s", told.partition(",")[0].removeprefix("waiting for "), AGAIN)
            told = trouble

    thread = threading.Thread(target=watch, name="skllm-ray-outages", daemon=True)
    if models:
        thread.start()
    try:
        yield
    finally:
        over.set()


def loaded_replicas(model: str) -> list[Replica]:
    """Return where the replicas of `model` (with its namespace) live; empty if no actor holds it."""
    from skllm_ray.execution.model_pool import PooledBackend

    held = ModelCache.get(model)
    return held.replicas() if isinstance(held, PooledBackend) else []


def cluster_cpus() -> float:
    """Return the cluster's CPUs."""
    import ray

    return float(ray.cluster_resources().get("CPU", 1.0))
