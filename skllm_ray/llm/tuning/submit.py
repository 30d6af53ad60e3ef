"""The protocol that submits a tuning job once, whatever dies on the way.

::

    1  intent      stored, unless the store knows the job already
    2  look        for the key at the service; what is found is adopted
    3  upload      the data set
    4  posting     stored: exactly one submitter wins this version
    5  POST        once, without retries
    6  record      the service's ID, stored

Whoever dies before 4 leaves a job that anybody may submit. From 4 on nobody sends a POST any more: the job is looked
for at the service for a grace period, and if it does not appear, :class:`AmbiguousSubmission` leaves the choice to the
user. Losers of the race in 4 do the same while they wait for the winner's record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from skllm_ray.errors import AmbiguousSubmission, JobFailedError, SkllmRayError
from skllm_ray.llm.tuning.job import BEFORE_POST, USABLE, ServerJob, TuningJob
from skllm_ray.llm.tuning.spec import TuningSpec
from skllm_ray.llm.tuning.store import TuningStore

_STRIKES = 3


class RefusedError(JobFailedError):
    """The service said no, so that nothing was bought."""


class OutcomeUnknownError(SkllmRayError):
    """The POST was sent, and its answer was lost or says nothing."""


class TuningService(Protocol):
    """The few verbs that the protocol needs of a service. Every one raises errors of this library alone."""

    def check(self) -> None:
        """Raise what would make the job fail for certain: no permission, no bucket, no server."""
        ...

    def upload(self, data: bytes, key: str) -> str:
        """Store the data set at the service, check that it arrived whole, return its name there."""
        ...

    def find(self, key: str) -> ServerJob | None:
        """Return the job that carries `key`, or None."""
        ...

    def create(self, spec: TuningSpec, data: str) -> ServerJob:
        """Send the one POST; raise `RefusedError` if nothing was bought, `OutcomeUnknownError` if nobody knows."""
        ...

    def get(self, job_id: str) -> ServerJob | None:
        """Return a job, or None if the service knows it no more."""
        ...

    def cancel(self, job_id: str) -> None:
        """Ask the service to stop; a job that has ended already is no error."""
        ...

    def remove(self, data: str) -> None:
        """Remove a data set; one that is gone already is no error."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True)
class GracePeriod:
    """How long to look for a job whose submission's outcome is unknown."""

    grace_s: float = 120.0
    look_every_s: float = 5.0


Step = Callable[[str], None]
"""Told the name of every step that was taken."""


def _no_step(name: str) -> None:
    del name


def submit(
    spec: TuningSpec,
    data: bytes,
    store: TuningStore,
    service: TuningService,
    *,
    estimator: dict[str, Any] | None = None,
    new: bool = False,
    patience: GracePeriod | None = None,
    on_step: Step = _no_step,
) -> TuningJob:
    """Return the job of `spec`: the one that exists, or else one that is submitted now.

    Parameters
    ----------
    spec : TuningSpec
        What to tune.
    data : bytes
        The data set.
    store : TuningStore
        Where the job is kept.
    service : TuningService
        Who tunes.
    estimator : dict, optional
        Kept with the job.
    new : bool, default=False
        Whether to buy a further job although one of the same content exists.
    patience : GracePeriod, optional
        How long to look for a job whose submission's outcome is unknown.
    on_step : callable, optional
        Told every step: ``start``, ``intent``, ``looked``, ``uploaded``, ``posting``, ``posted``, ``recorded``.

    Raises
    ------
    AmbiguousSubmission
        If a POST was sent, now or earlier, and the job does not appear at the service.
    RefusedError
        If the service refused the job.
    """
    patience = patience or GracePeriod()
    on_step("start")
    job = _intend(TuningJob(spec=spec, estimator=estimator or {}), store, new=new)
    on_step("intent")
    if job.state not in BEFORE_POST:
        return settle(job, store, service, patience)
    job, found = _looked_for(job, store, service, new=new)
    on_step("looked")
    if found is not None:
        return _record(job, found, store)
    uploaded = service.upload(data, job.key)
    on_step("uploaded")
    fresh = replace(job, state="posting", posted_at=time.time(), data=uploaded, error=None, estimator=estimator or {})
    posting = store.write(fresh)
    if posting is None:  # another submitter is at it
        winner = _reread(job, store)
        if winner.data not in {None, uploaded}:
            service.remove(uploaded)
        return settle(winner, store, service, patience)
    on_step("posting")
    return _post(posting, uploaded, store, service, patience, on_step, tidy=spec.delete_data)


def _looked_for(
    job: TuningJob, store: TuningStore, service: TuningService, *, new: bool
) -> tuple[TuningJob, ServerJob | None]:
    """Return the job, and what the service has of it; of a `new` one, the first copy that the service does not have."""
    found = service.find(job.key)
    while new and found is not None:  # a store that was lost knows less than the service
        _record(job, found, store)
        copy = replace(job.spec, copy=job.spec.copy + 1)
        job = _intend(TuningJob(spec=copy, estimator=job.estimator), store, new=new)
        found = service.find(job.key)
    return job, found


def _post(
    posting: TuningJob,
    uploaded: str,
    store: TuningStore,
    service: TuningService,
    patience: GracePeriod,
    on_step: Step,
    *,
    tidy: bool,
) -> TuningJob:
    """Send the one POST of the submitter that won, and record what came of it; `tidy` removes the data if refused."""
    try:
        created = service.create(posting.spec, uploaded)
    except RefusedError as error:
        if tidy:
            service.remove(uploaded)
        store.write(replace(posting, state="refused", error=str(error), posted_at=None))
        raise
    except OutcomeUnknownError as error:
        return settle(posting, store, service, patience, str(error))
    on_step("posted")
    recorded = _record(posting, created, store)
    on_step("recorded")
    return recorded


