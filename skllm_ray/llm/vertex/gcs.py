"""Google Cloud Storage, with errors of this library."""

from __future__ import annotations

import os
from typing import Any

from skllm_ray.errors import ConfigurationError, JobFailedError, MissingExtraError, SkllmRayError
from skllm_ray.llm.api.redaction import redact

_REFUSALS = {
    401: "Google refused the credentials.",
    403: "these credentials have no permission for it.",
    404: "there is no such bucket.",
}


class StorageError(JobFailedError):
    """Google Cloud Storage is out of reach, or damaged what was sent."""


def open_bucket(project: str | None, name: str) -> Any:
    """Return the bucket `name`, without asking for it."""
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage
    except ImportError:
        raise MissingExtraError.for_extra("google-cloud-storage", "vertex") from None
    local = os.environ.get("STORAGE_EMULATOR_HOST")
    try:
        # An emulator takes no credentials; the SDK itself reads its address from the environment.
        credentials = AnonymousCredentials() if local else None
        return storage.Client(project=project or ("local" if local else None), credentials=credentials).bucket(name)
    except Exception as error:  # noqa: BLE001  the boundary to the SDK
        raise explain(error, f"gs://{name}") from None


def check_bucket(bucket: Any) -> None:
    """Raise unless `bucket` exists and may be written to."""
    try:
        granted = bucket.test_iam_permissions(["storage.objects.create"])
    except Exception as error:  # noqa: BLE001  the boundary to the SDK and its transport
        raise explain(error, f"gs://{bucket.name}") from None
    if "storage.objects.create" not in granted:
        raise ConfigurationError(
            f"The bucket gs://{bucket.name} cannot be written to: {_REFUSALS[403]}",
            "Grant the role Storage Object User (storage.objects.create), or choose another bucket.",
        )


def explain(error: Exception, where: str) -> SkllmRayError:
    """Return what `error`, raised by the storage SDK, its transport or its authentication, means."""
    if isinstance(error, SkllmRayError):
        return error
    code = status_of(error)
    if code in _REFUSALS:
        return ConfigurationError(
            f"{where} cannot be used: {_REFUSALS[code]}", "Check bucket=… or set_google_bucket(…), and its permissions."
        )
    if type(error).__name__ == "DefaultCredentialsError":
        return ConfigurationError("No Google credentials were found.", "Run: gcloud auth application-default login")
    return StorageError(redact(f"{where} failed: {type(error).__name__}: {error}", [], []))


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that `error`, raised by one of Google's SDKs, stands for; None for other failures."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.genai.errors import APIError

    return int(error.code) if isinstance(error, (APIError, GoogleAPICallError)) and error.code else None
