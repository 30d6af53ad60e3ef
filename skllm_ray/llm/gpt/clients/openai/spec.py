"""Which OpenAI-compatible server a worker talks to: OpenAI itself, Azure, or any base URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from skllm_ray.config import Price, RateLimit, Secret, SecretRef, checked_key, checked_url, resolve_secret
from skllm_ray.errors import ConfigurationError, MissingKeyError
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
    from skllm_ray.llm.gpt.clients.openai.backend import OpenAIBackend

_NO_KEY = Secret("no-key")
_SETTINGS = {"azure": "azure_api_base", "custom_url": "gpt_url"}
_RESERVED = {
    "model",
    "messages",
    "input",
    "logprobs",
    "top_logprobs",
    "stream",
    "n",
    "extra_query",
    "timeout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISpec:
    """A chat model behind an OpenAI-compatible API.

    Examples
    --------
    >>> spec = OpenAISpec(api="custom_url", model="llama3", base_url="http://localhost:11434/v1",
    ...                   key_ref=SecretRef("openai_key", ("SKLLM_CONFIG_OPENAI_KEY",)))
    >>> spec.check()
    """

    api: Literal["openai", "azure", "custom_url"]
    """Whose form of the API it is."""
    model: str
    """The model's name; for Azure the deployment's."""
    key_ref: SecretRef
    """Where the worker finds the API key."""
    base_url: str | None = None
    """``azure_api_base`` or ``gpt_url``; None is OpenAI's own address."""
    api_version: str | None = None
    """Azure's API version."""
    org: str | None = None
    """OpenAI's organisation ID."""
    request_options: RequestOptions = ()
    """Extra request parameters, such as ``reasoning_effort``; kept in a form that hashes."""
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    """How long a row may take, and how often it is tried."""
    limit: RateLimit | None = None
    """The declared quota."""
    log_probs: bool = False
    """Whether to ask for the probabilities of the labels."""
    price: Price | None = None
    """The user's own price; None takes the table's."""
    reply_cache: str | None = None
    """Where replies are kept; None keeps none."""
    reply_cache_max_bytes: int = 1_000_000_000
    """The largest size of that file."""
    headers: tuple[tuple[str, SecretRef], ...] = ()
    """Extra HTTP headers, and where the worker finds what they hold."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_options", freeze_options(self.request_options))

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model before it is asked."""
        return facts_of(self.model, self.api)

    @property
    def endpoint(self) -> str:
        """What takes and refuses the same parameters."""
        return f"{self.api} {self.base_url or ''} {self.api_version or ''} {self.model}"

    @property
    def gives_probabilities(self) -> bool:
        """Whether the model may give them; what the server does is seen when it is asked."""
        return self.facts.log_probs

    @property
    def placement(self) -> Placement:
        """Stateless: it takes no CPU of the cluster."""
        return Placement()

    @property
    def costs_list_price(self) -> bool:
        """Whether the provider's list price holds: not for servers of one's own, nor for other service tiers."""
        tier = thaw_options(self.request_options).get("service_tier", "default")
        return self.api != "custom_url" and tier in {"auto", "default"}

    @property
    def identity(self) -> tuple[str, ...]:
        """What an answer depends on besides the question: endpoint, model and parameters."""
        options = [f"{name}={value}" for name, value in freeze_options(self.request_options)]
        options += [f"{name}: {reference.fingerprint}" for name, reference in self.headers]
        return (self.api, self.base_url or "", self.api_version or "", self.model, str(self.log_probs), *options)

    @property
    def key(self) -> str:
        """A hash of every field; of the API key, only the fingerprint."""
        return spec_key("openai", self)

    def check(self) -> None:
        """Raise what is known before a request is sent.

        Raises
        ------
        ConfigurationError
            If the address or Azure's API version is missing, or an option cannot be passed on.
        MissingKeyError
            If the API needs a key and none is found. A custom URL needs none.
        """
        self._check_address()
        refuse_options(self.request_options, _RESERVED)
        if self.api != "custom_url" and not self.key_ref.fingerprint and not self.key_ref.resolver:
            resolve_secret(self.key_ref)

    def open(self, resolve_secret: SecretResolver) -> OpenAIBackend:
        """Open a client in this process."""
        from skllm_ray.llm.gpt.clients.openai.backend import OpenAIBackend

        self._check_address()
        headers = {name: resolve_secret(reference) for name, reference in self.headers}
        return OpenAIBackend(self, self._secret(resolve_secret), lambda: self._secret(resolve_secret), headers)

    def _check_address(self) -> None:
        setting = _SETTINGS.get(self.api)
        if setting and not self.base_url:
            raise ConfigurationError(f"{setting} is not set.", f"Call SKLLMConfig.set_{setting}(…).")
        if self.api == "azure" and not self.api_version:
            raise ConfigurationError("azure_api_version is not set.", "Call SKLLMConfig.set_azure_api_version(…).")
        if self.base_url:
            checked_url(setting or "base_url", self.base_url)

    def _secret(self, resolve_secret: SecretResolver) -> Secret:
        try:
            return checked_key(self.key_ref.name, resolve_secret(self.key_ref))
        except MissingKeyError:
            if self.api != "custom_url":
                raise
            return _NO_KEY  # the SDK refuses to start without one
