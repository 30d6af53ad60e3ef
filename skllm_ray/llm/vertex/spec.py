"""Which Gemini model on Vertex AI a worker talks to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skllm_ray.config import Price, RateLimit, SecretRef, checked_key
from skllm_ray.errors import ConfigurationError, MissingExtraError
from skllm_ray.llm.api.options import (
    RequestOptions,
    freeze_options,
    refuse_options,
    spec_key,
    thaw_options,
)
from skllm_ray.llm.api.retry import RetryPolicy
from skllm_ray.llm.base import Placement, SecretResolver
from skllm_ray.llm.model_facts import ModelFacts, facts_of

if TYPE_CHECKING:
    from skllm_ray.llm.vertex.backend import VertexBackend

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]*")
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
    """Extra fields of the call's configuration, such as ``temperature``; kept in a form that hashes."""
    base_url: str | None = None
    """Another address than Google's: a gateway, or a test's server; it may end in the API's version, ``/v1``."""
    token_ref: SecretRef | None = None
    """Where the worker finds an access token; None uses the application default credentials."""
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    """How long a row may take, and how often it is tried."""
    limit: RateLimit | None = None
    """The declared quota."""
    log_probs: bool = False
    """Whether to ask for the probabilities of the labels."""
    embeds: bool = False
    """Whether it is asked for vectors, so that the options are those of ``EmbedContentConfig``."""
    price: Price | None = None
    """What the user says that the model costs; Google's prices are in no table here."""
    reply_cache: str | None = None
    """Where replies are kept; None keeps none."""
    reply_cache_max_bytes: int = 1_000_000_000
    """The largest size of that file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_options", freeze_options(self.request_options))

    @property
    def gives_probabilities(self) -> bool:
        """Whether the model may give them; what it does is seen when it is asked."""
        return self.facts.log_probs

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model before it is asked."""
        return facts_of(self.model, "vertex")

    @property
    def endpoint(self) -> str:
        """What takes and refuses the same parameters."""
        return f"vertex {self.base_url or ''} {self.project}/{self.location} {self.model}"

    @property
    def placement(self) -> Placement:
        """Stateless: it takes no CPU of the cluster."""
        return Placement()

    @property
    def identity(self) -> tuple[str, ...]:
        """What an answer depends on besides the question: endpoint, model and parameters."""
        options = [f"{name}={value}" for name, value in freeze_options(self.request_options)]
        place = f"{self.base_url or ''} {self.project} {self.location}"
        return ("vertex", place, self.model, str(self.log_probs), *options)

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
        for name, told in (("google_project", self.project), ("google_location", self.location)):
            if not _NAME.fullmatch(told):
                raise ConfigurationError(
                    f"{name} must be an ID of Latin letters, digits and hyphens; got {told!r}.",
                    f"Call SKLLMConfig.set_{name}(…).",
                )
        refuse_options(self.request_options, _RESERVED)
        _check_options(self.request_options, "EmbedContentConfig" if self.embeds else "GenerateContentConfig")

    def open(self, resolve_secret: SecretResolver) -> VertexBackend:
        """Open a client in this process."""
        from skllm_ray.llm.vertex.backend import VertexBackend

        token = checked_key(self.token_ref.name, resolve_secret(self.token_ref)) if self.token_ref else None
        return VertexBackend(self, token)


def _check_options(options: RequestOptions, config: str) -> None:
    try:
        from google.genai import types
    except ImportError:
        raise MissingExtraError.for_extra("google-genai", "vertex") from None
    try:
        getattr(types, config).model_validate(thaw_options(options))
    except ValueError as error:  # pydantic's own error is one
        raise ConfigurationError(f"request_options do not fit Gemini's {config}: {error}") from None
