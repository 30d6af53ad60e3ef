"""Tuning Gemini models on Vertex AI."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from skllm_ray.errors import ConfigurationError, JobFailedError
from skllm_ray.llm.api.redaction import redact
from skllm_ray.llm.submissions import OutcomeUnknownError, RefusedError
from skllm_ray.llm.tuning.job import ServerJob, State
from skllm_ray.llm.tuning.spec import TuningSpec
from skllm_ray.llm.vertex.backend import _open_client
from skllm_ray.llm.vertex.errors import classify
from skllm_ray.llm.vertex.gcs import StorageError, check_bucket, explain, open_bucket, status_of
from skllm_ray.llm.vertex.spec import VertexSpec

if TYPE_CHECKING:
    from google.genai import types

LABEL: Final = "skllm-ray-key"
"""The label in which a job carries its key."""

_PAGE = 100
_FOLDER = "skllm-ray-tuning"
_CERTAIN = {"authentication", "permission", "model_not_found", "bad_request", "rate_limit", "insufficient_quota"}
_STATES: Final[dict[str, State]] = {
    f"JOB_STATE_{state.upper()}": state
    for state in (
        "queued", "pending", "running", "paused", "updating", "cancelling",
        "succeeded", "partially_succeeded", "failed", "cancelled", "expired",
    )
}  # fmt: skip
_ADAPTER_SIZES = {1: "ONE", 2: "TWO", 4: "FOUR", 8: "EIGHT", 16: "SIXTEEN", 32: "THIRTY_TWO"}


class VertexTuning:
    """Vertex AI's tuning jobs, and the bucket for their data sets.

    Parameters
    ----------
    spec : TuningSpec
        Names the project, the region and the bucket.
    """

    def __init__(self, spec: TuningSpec) -> None:
        self._spec = spec
        chat = VertexSpec(model=spec.base_model, project=spec.project, location=spec.location or "")
        try:
            self._client = _open_client(chat, None)
        except Exception as error:  # noqa: BLE001  the boundary to the SDK
            raise explain(error, "Vertex AI") from None
        self._parent = f"projects/{spec.project}/locations/{spec.location}"

    def check(self) -> None:
        """Raise unless the bucket can be written to and jobs can be listed."""
        check_bucket(self._bucket())
        next(self._jobs(1), None)

    def upload(self, data: bytes, key: str) -> str:
        """Store the data set in the bucket; Google compares its CRC32C with ours on arrival, and so do we."""
        import google_crc32c

        blob = self._bucket().blob(f"{_FOLDER}/{key}.jsonl")
        try:
            blob.upload_from_string(data, "application/jsonl", checksum="crc32c")
            blob.reload()
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            raise explain(error, f"gs://{self._spec.bucket}") from None
        expected = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        if blob.crc32c != expected or blob.size != len(data):
            raise StorageError(f"gs://{self._spec.bucket}/{blob.name} does not hold what was sent.", "Try again.")
        return f"gs://{self._spec.bucket}/{blob.name}"

    def find(self, key: str) -> ServerJob | None:
        """Return the oldest job with our label, or None."""
        found = [job for job in self._jobs(_PAGE) if (job.labels or {}).get(LABEL) == key]
        return min(map(_read, found), key=lambda job: job.created_at or 0, default=None)

    def create(self, spec: TuningSpec, data: str) -> ServerJob:
        """Send the one POST: the client was opened to try once."""
        from google.genai import types

        given = dict(spec.hyper_parameters)
        adapter_size = given.get("adapter_size")
        config = types.CreateTuningJobConfig(
            tuned_model_display_name=spec.suffix or None,
            epoch_count=_integer(given.get("epoch_count")),
            learning_rate_multiplier=_float(given.get("learning_rate_multiplier")),
            adapter_size=None if adapter_size is None else types.AdapterSize(adapter_size_name(adapter_size)),
            labels={LABEL: spec.key},
        )
        dataset = types.TuningDataset(gcs_uri=data)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*tuning implementation is experimental")
                job = self._client.tunings.tune(base_model=spec.base_model, training_dataset=dataset, config=config)
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            failure = classify(error, _redact)
            if failure.kind in _CERTAIN and status_of(error) not in {None, 409, 408}:
                raise RefusedError(f"Vertex AI refused the job: {failure.message}") from None
            raise OutcomeUnknownError(failure.message) from None
        if not job.name:
            raise OutcomeUnknownError("Vertex AI's answer names no job.")
        return _read(job)

    def get(self, job_id: str) -> ServerJob | None:
        """Return a job, or None if Vertex AI knows it no more."""
        try:
            return _read(self._client.tunings.get(name=self._name(job_id)))
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            if status_of(error) == 404:
                return None
            self._raise(error)

    def cancel(self, job_id: str) -> None:
        """Ask Vertex AI to stop."""
        try:
            self._client.tunings.cancel(name=self._name(job_id))
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            if status_of(error) not in {400, 404, 409}:  # it ended before, or is gone
                self._raise(error)

    def remove(self, data: str) -> None:
        """Remove the data set from its bucket."""
        name, _, path = data.removeprefix("gs://").partition("/")
        try:
            open_bucket(self._spec.project, name).blob(path).delete()
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            if status_of(error) != 404:
                raise explain(error, data) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _bucket(self) -> Any:
        return open_bucket(self._spec.project, self._spec.bucket or "")

    def _jobs(self, page_size: int) -> Iterator[types.TuningJob]:
        try:
            yield from self._client.tunings.list(config={"page_size": page_size})
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._raise(error)

    def _name(self, job_id: str) -> str:
        return job_id if "/" in job_id else f"{self._parent}/tuningJobs/{job_id}"

    def _raise(self, error: Exception) -> NoReturn:
        failure = classify(error, _redact)
        if failure.kind in {"authentication", "permission"}:
            raise ConfigurationError(
                f"Vertex AI in {self._parent} refused: {failure.message}",
                "Grant the role Vertex AI User, and enable aiplatform.googleapis.com.",
            ) from None
        raise JobFailedError(f"Vertex AI in {self._parent}: {failure.message}", failure.hint) from None


def adapter_size_name(size: object) -> str:
    """Return Vertex AI's name of an adapter size.

    Examples
    --------
    >>> adapter_size_name(4)
    'ADAPTER_SIZE_FOUR'
    """
    return f"ADAPTER_SIZE_{_ADAPTER_SIZES[_integer(size) or 0]}"


def _read(job: types.TuningJob) -> ServerJob:
    state = _STATES.get(job.state.value if job.state else "", "unknown")
    stats = job.tuning_data_stats.supervised_tuning_data_stats if job.tuning_data_stats else None
    spec = job.supervised_tuning_spec
    return ServerJob(
        id=job.name or "",
        state=state,
        key=(job.labels or {}).get(LABEL),
        base_model=job.base_model or "",
        model=(job.tuned_model.endpoint if job.tuned_model else None) or None,
        error=_redact(job.error.message or f"code {job.error.code}") if job.error else None,
        created_at=_seconds(job.create_time),
        started_at=_seconds(job.start_time),
        finished_at=_seconds(job.end_time),
        billable_tokens=_integer(stats.total_billable_token_count) if stats else None,
        data=spec.training_dataset_uri if spec else None,
    )


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None


def _integer(value: Any) -> int | None:
    return None if value is None else int(value)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _redact(message: str) -> str:
    return redact(message, [], [])
