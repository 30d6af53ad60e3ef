"""Records of purchases kept in Google Cloud Storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.submissions.store import PROBE, R, SubmissionStore
from skllm_ray.llm.vertex.gcs import explain, open_bucket


class GCSStore(SubmissionStore[R]):
    """A folder of a bucket; versions are created under the precondition that they have no generation yet.

    Parameters
    ----------
    url : str
        ``gs://BUCKET/FOLDER``.
    record : type
        The kind of record.
    """

    def __init__(self, url: str, record: type[R]) -> None:
        self.record = record
        self.url = url.rstrip("/")
        name, _, folder = self.url.removeprefix("gs://").partition("/")
        if not name:
            raise ConfigurationError(f"{record.kind}_store={url!r} names no bucket.", "Write gs://BUCKET/FOLDER.")
        self._folder = f"{folder}/" if folder else ""
        self._bucket = open_bucket(None, name)

    def _create(self, path: str, content: bytes) -> bool:
        from google.api_core.exceptions import PreconditionFailed

        blob = self._bucket.blob(self._folder + path)
        try:
            blob.upload_from_string(content, "application/json", if_generation_match=0, checksum="crc32c")
        except PreconditionFailed:
            return False
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            raise explain(error, self.url) from None
        return True

    def _read(self, path: str) -> bytes:
        try:
            return bytes(self._bucket.blob(self._folder + path).download_as_bytes())
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            raise explain(error, self.url) from None

    def _versions(self, key: str) -> Sequence[str]:
        return sorted(name.rpartition("/")[2] for name in self._names(f"{self._folder}{key}/"))

    def keys(self) -> list[str]:
        """Return the keys of all jobs."""
        found = {name.removeprefix(self._folder).partition("/")[0] for name in self._names(self._folder)}
        return sorted(found - {PROBE})

    def probe(self) -> None:
        """Raise unless the second creation of the same object is refused; take the object away again."""
        path = f"{PROBE}/exclusive"
        first: Any = self._create(path, b"{}")
        if self._create(path, b"[]"):
            raise ConfigurationError(
                f"The {self.record.kind} store {self.url} ignores if_generation_match=0 (given first: {first}), "
                "so it cannot keep jobs from being paid twice.",
                "Use a real bucket, or a local folder.",
            )

    def _names(self, prefix: str) -> list[str]:
        try:
            return [blob.name for blob in self._bucket.client.list_blobs(self._bucket, prefix=prefix)]
        except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
            raise explain(error, self.url) from None
