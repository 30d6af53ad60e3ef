"""Batches on Vertex AI, and the bucket for their files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skllm_ray.llm.provider_batches.record import BatchSpec, ProviderBatch, ServerBatch, State
from skllm_ray.llm.vertex.gcs import StorageError, explain, open_bucket, status_of
from skllm_ray.llm.vertex.jobs import VertexJobs, without_secrets
from skllm_ray.llm.vertex.spec import VertexSpec

if TYPE_CHECKING:
    from google.genai import types

_FOLDER: Final = "skllm-ray-batches"
_SKEW_S: Final = 300.0  # how far a server's clock may be behind ours
_STATES: Final[dict[str, State]] = {
    "JOB_STATE_QUEUED": "running",
    "JOB_STATE_PENDING": "running",
    "JOB_STATE_RUNNING": "running",
    "JOB_STATE_PAUSED": "running",
    "JOB_STATE_UPDATING": "running",
    "JOB_STATE_CANCELLING": "cancelling",
    "JOB_STATE_SUCCEEDED": "completed",
    "JOB_STATE_PARTIALLY_SUCCEEDED": "completed",
    "JOB_STATE_FAILED": "failed",
    "JOB_STATE_CANCELLED": "cancelled",
    "JOB_STATE_EXPIRED": "expired",
}


class VertexBatches(VertexJobs[ServerBatch]):
    """Vertex AI's batch jobs. The display name is the only place for a key.

    Parameters
    ----------
    spec : BatchSpec
        Names the project, the location and the bucket.
    """

    _what = "batch"

    def __init__(self, spec: BatchSpec) -> None:
        self._spec = spec
        chat = VertexSpec(
            model=spec.model, project=spec.project, location=spec.location or "global", base_url=spec.base_url
        )
        super().__init__(chat, spec.bucket, f"Vertex AI, {spec.project}/{spec.location}")

    @property
    def _service(self) -> Any:
        return self._client.batches

    def _read(self, job: types.BatchJob) -> ServerBatch:
        return _read(job)

    def upload(self, data: Path, key: str) -> str:
        """Store a file of lines in the bucket; Google compares its CRC32C with ours on arrival."""
        blob = self._bucket().blob(f"{_FOLDER}/{key}.jsonl")
        try:
            blob.upload_from_filename(str(data), content_type="application/jsonl", checksum="crc32c")
            blob.reload()
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            raise explain(error, f"gs://{self._spec.bucket}") from None
        if blob.size != data.stat().st_size:
            raise StorageError(f"gs://{self._spec.bucket}/{blob.name} does not hold what was sent.", "Try again.")
        return f"gs://{self._spec.bucket}/{blob.name}"

    def find(self, key: str) -> ServerBatch | None:
        """Return the oldest batch with our display name, of those since shortly before it was ordered."""
        found: ServerBatch | None = None
        for job in self._jobs():
            made = _seconds(job)
            if made is not None and made < self._spec.ordered_at - _SKEW_S:
                break  # they come newest first
            if job.display_name == _name(key):
                found = _read(job)
        return found

    def create(self, spec: BatchSpec, data: str) -> ServerBatch:
        """Send the one POST: the client was opened to try once."""
        config: Any = {"display_name": _name(spec.key), "dest": _results_of(data)}
        try:
            job = self._client.batches.create(model=spec.model, src=data, config=config)
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            self._refuse(error)
        return self._made(job)

    def results(self, batch: ProviderBatch) -> Iterator[bytes]:
        """Yield the lines of a batch's results, a file at a time: each is fetched as a whole first."""
        for folder in batch.results:
            for blob in self._blobs(folder):
                with tempfile.NamedTemporaryFile(prefix="skllm-ray-", suffix=".jsonl") as file:
                    try:
                        blob.download_to_filename(file.name)
                    except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
                        raise explain(error, folder) from None
                    with Path(file.name).open("rb") as lines:
                        yield from (line for line in lines if line.strip())

    def remove(self, data: str) -> None:
        """Remove a file, or a folder of results, from the bucket."""
        for blob in self._blobs(data):
            try:
                blob.delete()
            except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
                if status_of(error) != 404:
                    raise explain(error, data) from None

    def remove_uploads(self, key: str) -> None:
        """Remove what was uploaded for a batch that was never submitted."""
        self.remove(f"gs://{self._spec.bucket}/{_FOLDER}/{key}.jsonl")

    def _blobs(self, uri: str) -> list[Any]:
        name, _, path = uri.removeprefix("gs://").partition("/")
        try:
            found = open_bucket(self._spec.project, name).list_blobs(prefix=path)
            return sorted((blob for blob in found if blob.name.endswith(".jsonl")), key=lambda blob: str(blob.name))
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            raise explain(error, uri) from None


def _name(key: str) -> str:
    return f"skllm-ray-{key}"


def _results_of(data: str) -> str:
    return f"{data.removesuffix('.jsonl')}-results"


def _seconds(job: types.BatchJob) -> float | None:
    return job.create_time.timestamp() if job.create_time else None


def _read(job: types.BatchJob) -> ServerBatch:
    state = _STATES.get(job.state.value if job.state else "", "unknown")
    stats, source = job.completion_stats, job.src.gcs_uri if job.src else None
    wrote = job.output_info.gcs_output_directory if job.output_info else None
    wrote = wrote or (job.dest.gcs_uri if job.dest and state in {"completed", "cancelled", "expired"} else None)
    name = job.display_name or ""
    return ServerBatch(
        id=job.name or "",
        state=state,
        key=name.removeprefix("skllm-ray-") if name.startswith("skllm-ray-") else None,
        error=without_secrets(job.error.message or f"code {job.error.code}") if job.error else None,
        created_at=_seconds(job),
        data=source[0] if source else None,
        results=(wrote,) if wrote else (),
        n_done=int(stats.successful_count or 0) if stats else 0,
        n_failed=int(stats.failed_count or 0) if stats else 0,
    )
