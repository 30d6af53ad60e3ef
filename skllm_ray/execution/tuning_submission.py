"""The submission of a tuning job: by a Ray task that is never run again, or in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from skllm_ray.config import Secret
from skllm_ray.errors import ClusterError, JobFailedError, SkllmRayError
from skllm_ray.execution.tuning_watcher import OpenService, placed
from skllm_ray.llm.tuning import TuningJob, TuningSpec, submit
from skllm_ray.llm.tuning.store import TuningStore
from skllm_ray.llm.tuning.submit import GracePeriod, recover
from skllm_ray.llm.tuning_stores import open_store


def submit_here(
    store_url: str,
    spec: TuningSpec,
    data: bytes,
    estimator: dict[str, Any],
    new: bool,
    patience: GracePeriod | None,
    secrets: Mapping[str, Secret],
) -> TuningJob:
    """Return the job of `spec`, submitted by this process unless it exists."""
    with OpenService(spec, secrets) as service:
        service.check()
        return submit(spec, data, open_store(store_url), service, estimator=estimator, new=new, patience=patience)


def _submit_as_task(
    store_url: str,
    spec: TuningSpec,
    data: bytes,
    estimator: dict[str, Any],
    new: bool,
    patience: GracePeriod | None,
) -> TuningJob | SkllmRayError:
    """Run in a Ray worker. Errors are returned: raised ones would come back in a form of Ray's own."""
    from skllm_ray.execution.secrets import fetch_secrets

    try:
        return submit_here(store_url, spec, data, estimator, new, patience, fetch_secrets())
    except SkllmRayError as error:
        return error


def submit_on_cluster(
    store: TuningStore,
    spec: TuningSpec,
    data: bytes,
    estimator: dict[str, Any],
    new: bool,
    patience: GracePeriod | None,
    secrets: Mapping[str, Secret],
) -> TuningJob:
    """Return the job of `spec`, submitted by a task unless it exists; where that is lost, what became of it."""
    import ray

    from skllm_ray.execution.secrets import hand_over

    hand_over(secrets)
    task = ray.remote(_submit_as_task).options(
        name="submit_tuning_job", num_cpus=0, max_retries=0, retry_exceptions=False, **placed(store)
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
        with OpenService(spec, secrets) as service:
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
