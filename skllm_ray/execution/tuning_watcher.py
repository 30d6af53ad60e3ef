"""The watcher of a store's tuning jobs: a detached actor that polls them, each at its own pace, and submits nothing."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skllm_ray.config import Secret, SecretRef, resolve_secret
from skllm_ray.errors import SkllmRayError
from skllm_ray.execution import ray_state, watcher
from skllm_ray.execution.watcher import STARTING_S, answering, named_watchers, on_this_node, start_watcher, wake_watcher
from skllm_ray.llm.submissions import BEFORE_POST, Service, refresh
from skllm_ray.llm.tuning import TuningJob, TuningSpec
from skllm_ray.llm.tuning.store import TuningStore, open_store
from skllm_ray.llm.tuning_services import open_service

_log = logging.getLogger(__name__)
_PREFIX = ray_state.shared_name("tuning-watcher", TuningJob, TuningSpec, SecretRef) + "-"
_FAR_S = 3600.0


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

    with answering(
        "the tuning jobs", "They go on at their service; `skllm-ray tune wait ID` asks for them without Ray."
    ):
        given = _watcher_name(store), store.url, polling or Polling()
        actor = start_watcher(Watcher, *given, is_local=store.is_local)
        wake_watcher(actor, secrets)
        troubles: dict[str, SkllmRayError] = ray.get(actor.troubles.remote(), timeout=STARTING_S)
    return troubles


class Watcher(watcher.Watcher):
    """Polls the jobs of one store, each at its own pace. It cannot submit anything."""

    def __init__(self, store_url: str, polling: Polling) -> None:
        self._store = open_store(store_url)
        self._polling = polling
        self._due: dict[str, tuple[float, int]] = {}
        self._troubles: dict[str, SkllmRayError] = {}
        super().__init__()

    def troubles(self) -> dict[str, SkllmRayError]:
        """Return, by key, why a job could not be learnt of when its service was asked last."""
        return dict(self._troubles)

    def jobs(self) -> list[TuningJob]:
        """Return all jobs of the store."""
        return self._store.jobs()

    def _polled(self, job: TuningJob) -> TuningJob:
        """Return `job` after asking its service once; what goes wrong is kept for whoever waits for it."""
        self._troubles.pop(job.key, None)
        try:
            return ask_once(job, self._store, self._secrets)
        except Exception as error:  # noqa: BLE001  one job's service must not end the watch over the others
            ours = error if isinstance(error, SkllmRayError) else SkllmRayError(f"{type(error).__name__}: {error}")
            self._troubles[job.key] = ours
            return job

    def _look(self) -> float:
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
    return on_this_node() if store.is_local else {}


def _watcher_name(store: TuningStore) -> str:
    import ray

    where = ray.get_runtime_context().get_node_id() if store.is_local else ""
    return _PREFIX + hashlib.sha256(f"{where} {store.url}".encode()).hexdigest()[:16]


def watchers() -> list[Any]:
    """Return the watchers of this cluster, of all stores."""
    return list(named_watchers(_PREFIX).values())
