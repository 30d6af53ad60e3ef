"""Tuning Gemini models on Vertex AI."""

from __future__ import annotations

import base64
import warnings
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from skllm_ray.llm.tuning.job import ServerJob, State
from skllm_ray.llm.tuning.spec import TuningSpec
from skllm_ray.llm.vertex.gcs import StorageError, explain, open_bucket, status_of
from skllm_ray.llm.vertex.jobs import CERTAIN, VertexJobs, without_secrets
from skllm_ray.llm.vertex.spec import VertexSpec

if TYPE_CHECKING:
    from google.genai import types

LABEL: Final = "skllm-ray-key"
"""The label in which a job carries its key."""

_FOLDER = "skllm-ray-tuning"
_STATES: Final[dict[str, State]] = {
    f"JOB_STATE_{state.upper()}": state
    for state in (
        "queued", "pending", "running", "paused", "updating", "cancelling",
        "succeeded", "partially_succeeded", "failed", "cancelled", "expired",
    )
}  # fmt: skip
_ADAPTER_SIZES = {1: "ONE", 2: "TWO", 4: "FOUR", 8: "EIGHT", 16: "SIXTEEN", 32: "THIRTY_TWO"}


class VertexTuning(VertexJobs[ServerJob]):
    """Vertex AI's tuning jobs, and the bucket for their data sets.

    Parameters
    ----------
    spec : TuningSpec
        Names the project, the region and the bucket.
    """

    _certain = CERTAIN | {"rate_limit"}

    def __init__(self, spec: TuningSpec) -> None:
        self._spec = spec
        self._parent = f"projects/{spec.project}/locations/{spec.location}"
        chat = VertexSpec(model=spec.base_model, project=spec.project, location=spec.location or "")
        super().__init__(chat, spec.bucket, f"Vertex AI in {self._parent}")

    @property
    def _service(self) -> Any:
        return self._client.tunings

    def _read(self, job: types.TuningJob) -> ServerJob:
        return _read(job)

    def _name(self, job_id: str) -> str:
        return job_id if "/" in job_id else f"{self._parent}/tuningJobs/{job_id}"

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
        found = [job for job in self._jobs() if (job.labels or {}).get(LABEL) == key]
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
            self._refuse(error)
        return self._made(job)

    def remove(self, data: str) -> None:
        """Remove the data set from its bucket."""
        name, _, path = data.removeprefix("gs://").partition("/")
        try:
            open_bucket(self._spec.project, name).blob(path).delete()
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            if status_of(error) != 404:
                raise explain(error, data) from None


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
        error=without_secrets(job.error.message or f"code {job.error.code}") if job.error else None,
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
