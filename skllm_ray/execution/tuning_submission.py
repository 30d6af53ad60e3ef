"""The submission of a tuning job: by a Ray task that is never run again, or in this process."""

from __future__ import annotations

from collections.abc import Mapping

from skllm_ray.config import Secret
from skllm_ray.errors import ClusterError, JobFailedError, SkllmRayError
from skllm_ray.execution.tuning_watcher import OpenService, placed
from skllm_ray.llm.submissions import GracePeriod, recover, submit
from skllm_ray.llm.tuning import TuningJob
from skllm_ray.llm.tuning.store import TuningStore, open_store


def submit_here(
    store_url: str,
    wanted: TuningJob,
    data: bytes,
    new: bool,
    patience: GracePeriod | None,
    secrets: Mapping[str, Secret],
) -> TuningJob:
    """Return the job that `wanted` asks for, submitted by this process unless it exists."""
    with OpenService(wanted.spec, secrets) as service:
        service.check()
        return submit(wanted, data, open_store(store_url), service, new=new, patience=patience)


def _submit_as_task(
    store_url: str, wanted: TuningJob, data: bytes, new: bool, patience: GracePeriod | None
) -> TuningJob | SkllmRayError:
    """Run in a Ray worker. Errors are returned: raised ones would come back in a form of Ray's own."""
    from skllm_ray.execution.secrets import fetch_secrets

    try:
        return submit_here(store_url, wanted, data, new, patience, fetch_secrets())
    except SkllmRayError as error:
        return error


def submit_on_cluster(
    store: TuningStore,
    wanted: TuningJob,
    data: bytes,
    new: bool,
    patience: GracePeriod | None,
    secrets: Mapping[str, Secret],
) -> TuningJob:
    """Return the job that `wanted` asks for, submitted by a task; where that is lost, what became of it."""
    import ray

    from skllm_ray.execution.secrets import hand_over

    hand_over(secrets)
    task = ray.remote(_submit_as_task).options(
        name="submit_tuning_job", num_cpus=0, max_retries=0, retry_exceptions=False, **placed(store)
    )
    try:
        outcome: TuningJob | SkllmRayError = ray.get(task.remote(store.url, wanted, ray.put(data), new, patience))
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        # Which of the copies it was about to buy is not known here: the newest in the store.
        while new and store.read(wanted.next_copy().key) is not None:
            wanted = wanted.next_copy()
        with OpenService(wanted.spec, secrets) as service:
            try:
                return recover(wanted.key, store, service, patience)
            except JobFailedError as lost:
                raise ClusterError(
                    f"{lost.message} ({type(error).__name__})", "Nothing was bought: call again."
                ) from None
    if isinstance(outcome, SkllmRayError):
        raise outcome
    return outcome
