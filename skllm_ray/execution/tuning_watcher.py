"""The watcher of a store's tuning jobs: a detached actor that polls them, each at its own pace, and submits nothing."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skllm_ray.config import Secret, SecretRef, resolve_secret
from skllm_ray.errors import ClusterError, SkllmRayError
from skllm_ray.execution import ray_state
from skllm_ray.llm.submissions import BEFORE_POST, Service, refresh
from skllm_ray.llm.tuning import TuningJob, TuningSpec
from skllm_ray.llm.tuning.store import TuningStore, open_store
from skllm_ray.llm.tuning_services import open_service

if TYPE_CHECKING:
    from skllm_ray.execution.secrets import Sealed

_log = logging.getLogger(__name__)
_PREFIX = ray_state.shared_name("tuning-watcher", TuningJob, TuningSpec, SecretRef) + "-"
_FAR_S = 3600.0
STARTING_S = 120.0
"""The longest wait for a watcher's answer, in seconds: its process may have to start."""


@dataclass(frozen=True, slots=True)
class Polling:
    """How often a service is asked for a job."""

    first_s: float = 15.0
    growth: float = 1.5
    longest_s: float = 300.0
    jitter: float = 0.2
    """Share of every pause that is random, so that many jobs do not ask at once."""

    def pause_s(self, n_polls: int) -> float:
        """Return the pause after so many polls that brought nothing new.

        Examples
        --------
        >>> Polling(jitter=0).pause_s(0), Polling(jitter=0).pause_s(100)
        (15.0, 300.0)
        """
        pause_s = min(self.longest_s, self.first_s * self.growth ** min(n_polls, 50))
        return pause_s * (1 + self.jitter * (2 * random.random() - 1))


def watch(
    store: TuningStore, secrets: Mapping[str, Secret], polling: Polling | None = None
) -> Mapping[str, SkllmRayError]:
    """Start the store's watcher unless it runs, and hand it credentials, which live in its memory alone.

    Return, by key, why it could not learn of a job when it asked last.
    """
    import ray

    from skllm_ray.execution.secrets import Sealed

    name = _watcher_name(store)
    options: dict[str, Any] = {
        "name": name,
        "namespace": ray_state.NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": 4,
    }
    actor: Any = ray.remote(Watcher).options(**options, **placed(store)).remote(store.url, polling or Polling())
    try:
        ray.get(actor.wake.remote(Sealed(secrets.values())), timeout=STARTING_S)
        troubles: dict[str, SkllmRayError] = ray.get(actor.troubles.remote(), timeout=STARTING_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ClusterError(
            f"The watcher of the tuning jobs does not answer: {type(error).__name__}.",
            "The jobs go on at their service; `skllm-ray tune wait ID` asks for them without Ray.",
        ) from None
    return troubles


class Watcher:
    """Polls the jobs of one store, each at its own pace. It cannot submit anything."""

    def __init__(self, store_url: str, polling: Polling) -> None:
        self._store = open_store(store_url)
        self._polling = polling
        self._secrets: dict[str, Secret] = {}
        self._due: dict[str, tuple[float, int]] = {}
        self._troubles: dict[str, SkllmRayError] = {}
        self._woken = threading.Event()
        self._starting = threading.Lock()
        self._thread = self._started()

    def wake(self, secrets: Sealed) -> int:
        """Take in credentials, and look for new jobs; return this process's ID."""
        import os

        self._secrets.update(secrets.open())
        with self._starting:
            if not self._thread.is_alive():
                self._thread = self._started()
        self._woken.set()
        return os.getpid()

    def troubles(self) -> dict[str, SkllmRayError]:
        """Return, by key, why a job could not be learnt of when its service was asked last."""
        return dict(self._troubles)

    def jobs(self) -> list[TuningJob]:
        """Return all jobs of the store."""
        return self._store.jobs()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="tuning-watcher", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            self._woken.clear()
            self._woken.wait(self._poll_due())

    def _polled(self, job: TuningJob) -> TuningJob:
        """Return `job` after asking its service once; what goes wrong is kept for whoever waits for it."""
        self._troubles.pop(job.key, None)
        try:
            return ask_once(job, self._store, self._secrets)
        except Exception as error:  # noqa: BLE001  one job's service must not end the watch over the others
            ours = error if isinstance(error, SkllmRayError) else SkllmRayError(f"{type(error).__name__}: {error}")
            self._troubles[job.key] = ours
            return job

    def _poll_due(self) -> float:
        """Poll what is due; return the seconds until something else is."""
        now = time.monotonic()
        try:
            going = [job for job in self._store.jobs() if not job.has_ended and job.state not in BEFORE_POST]
        except Exception as error:  # noqa: BLE001  the store is away, in whatever way
            _log.warning("the store of the tuning jobs cannot be read (%s)", type(error).__name__)
            return self._polling.longest_s
        for job in going:
            due, n_polls = self._due.get(job.key, (now, 0))
            if due > now:
                continue
            after = self._polled(job)
            n_polls = n_polls + 1 if after.version == job.version else 0
            self._due[job.key] = (time.monotonic() + self._polling.pause_s(n_polls), n_polls)
        waits = [self._due[job.key][0] - time.monotonic() for job in going]
        return max(0.05, min([*waits, _FAR_S]))


class OpenService:
    """An open service that is closed again."""

    def __init__(self, spec: TuningSpec, secrets: Mapping[str, Secret]) -> None:
        self._service = open_service(spec, lambda reference: resolve_secret(reference, secrets))

    def __enter__(self) -> Service:
        return self._service

    def __exit__(self, *exception: object) -> None:
        self._service.close()


def ask_once(job: TuningJob, store: TuningStore, secrets: Mapping[str, Secret]) -> TuningJob:
    """Return `job` after asking its service once."""
    if job.has_ended and not (job.spec.delete_data and job.data):
        return job
    with OpenService(job.spec, secrets) as service:
        return refresh(job, store, service)


def placed(store: TuningStore) -> dict[str, Any]:
    """Return the Ray options that keep work where the store is."""
    if not store.is_local:
        return {}
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _watcher_name(store: TuningStore) -> str:
    import ray

    where = ray.get_runtime_context().get_node_id() if store.is_local else ""
    return _PREFIX + hashlib.sha256(f"{where} {store.url}".encode()).hexdigest()[:16]


def watchers() -> list[Any]:
    """Return the watchers of this cluster, of all stores."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    ours = [found["name"] for found in named if found["namespace"] == ray_state.NAMESPACE]
    return [ray.get_actor(name, namespace=ray_state.NAMESPACE) for name in ours if name.startswith(_PREFIX)]
