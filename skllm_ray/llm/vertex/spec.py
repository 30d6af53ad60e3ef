"""Which Gemini model on Vertex AI a worker talks to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skllm_ray.config import RateLimit, SecretRef
from skllm_ray.errors import ConfigurationError, MissingExtraError
from skllm_ray.llm.base import Placement, SecretResolver
from skllm_ray.llm.gpt.clients.openai.dispatch import DEFAULT_CONCURRENCY, Patience
from skllm_ray.llm.gpt.clients.openai.options import (
    RequestOptions,
    freeze_options,
    refuse_options,
    spec_key,
    thaw_options,
)

if TYPE_CHECKING:
    from skllm_ray.llm.vertex.chat import VertexBackend

_RESERVED = {"http_options", "system_instruction", "candidate_count"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VertexSpec:
    """A Gemini model, or the endpoint of a tuned one, on Vertex AI.

    Examples
    --------
    >>> VertexSpec(model="gemini-3.5-flash", project="my-project").location
    'global'
    """

    model: str
    """The model's name, or a tuned model's endpoint ``projects/…/locations/…/endpoints/…``."""
    project: str | None
    """The Google Cloud project ID; without it, `check` raises."""
    location: str = "global"
    """The Vertex AI location."""
    request_options: RequestOptions = ()
    """Extra fields of ``GenerateContentConfig``, such as ``temperature``; kept in a form that hashes."""
    base_url: str | None = None
    """Another address than Google's: a gateway, or a test's server."""
    token_ref: SecretRef | None = None
    """Where the worker finds an access token; None uses the application default credentials."""
    patience: Patience = field(default_factory=Patience)
    """How long a row may take, and how often it is tried."""
    limit: RateLimit | None = None
    """The declared quota; of it, a backend itself keeps ``max_concurrency``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_options", freeze_options(self.request_options))

    @property
    def gives_probabilities(self) -> bool:
        """Not in this release."""
        return False

    @property
    def placement(self) -> Placement:
        """Stateless: it takes no CPU of the cluster."""
        return Placement()

    @property
    def max_concurrency(self) -> int:
        """Requests in flight at once."""
        return (self.limit and self.limit.max_concurrency) or DEFAULT_CONCURRENCY

    @property
    def key(self) -> str:
        """A hash of every field."""
        return spec_key("vertex", self)

    def check(self) -> None:
        """Raise what is known before a request is sent. Credentials are looked for where the model is asked.

        Raises
        ------
        ConfigurationError
            If the project is missing, or an option does not exist.
        MissingExtraError
            If google-genai is not installed.
        """
        if not self.project:
            raise ConfigurationError("google_project is not set.", "Call SKLLMConfig.set_google_project(…).")
        refuse_options(self.request_options, _RESERVED)
        _check_options(self.request_options)

    def open(self, resolve_secret: SecretResolver) -> VertexBackend:
        """Open a client in this process."""
        from skllm_ray.llm.vertex.chat import VertexBackend

        return VertexBackend(self, resolve_secret(self.token_ref) if self.token_ref else None)


def _check_options(options: RequestOptions) -> None:
    try:
        from google.genai.types import GenerateContentConfig
    except ImportError:
        raise MissingExtraError.for_extra("google-genai", "vertex") from None
    try:
        GenerateContentConfig.model_validate(thaw_options(options))
    except ValueError as error:  # pydantic's own error is one
        raise ConfigurationError(f"request_options do not fit Gemini: {error}") from None
