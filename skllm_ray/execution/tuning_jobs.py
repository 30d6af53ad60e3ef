"""Tuning jobs on the cluster: a task that submits and is never run again, and a watcher that only polls.

::

    driver ── task, max_retries=0 ──> submit()  ──>  store  <──  watcher, detached, one for each store
                                                       ^
    driver, CLI, another driver ──── wait, list ───────┘

Nothing depends on a process: the state is in the store, and a watcher that starts again starts from there. A store
that only one machine sees keeps the task and the watcher on that machine. In local mode, and for the command line,
the same functions run in this process without Ray.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from skllm_ray.config import Secret, SecretRef, resolve_secret
from skllm_ray.errors import ClusterError, ConfigurationError, InputError, JobFailedError, SkllmRayError, warn
from skllm_ray.execution import ray_state, session
from skllm_ray.llm.registry import secrets_of
from skllm_ray.llm.tuning import TuningJob, TuningSpec, submit
from skllm_ray.llm.tuning.job import BEFORE_POST
from skllm_ray.llm.tuning.store import TuningStore
from skllm_ray.llm.tuning.submit import Patience, TuningService, recover, refresh
from skllm_ray.llm.tuning_services import open_service
from skllm_ray.llm.tuning_stores import open_store

if TYPE_CHECKING:
    from skllm_ray.execution.secrets import Sealed

_log = logging.getLogger(__name__)
_PREFIX = ray_state.shared_name("tuning-watcher", TuningJob, TuningSpec, SecretRef) + "-"
_FAR_S = 3600.0
_STARTING_S = 120.0


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


def submit_job(
    spec: TuningSpec,
    data: bytes,
    estimator: dict[str, Any],
    *,
    key: str | None = None,
    new: bool = False,
    patience: Patience | None = None,
    polling: Polling | None = None,
) -> TuningJob:
    """Return the job of `spec`, submitted by a Ray task unless it exists, and watch it.

    Parameters
    ----------
    spec : TuningSpec
        What to tune.
    data : bytes
        The data set.
    estimator : dict
        Kept with the job.
    key : str or None, default=None
        The API key; None takes the settings'.
    new : bool, default=False
        Whether to buy a further job although one of the same content exists.
    patience : Patience, optional
        How long to look for a job whose submission's outcome is unknown.
    polling : Polling, optional
        How often the watcher asks.
    """
    store = open_store()
    secrets = secrets_of(key)
    if ray_state.is_local_mode():
        return _submit_here(store.url, spec, data, estimator, new, patience, secrets)
    session.ensure()
    job = _submit_on_cluster(store, spec, data, estimator, new, patience, secrets)
    watch(store, secrets, polling)
    return job


def wait(
    name: str,
    *,
    timeout_s: float | None = None,
    key: str | None = None,
    store: str | None = None,
    polling: Polling | None = None,
    on_change: Callable[[TuningJob], None] | None = None,
) -> TuningJob:
    """Return a job once it has ended.

    Parameters
    ----------
    name : str
        The service's ID, or the key.
    timeout_s : float or None, default=None
        The longest wait in seconds; None waits without end.
    key : str or None, default=None
        The API key; None takes the settings'.
    store : str or None, default=None
        Another store than the settings'.
    polling : Polling, optional
        How often to ask.
    on_change : callable, optional
        Told the job whenever its state changes.

    Raises
    ------
    TimeoutError
        If it has not ended in time; the job goes on.
    """
    opened, polling = open_store(store), polling or Polling()
    job, secrets = opened.find(name), secrets_of(key)
    deadline = time.monotonic() + (timeout_s if timeout_s is not None else float("inf"))
    seen, n_polls = None, 0
    watched = not ray_state.is_local_mode() and ray_state.is_initialised()
    told: set[str] = set()

    def tell(message: str) -> None:
        if message not in told:
            told.add(message)
            warn(message)

    while True:
        if job.state != seen:
            seen, n_polls = job.state, 0
            if on_change is not None:
                on_change(job)
        if job.has_ended:
            return _refreshed(job, opened, secrets)
        if job.state in BEFORE_POST:
            raise JobFailedError(f"The tuning job {job.key} was not submitted: {job.error or job.state}.")
        if time.monotonic() >= deadline:
            raise TimeoutError(f"The tuning job {job.id or job.key} is still {job.state} after {timeout_s} s.")
        pause_s = 1.0 if watched else polling.pause_s(n_polls)
        time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
        n_polls += 1
        watched_well = watched
        if watched and n_polls % 10 == 1:  # it may have died with its node, or lack a credential that is known here
            watched_well = job.key not in watch(opened, secrets, polling)
        job = (opened.read(job.key) or job) if watched_well else _refreshed(job, opened, secrets, tell)


def wait_with_progress(name: str, *, key: str | None = None, polling: Polling | None = None) -> TuningJob:
    """Return a job once it has ended, and show meanwhile how it is."""
    from skllm_ray.execution.progress import progress_bar

    with progress_bar(0, "tuning", show=True) as bar:
        bar.bar_format = "{desc}  {elapsed}"

        def show(job: TuningJob) -> None:
            _log.info("tuning job %s is %s", job.id or job.key, job.state)
            bar.set_description_str(f"tuning {job.base_model}: {job.state}")

        return wait(name, key=key, polling=polling, on_change=show)


def list_jobs(*, store: str | None = None) -> list[TuningJob]:
    """Return the jobs of the store, and those of all stores that this cluster's watchers watch, oldest first."""
    own = open_store(store)
    found = {job.key: job for job in own.jobs()}
    if ray_state.is_initialised():
        import ray

        for actor in _watchers():
            try:
                others = ray.get(actor.jobs.remote(), timeout=_STARTING_S)
            except ray.exceptions.RayError:
                continue  # its node is gone; its store is not, and whoever opens that sees the jobs
            found = {job.key: job for job in others} | found
    return sorted(found.values(), key=lambda job: (job.created_at or job.posted_at or float("inf"), job.key))


