"""Which OpenAI-compatible server a worker talks to: OpenAI itself, Azure, or any base URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from skllm_ray.config import (
    OPENAI_KEY_ENV,
    Price,
    Secret,
    SecretRef,
    SKLLMConfig,
    checked_key,
    checked_org,
    checked_url,
    resolve_secret,
)
from skllm_ray.errors import ConfigurationError, MissingKeyError, warn
from skllm_ray.llm.api.options import refuse_options, thaw_options
from skllm_ray.llm.base import ModelChoice, SecretResolver
from skllm_ray.llm.credentials import key_reference
from skllm_ray.llm.model_facts import ModelFacts, Vendor, context_of, end_notice, facts_of, price_of
from skllm_ray.llm.spec import ApiSpec, api_settings
from skllm_ray.llm.tiers import SERVICE_TIER, at_tier, has_flex, tier_named

if TYPE_CHECKING:
    from datetime import date

    from skllm_ray.llm.gpt.clients.openai.backend import OpenAIBackend
    from skllm_ray.llm.gpt.clients.openai.batch_lines import OpenAIBatchApi

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
class OpenAISpec(ApiSpec):
    """A chat model behind an OpenAI-compatible API.

    Examples
    --------
    >>> spec = OpenAISpec(api="custom_url", model="llama3", base_url="http://localhost:11434/v1",
    ...                   key_ref=SecretRef("openai_key", ("SKLLM_CONFIG_OPENAI_KEY",)))
    >>> spec.check()
    """

    api: Literal["openai", "azure", "custom_url"]
    """Whose form of the API it is."""
    key_ref: SecretRef
    """Where the worker finds the API key."""
    base_url: str | None = None
    """``azure_api_base`` or ``gpt_url``; None is OpenAI's own address."""
    api_version: str | None = None
    """Azure's API version."""
    org: str | None = None
    """OpenAI's organisation ID."""

    @property
    def place(self) -> tuple[str, ...]:
        """The form of the API, the address and its version."""
        return (self.api, self.base_url or "", self.api_version or "")

    @property
    def endpoint(self) -> str:
        """What takes and refuses the same parameters."""
        return f"{self.api} {self.base_url or ''} {self.api_version or ''} {self.model}"

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model before it is asked."""
        return facts_of(self.model, self.api)

    @property
    def has_vectors(self) -> bool:
        """OpenAI has models that embed, and other servers may."""
        return True

    @property
    def vendor(self) -> Vendor | None:
        """OpenAI's rules hold at Azure too, and at no other server."""
        return "openai" if self.costs_list_price and (self.api == "azure" or self.base_url is None) else None

    @property
    def credential(self) -> SecretRef:
        """Where the worker finds the API key."""
        return self.key_ref

    @property
    def costs_list_price(self) -> bool:
        """Whether the provider's list price holds: not for servers of one's own, nor for other service tiers."""
        tier = thaw_options(self.request_options).get("service_tier", "default")
        return self.api != "custom_url" and tier in {"auto", "default"}

    @property
    def list_price(self) -> Price | None:
        """OpenAI's price; what an Azure deployment runs is seen in its answers alone."""
        if self.tier == "flex" and self.api == "openai" and has_flex(self.model):
            price = price_of(self.model)
            return None if price is None else at_tier(price, "flex")
        return price_of(self.model) if self.costs_list_price and self.api == "openai" else None

    @property
    def flex_option(self) -> str | None:
        """``service_tier``, at OpenAI itself."""
        named = SERVICE_TIER in thaw_options(self.request_options)
        return SERVICE_TIER if self.api == "openai" and has_flex(self.model) and not named else None

    def answer_price(self, reported: str, served: str) -> Price | None:
        """Return the price of an answer that names the model `reported`, and the tier `served` where it is not empty.

        It may be another tier than the one that was asked for.
        """
        if self.price is not None or self.api == "custom_url":
            return self.price
        tier = tier_named(served)
        if not served and (self.api == "openai" or not self.costs_list_price):
            return self.list_price
        if served and tier is None:
            return None
        price = price_of(self.model if self.api == "openai" else reported)  # what Azure runs, its answers tell
        return price if price is None or not served else at_tier(price, tier or "standard")

    def context_tokens(self) -> int | None:
        """Return the tokens of an OpenAI model's context; names on other servers mean other models."""
        return context_of(self.model) if self.api == "openai" else None

    def end_notice(self, today: date) -> str | None:
        """Return what to say of a model that OpenAI has turned off; names on other servers mean other models."""
        return end_notice(self.model, today) if self.api == "openai" else None

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

    def batch_api(self) -> OpenAIBatchApi:
        """Return how batches of the model are made and read; whether its server has any is seen when it is asked."""
        from skllm_ray.llm.gpt.clients.openai.batch_lines import OpenAIBatchApi

        return OpenAIBatchApi(self)

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


def openai(choice: ModelChoice) -> OpenAISpec:
    """Return the spec of a model at OpenAI itself, or at what ``OPENAI_BASE_URL`` names."""
    if SKLLMConfig.get_gpt_url() is not None:
        warn(
            f"A custom URL is set (SKLLMConfig.set_gpt_url), but model={choice.name!r} goes to OpenAI itself. For the "
            f"custom URL write model='custom_url::{choice.name}'; to silence this, call SKLLMConfig.reset_gpt_url()."
        )
    return _spec("openai", choice, base_url=SKLLMConfig.get_openai_base_url())


def azure(choice: ModelChoice) -> OpenAISpec:
    """Return the spec of a deployment at Azure."""
    base_url, version = SKLLMConfig.get_azure_api_base(), SKLLMConfig.get_azure_api_version()
    return _spec("azure", choice, base_url=base_url, api_version=version)


def custom_url(choice: ModelChoice) -> OpenAISpec:
    """Return the spec of a model behind the custom URL."""
    return _spec("custom_url", choice, base_url=SKLLMConfig.get_gpt_url())


def _spec(api: Literal["openai", "azure", "custom_url"], choice: ModelChoice, **endpoint: Any) -> OpenAISpec:
    # OPENAI_API_KEY is meant for OpenAI: a custom URL gets only a key that was set for this library.
    env = OPENAI_KEY_ENV[:1] if api == "custom_url" else OPENAI_KEY_ENV
    of_settings = SKLLMConfig.get_openai_key(include_standard_env=api != "custom_url")
    reference = key_reference("openai_key", env, choice.key, of_settings)
    headers = SKLLMConfig.get_extra_headers().items()
    return OpenAISpec(
        api=api,
        org=checked_org(choice.org) if choice.org else SKLLMConfig.get_openai_org(),
        key_ref=reference,
        headers=tuple(
            (name, SecretRef(f"extra_headers[{name!r}]", (), value.fingerprint, reference.resolver))
            for name, value in headers
        ),
        **endpoint,
        **api_settings(choice),
    )
