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

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from skllm_ray.config import Secret
from skllm_ray.errors import ClusterError, ConfigurationError, InputError, JobFailedError, SkllmRayError, warn
from skllm_ray.execution import ray_state, session
from skllm_ray.execution.tuning_submission import submit_here, submit_on_cluster
from skllm_ray.execution.tuning_watcher import OpenService, Polling, ask_once, watch, watchers
from skllm_ray.execution.watcher import STARTING_S
from skllm_ray.llm.credentials import secrets_of
from skllm_ray.llm.submissions import BEFORE_POST, GracePeriod, refresh
from skllm_ray.llm.tuning import TuningJob, TuningSpec
from skllm_ray.llm.tuning.store import TuningStore, open_store

_log = logging.getLogger(__name__)


def submit_job(
    spec: TuningSpec,
    data: bytes,
    estimator: dict[str, Any],
    *,
    key: str | None = None,
    new: bool = False,
    patience: GracePeriod | None = None,
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
    patience : GracePeriod, optional
        How long to look for a job whose submission's outcome is unknown.
    polling : Polling, optional
        How often the watcher asks.
    """
    store, secrets = open_store(), secrets_of(key)
    wanted = TuningJob(spec=spec, estimator=estimator)
    if ray_state.is_local_mode():
        return submit_here(store.url, wanted, data, new, patience, secrets)
    session.ensure()
    job = submit_on_cluster(store, wanted, data, new, patience, secrets)
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

        for actor in watchers():
            try:
                others = ray.get(actor.jobs.remote(), timeout=STARTING_S)
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
    with OpenService(job.spec, secrets) as service:
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
    with OpenService(job.spec, secrets_of(key)) as service:
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


def _refreshed(
    job: TuningJob, store: TuningStore, secrets: Mapping[str, Secret], tell: Callable[[str], object] = _log.info
) -> TuningJob:
    """Return `job` after asking its service once; as it was if the service is away, which `tell` is told."""
    try:
        return ask_once(job, store, secrets)
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
