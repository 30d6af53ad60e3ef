"""What a tuning job is made of, and the key that tells two of them apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from skllm_ray.config import SecretRef
from skllm_ray.llm.submissions.record import known_fields

ServiceName = Literal["vertex", "openai", "azure", "custom_url"]
"""Who tunes: Vertex AI, OpenAI, Azure OpenAI, or any server with OpenAI's fine-tuning API."""

_KEY_LENGTH = 40
_NOT_CONTENT = {"key_ref", "bucket", "delete_data", "copy", "api_version"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSpec:
    """A tuning job before anybody has submitted it. Frozen and picklable; it holds no credential.

    Examples
    --------
    >>> spec = TuningSpec(service="openai", base_model="gpt-4.1-mini-2025-04-14", data_sha256="0" * 64)
    >>> spec.key == TuningSpec.from_json(spec.to_json()).key
    True
    """

    service: ServiceName
    base_model: str
    """The model to tune, by its service's name."""
    data_sha256: str
    """SHA-256 of the data set, in hexadecimal."""
    hyper_parameters: tuple[tuple[str, int | float | str], ...] = ()
    """Hyper-parameters by their service's names, sorted; what is left out is the service's choice."""
    suffix: str = ""
    """Part of the tuned model's name."""
    project: str | None = None
    """Vertex AI: the Google Cloud project ID."""
    location: str | None = None
    """Vertex AI: the region."""
    bucket: str | None = None
    """Vertex AI: where the data set goes."""
    base_url: str | None = None
    """Azure and custom URL: the server's address."""
    api_version: str | None = None
    """Azure's API version."""
    org: str | None = None
    """OpenAI's organisation ID."""
    key_ref: SecretRef | None = None
    """Where a worker finds the API key."""
    delete_data: bool = False
    """Whether the service's copy of the data set goes when the job has ended."""
    copy: int = 0
    """Which purchase of the same content this is; ``new=True`` takes the next number."""

    @property
    def key(self) -> str:
        """Identifies the job by its content: lower-case letters, digits and ``-``, at most 63, as a GCP label allows.

        Credentials, the bucket and what happens to the data afterwards are not part of it.
        """
        content = {name: value for name, value in asdict(self).items() if name not in _NOT_CONTENT}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]
        return f"{digest}-{self.copy}" if self.copy else digest

    def to_json(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Return what :meth:`to_json` wrote."""
        told = record.get("key_ref")
        reference = None if told is None else SecretRef(**{**known_fields(SecretRef, told), "env": tuple(told["env"])})
        hyper_parameters = tuple((name, value) for name, value in record["hyper_parameters"])
        return cls(**{**known_fields(cls, record), "key_ref": reference, "hyper_parameters": hyper_parameters})
