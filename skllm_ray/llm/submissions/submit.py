"""The protocol of `skllm_ray.llm.submissions`, whose docstring says why it is as it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from skllm_ray.errors import AmbiguousSubmission, JobFailedError, SkllmRayError
from skllm_ray.llm.submissions.record import BEFORE_POST
from skllm_ray.llm.submissions.store import R, SubmissionStore


class RefusedError(JobFailedError):
    """The service said no, so that nothing was bought."""


class OutcomeUnknownError(SkllmRayError):
    """The POST was sent, and its answer was lost or says nothing."""


class Service(Protocol):
    """The few verbs that the protocol needs of a service. Every one raises errors of this library alone.

    What a service tells of a job is an object with an ``id``; `Submission.seen` reads the rest of it.
    """

    def check(self) -> None:
        """Raise what would make the job fail for certain: no permission, no bucket, no server."""
        ...

    def upload(self, data: Any, key: str) -> str:
        """Store the data at the service, check that it arrived whole, return its name there."""
        ...

    def find(self, key: str) -> Any:
        """Return the job that carries `key`, or None."""
        ...

    def create(self, spec: Any, data: str) -> Any:
        """Send the one POST; raise `RefusedError` if nothing was bought, `OutcomeUnknownError` if nobody knows."""
        ...

    def get(self, job_id: str) -> Any:
        """Return a job, or None if the service knows it no more."""
        ...

    def cancel(self, job_id: str) -> None:
        """Ask the service to stop; a job that has ended already is no error."""
        ...

    def remove(self, data: str) -> None:
        """Remove what was uploaded; data that is gone already is no error."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True)
class GracePeriod:
    """How long to look for a job whose submission's outcome is unknown."""

    grace_s: float = 120.0
    look_every_s: float = 5.0


def submit(
    wanted: R,
    data: Any,
    store: SubmissionStore[R],
    service: Service,
    *,
    new: bool = False,
    patience: GracePeriod | None = None,
    on_step: Callable[[str], object] = lambda step: None,  # noqa: ARG005
) -> R:
    """Return the job that `wanted` asks for: the one that exists, or else one that is submitted now.

    Parameters
    ----------
    wanted : Submission
        The intent.
    data : bytes or path
        What the service is to work on, as its `upload` takes it.
    store : SubmissionStore
        Where the job is kept.
    service : Service
        Who sells it.
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
    wanted, job = _intend(wanted, store, new=new)
    on_step("intent")
    if job.state not in BEFORE_POST:
        return settle(job, store, service, patience)
    found = service.find(job.key)
    while new and found is not None:  # a store that was lost knows less than the service
        _record(job, found, store)
        wanted, job = _intend(wanted.next_copy(), store, new=new)
        found = service.find(job.key)
    on_step("looked")
    if found is not None:
        return _record(job, found, store)
    uploaded = service.upload(data, job.key)
    on_step("uploaded")
    fresh = replace(wanted, version=job.version, state="posting", posted_at=time.time(), data=uploaded)
    posting = store.write(fresh)
    if posting is None:  # another submitter is at it
        winner = _reread(job, store)
        if winner.data not in {None, uploaded}:
            service.remove(uploaded)
        return settle(winner, store, service, patience)
    on_step("posting")
    return _post(posting, store, service, patience, on_step)


def _post(
    posting: R, store: SubmissionStore[R], service: Service, patience: GracePeriod, on_step: Callable[[str], object]
) -> R:
    """Send the one POST of the submitter that won, and record what came of it."""
    uploaded = posting.data or ""
    try:
        created = service.create(posting.spec, uploaded)
    except RefusedError as error:
        if posting.spec.delete_data:
            service.remove(uploaded)
        store.write(replace(posting, state="refused", error=str(error), posted_at=None))
        raise
    except OutcomeUnknownError as error:
        return settle(posting, store, service, patience, str(error))
    on_step("posted")
    recorded = _record(posting, created, store)
    on_step("recorded")
    return recorded


def settle(job: R, store: SubmissionStore[R], service: Service, patience: GracePeriod, reason: str = "") -> R:
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
        try:
            found = service.find(job.key)
        except SkllmRayError as error:  # the service is away: look again
            found, reason = None, reason or str(error)
        if found is not None:
            return _record(job, found, store)
        if time.monotonic() >= deadline:
            raise _ambiguous(job, reason)
        time.sleep(min(patience.look_every_s, max(0.0, deadline - time.monotonic())))
        job = _reread(job, store)


def recover(key: str, store: SubmissionStore[R], service: Service, patience: GracePeriod | None = None) -> R:
    """Return what became of a submission whose process died. Never sends a POST.

    Raises
    ------
    AmbiguousSubmission
        If it may have been sent and does not appear at the service.
    JobFailedError
        If it died before it was sent: nothing was bought.
    """
    job = store.read(key)
    if job is not None and job.state not in BEFORE_POST:
        return settle(job, store, service, patience or GracePeriod())
    found = service.find(key)
    if found is None or job is None:
        raise JobFailedError("The process that submits died before it sent the job.", "Call again.")
    return _record(job, found, store)


def refresh(job: R, store: SubmissionStore[R], service: Service) -> R:
    """Ask the service once how `job` is, and store what has changed. Never submits anything."""
    if not job.has_ended:
        if job.id is None:
            found = service.find(job.key) if job.state == "posting" else None
            return job if found is None else _record(job, found, store)
        found = service.get(job.id)
        changed = job.missed() if found is None else job.seen(found)
        if changed != job:
            job = store.write(changed) or _reread(job, store)
    if job.has_ended and job.spec.delete_data and job.data is not None:
        service.remove(job.data)
        job = store.write(replace(job, data=None)) or _reread(job, store)
    return job


def _intend(wanted: R, store: SubmissionStore[R], *, new: bool) -> tuple[R, R]:
    """Return the intent, and its record: stored now, or the last that was bought of this content."""
    last: tuple[R, R] | None = None
    while True:
        known = store.read(wanted.key)
        if known is None:
            if last is not None and not new:
                return last
            stored = store.write(wanted)
            if stored is not None:
                return wanted, stored
            continue  # another submitter was first: read what it wrote
        last = (wanted, known) if last is None or known.state != "forgotten" else last
        wanted = wanted.next_copy()


def _reread(job: R, store: SubmissionStore[R]) -> R:
    return store.read(job.key) or job


def _record(job: R, found: Any, store: SubmissionStore[R]) -> R:
    while job.id is None:
        stored = store.write(job.seen(found))
        if stored is not None:
            return stored
        job = _reread(job, store)
    return job


def _ambiguous(job: R, reason: str) -> AmbiguousSubmission:
    because = f" ({reason})" if reason else ""
    what = job.title[:1].upper() + job.title[1:]
    return AmbiguousSubmission(
        f"{what} was sent to {job.service}, and nobody can say whether it was taken{because}. Nothing was sent again.",
        f"Look at the service's console for {job.key}. If the job is there: `{job.command} adopt {job.key} ID`. "
        f"If it is not: `{job.command} forget {job.key}`, then submit again.",
        job.key,
    )