def get_job(name: str, *, store: str | None = None, key: str | None = None) -> TuningJob:
    """Return a job by the service's ID or the key, after asking the service once how it is."""
    opened = open_store(store)
    return _refreshed(opened.find(name), opened, secrets_of(key))


def find_job(name: str, *, store: str | None = None) -> TuningJob:
    """Return a job by the service's ID or the key, as the store has it."""
    return open_store(store).find(name)


def cancel(name: str, *, store: str | None = None, key: str | None = None) -> TuningJob:
    """Ask the service to stop a job; return it as it is then. A job that succeeded first stays a success."""
    opened = open_store(store)
    job, secrets = opened.find(name), secrets_of(key)
    if job.state in BEFORE_POST:
        return opened.write(replace(job, state="forgotten")) or opened.find(name)
    if job.id is None:
        job = _refreshed(job, opened, secrets)
    if job.id is None:
        raise JobFailedError(
            f"The tuning job {job.key} has no ID yet, so it cannot be cancelled.", "Call again in a minute."
        )
    if job.has_ended:
        return job
    with _Open(job.spec, secrets) as service:
        service.cancel(job.id)
        return refresh(job, opened, service)


def adopt(name: str, job_id: str, *, store: str | None = None, key: str | None = None) -> TuningJob:
    """Tell the store that the job `name`, whose submission's outcome was unknown, is `job_id` at its service.

    Raises
    ------
    InputError
        If the service does not know `job_id`, it tunes another model, or `name` has another ID already.
    """
    opened = open_store(store)
    job = opened.find(name)
    if job.id is not None:
        raise InputError(f"The tuning job {job.key} is {job.id} already.", "Nothing was changed.")
    with _Open(job.spec, secrets_of(key)) as service:
        found = service.get(job_id)
        if found is None:
            raise InputError(
                f"{job.service} knows no tuning job {job_id!r}.", "Check the ID, the project and the region."
            )
        if found.key not in {None, job.key}:
            raise InputError(f"{job_id} carries the key {found.key}, not {job.key}.", "Adopt it under its own key.")
        if found.base_model and not found.base_model.endswith(job.base_model.rpartition("/")[2]):
            raise InputError(f"{job_id} tunes {found.base_model}, not {job.base_model}.", "Check the ID.")
        return refresh(_written(opened, replace(job, id=found.id, state=found.state)), opened, service)


def forget(name: str, *, store: str | None = None) -> TuningJob:
    """Take a job out of the list, so that the same content may be submitted again. The service's job is left alone."""
    opened = open_store(store)
    job = opened.find(name)
    forgotten = TuningJob(spec=replace(job.spec), state="forgotten", version=job.version)
    return _written(opened, forgotten)