def settle(
    job: TuningJob, store: TuningStore, service: TuningService, patience: GracePeriod, reason: str = ""
) -> TuningJob:
    """Return `job` with its ID: from the store, or from the service, where it is looked for during the grace period.

    Raises
    ------
    AmbiguousSubmission
        If it does not appear.
    RefusedError
        If its submitter was refused.
    """
    waited_s = max(0.0, time.time() - (job.posted_at or 0.0))
    deadline = time.monotonic() + max(0.0, patience.grace_s - waited_s)
    while True:
        if job.state == "refused":
            raise RefusedError(f"{job.service} refused the job: {job.error}")
        if job.id is not None:
            return job
        found, reason = _look(job, service, reason)
        if found is not None:
            return _record(job, found, store)
        if time.monotonic() >= deadline:
            raise _ambiguous(job, reason)
        time.sleep(min(patience.look_every_s, max(0.0, deadline - time.monotonic())))
        job = _reread(job, store)


def recover(key: str, store: TuningStore, service: TuningService, patience: GracePeriod | None = None) -> TuningJob:
    """Return what became of a submission whose process died. Never sends a POST.

    Raises
    ------
    AmbiguousSubmission
        If it may have been sent and does not appear at the service.
    JobFailedError
        If it died before it was sent: nothing was bought.
    """
    job = store.read(key)
    if job is None or job.state in BEFORE_POST:
        found = service.find(key)
        if found is None or job is None:
            raise JobFailedError("The process that submits died before it sent the job.", "Call again.")
        return _record(job, found, store)
    return settle(job, store, service, patience or GracePeriod())


def refresh(job: TuningJob, store: TuningStore, service: TuningService) -> TuningJob:
    """Ask the service once how `job` is, and store what has changed. Never submits anything."""
    if job.has_ended:
        return _tidy(job, store, service)
    if job.id is None:
        found = service.find(job.key) if job.state == "posting" else None
        return job if found is None else _record(job, found, store)
    found = service.get(job.id)
    changed = _missing(job) if found is None else _updated(job, found)
    if changed != job:
        job = store.write(changed) or _reread(job, store)
    return _tidy(job, store, service) if job.has_ended else job


def _intend(job: TuningJob, store: TuningStore, *, new: bool) -> TuningJob:
    """Store the intent, or return the job that is there already: the last that was bought of this content."""
    last: TuningJob | None = None
    while True:
        known = store.read(job.key)
        if known is None:
            if last is not None and not new:
                return last
            stored = store.write(job)
            if stored is not None:
                return stored
            continue  # another submitter was first: read what it wrote
        last = known if last is None or known.state != "forgotten" else last
        job = replace(job, spec=replace(job.spec, copy=job.spec.copy + 1))


def _reread(job: TuningJob, store: TuningStore) -> TuningJob:
    return store.read(job.key) or job


def _record(job: TuningJob, found: ServerJob, store: TuningStore) -> TuningJob:
    while job.id is None:
        stored = store.write(_updated(job, found))
        if stored is not None:
            return stored
        job = _reread(job, store)
    return job


def _updated(job: TuningJob, found: ServerJob) -> TuningJob:
    strikes = job.strikes + 1 if found.state in USABLE and found.model is None else 0
    error = found.error
    if strikes >= _STRIKES:  # an endpoint may appear a little after its job's success
        strikes, error = 0, error or "The job succeeded, but the service gives no tuned model to predict with."
    return replace(
        job,
        id=found.id,
        state=found.state,
        model=found.model or job.model,
        error=error,
        created_at=found.created_at or job.created_at,
        started_at=found.started_at or job.started_at,
        finished_at=found.finished_at or job.finished_at,
        billable_tokens=found.billable_tokens or job.billable_tokens,
        data=job.data or (None if job.id else found.data),
        strikes=strikes,
    )


def _missing(job: TuningJob) -> TuningJob:
    """Note that the service does not know the job; three times in a row, it was deleted."""
    if job.strikes + 1 < _STRIKES:
        return replace(job, strikes=job.strikes + 1)
    return replace(job, strikes=0, state="deleted", error="The service does not know this job any more.")


def _tidy(job: TuningJob, store: TuningStore, service: TuningService) -> TuningJob:
    """Remove the service's copy of the data set where that was asked for."""
    if not job.spec.delete_data or job.data is None:
        return job
    service.remove(job.data)
    return store.write(replace(job, data=None)) or _reread(job, store)


def _look(job: TuningJob, service: TuningService, reason: str) -> tuple[ServerJob | None, str]:
    try:
        return service.find(job.key), reason
    except SkllmRayError as error:  # the service is away: look again
        return None, reason or str(error)


def _ambiguous(job: TuningJob, reason: str) -> AmbiguousSubmission:
    because = f" ({reason})" if reason else ""
    return AmbiguousSubmission(
        f"A tuning job of {job.base_model} was sent to {job.service}, and nobody can say whether it was "
        f"taken{because}. Nothing was sent again.",
        f"Look at the service's console for {job.key}. If the job is there: `skllm-ray tune adopt {job.key} ID`. "
        f"If it is not: `skllm-ray tune forget {job.key}`, then submit again.",
        job.key,
    )