def resume_all(*, store: str | None = None, key: str | None = None, polling: Polling | None = None) -> list[TuningJob]:
    """Watch all jobs that have not ended, as after a restart of the cluster; return them.

    Jobs whose submission's outcome is unknown are looked for at their service. Nothing is submitted.
    """
    opened = open_store(store)
    secrets = secrets_of(key)
    going = [job for job in opened.jobs() if not job.has_ended and job.state not in BEFORE_POST]
    if not ray_state.is_local_mode() and going:
        session.ensure()
        watch(opened, secrets, polling)
    return [_refreshed(job, opened, secrets) for job in going]


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
    actor: Any = ray.remote(_Watcher).options(**options, **_placed(store)).remote(store.url, polling or Polling())
    try:
        ray.get(actor.wake.remote(Sealed(secrets.values())), timeout=_STARTING_S)
        troubles: dict[str, SkllmRayError] = ray.get(actor.troubles.remote(), timeout=_STARTING_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ClusterError(
            f"The watcher of the tuning jobs does not answer: {type(error).__name__}.",
            "The jobs go on at their service; `skllm-ray tune wait ID` asks for them without Ray.",
        ) from None
    return troubles


class _Watcher:
    """Polls the jobs of one store, each at its own pace. It knows no way to submit anything."""

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
            return _asked(job, self._store, self._secrets)
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


class _Open:
    """An open service that is closed again."""

    def __init__(self, spec: TuningSpec, secrets: Mapping[str, Secret]) -> None:
        self._service = open_service(spec, lambda reference: resolve_secret(reference, secrets))

    def __enter__(self) -> TuningService:
        return self._service

    def __exit__(self, *exception: object) -> None:
        self._service.close()


def _asked(job: TuningJob, store: TuningStore, secrets: Mapping[str, Secret]) -> TuningJob:
    """Return `job` after asking its service once."""
    if job.has_ended and not (job.spec.delete_data and job.data):
        return job
    with _Open(job.spec, secrets) as service:
        return refresh(job, store, service)


def _refreshed(
    job: TuningJob, store: TuningStore, secrets: Mapping[str, Secret], tell: Callable[[str], object] = _log.info
) -> TuningJob:
    """Return `job` after asking its service once; as it was if the service is away, which `tell` is told."""
    try:
        return _asked(job, store, secrets)
    except ConfigurationError:
        raise
    except (SkllmRayError, OSError) as error:
        tell(
            f"Nothing could be learnt of the tuning job {job.id or job.key} ({type(error).__name__}: {error}). It goes "
            "on at its service, which is asked again."
        )
        return job


def _written(store: TuningStore, job: TuningJob) -> TuningJob:
    stored = store.write(job)
    if stored is None:
        raise ClusterError(f"The tuning job {job.key} was changed by somebody else just now.", "Look, and call again.")
    return stored


def _submit_here(
    store_url: str,
    spec: TuningSpec,
    data: bytes,
    estimator: dict[str, Any],
    new: bool,
    patience: Patience | None,
    secrets: Mapping[str, Secret],
) -> TuningJob:
    with _Open(spec, secrets) as service:
        service.check()
        return submit(spec, data, open_store(store_url), service, estimator=estimator, new=new, patience=patience)


def _submit_as_task(
    store_url: str,
    spec: TuningSpec,
    data: bytes,
    estimator: dict[str, Any],
    new: bool,
    patience: Patience | None,
) -> TuningJob | SkllmRayError:
    """Run in a Ray worker. Errors are returned: raised ones would come back in a form of Ray's own."""
    from skllm_ray.execution.secrets import fetch_secrets

    try:
        return _submit_here(store_url, spec, data, estimator, new, patience, fetch_secrets())
    except SkllmRayError as error:
        return error


def _submit_on_cluster(
    store: TuningStore,
    spec: TuningSpec,
    data: bytes,
    estimator: dict[str, Any],
    new: bool,
    patience: Patience | None,
    secrets: Mapping[str, Secret],
) -> TuningJob:
    import ray

    from skllm_ray.execution.secrets import hand_over

    hand_over(secrets)
    task = ray.remote(_submit_as_task).options(
        name="submit_tuning_job", num_cpus=0, max_retries=0, retry_exceptions=False, **_placed(store)
    )
    try:
        outcome: TuningJob | SkllmRayError = ray.get(
            task.remote(store.url, spec, ray.put(data), estimator, new, patience)
        )
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        if new:  # which of the copies it was about to buy is not known here: the newest in the store
            spec = _newest(spec, store)
        with _Open(spec, secrets) as service:
            try:
                return recover(spec.key, store, service, patience)
            except JobFailedError as lost:
                raise ClusterError(
                    f"{lost.message} ({type(error).__name__})", "Nothing was bought: call again."
                ) from None
    if isinstance(outcome, SkllmRayError):
        raise outcome
    return outcome


def _newest(spec: TuningSpec, store: TuningStore) -> TuningSpec:
    while store.read(replace(spec, copy=spec.copy + 1).key) is not None:
        spec = replace(spec, copy=spec.copy + 1)
    return spec


def _placed(store: TuningStore) -> dict[str, Any]:
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


def _watchers() -> list[Any]:
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    ours = [found["name"] for found in named if found["namespace"] == ray_state.NAMESPACE]
    return [ray.get_actor(name, namespace=ray_state.NAMESPACE) for name in ours if name.startswith(_PREFIX)]
