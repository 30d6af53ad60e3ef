"""Which Gemini model on Vertex AI a worker talks to."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from skllm_ray.config import Price, SecretRef, SKLLMConfig, checked_key
from skllm_ray.errors import ConfigurationError, MissingExtraError
from skllm_ray.llm.api.options import RequestOptions, refuse_options, thaw_options
from skllm_ray.llm.base import ModelChoice, SecretResolver, Wanted
from skllm_ray.llm.model_facts import ModelFacts, Vendor, context_of, end_notice, facts_of, price_of
from skllm_ray.llm.spec import ApiSpec, api_settings
from skllm_ray.llm.tiers import SHARED_REQUEST_TYPE, Tier, at_tier, tier_named

if TYPE_CHECKING:
    from datetime import date

    from skllm_ray.llm.vertex.backend import VertexBackend
    from skllm_ray.llm.vertex.batch_lines import VertexBatchApi

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]*")
_ENDPOINT = re.compile(r"projects/[^/]+/locations/([^/]+)/")
_PRICED_APART = {"service_tier", "serviceTier", "cached_content", "cachedContent"}
_RESERVED = {"http_options", "system_instruction", "candidate_count"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VertexSpec(ApiSpec):
    """A Gemini model, or the endpoint of a tuned one (``projects/…/locations/…/endpoints/…``), on Vertex AI.

    Examples
    --------
    >>> VertexSpec(model="gemini-3.5-flash", project="my-project").location
    'global'
    """

    project: str | None
    """The Google Cloud project ID; without it, `check` raises."""
    location: str = "global"
    """The Vertex AI location."""
    base_url: str | None = None
    """Another address than Google's: a gateway, or a test's server; it may end in the API's version, ``/v1``."""
    token_ref: SecretRef | None = None
    """Where the worker finds an access token; None uses the application default credentials."""
    embeds: bool = False
    """Whether it is asked for vectors, so that the options are those of ``EmbedContentConfig``."""

    @property
    def place(self) -> tuple[str, ...]:
        """The address, the project and its location."""
        return ("vertex", f"{self.base_url or ''} {self.project} {self.location}")

    @property
    def endpoint(self) -> str:
        """What takes and refuses the same parameters."""
        return f"vertex {self.base_url or ''} {self.project}/{self.location} {self.model}"

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model before it is asked."""
        return facts_of(self.model, "vertex")

    @property
    def has_vectors(self) -> bool:
        """Google has models that embed."""
        return True

    @property
    def vendor(self) -> Vendor | None:
        """Google's rules hold where its list prices do."""
        return None if self.list_price is None or self.tier != "standard" else "google"

    @property
    def credential(self) -> SecretRef | None:
        """Where the worker finds an access token, if it is given one."""
        return self.token_ref

    @property
    def list_price(self) -> Price | None:
        """Google's price; not known elsewhere than at the location ``global``, nor for what has prices of its own."""
        return self._price_at(self.tier)

    def answer_price(self, served: str) -> Price | None:
        """Return the price of an answer, by the tier that it names, which may be another than the one asked for."""
        if self.price is not None or not served:
            return self.capabilities.price
        tier = tier_named(served)
        return None if tier is None else self._price_at(tier)

    def _price_at(self, tier: Tier) -> Price | None:
        special = _PRICED_APART & set(thaw_options(self.request_options))
        plain = self.location == "global" and self.base_url is None and not special
        price = price_of(self.model, "google") if plain else None
        return at_tier(price, tier, "google") if price is not None else None

    @property
    def flex_option(self) -> str | None:
        """``shared_request_type``, where Google's list price is known."""
        return SHARED_REQUEST_TYPE if self.vendor is not None and not self.embeds else None

    def context_tokens(self) -> int | None:
        """Return the tokens of a Gemini model's context."""
        return context_of(self.model, "google")

    def asked_for(self, wanted: Wanted) -> Self:
        """Return the spec for a call that wants the probabilities of labels, or vectors."""
        return replace(self, embeds=True) if wanted == "vectors" else ApiSpec.asked_for(self, wanted)

    def end_notice(self, today: date) -> str | None:
        """Return what to say of a model that Google has turned off."""
        return end_notice(self.model, today)

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
        self._check_tier()
        _check_options(self.request_options, "EmbedContentConfig" if self.embeds else "GenerateContentConfig")

    def _check_tier(self) -> None:
        told = thaw_options(self.request_options).get(SHARED_REQUEST_TYPE)
        if told not in {None, "flex"}:
            raise ConfigurationError(f"request_options[{SHARED_REQUEST_TYPE!r}] must be 'flex'; got {told!r}.")
        if told and self.location != "global":
            raise ConfigurationError(
                f"The flex tier is served at the location 'global' alone; google_location is {self.location!r}.",
                "Call SKLLMConfig.set_google_location('global').",
            )

    def batch_api(self) -> VertexBatchApi:
        """Return how batches of the model are made and read."""
        from skllm_ray.llm.vertex.batch_lines import VertexBatchApi

        return VertexBatchApi(self)

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
        getattr(types, config).model_validate(fields_of(options))
    except ValueError as error:  # pydantic's own error is one
        raise ConfigurationError(f"request_options do not fit Gemini's {config}: {error}") from None


def fields_of(options: RequestOptions) -> dict[str, Any]:
    """Return the options that are fields of a request's configuration."""
    return {name: value for name, value in thaw_options(options).items() if name != SHARED_REQUEST_TYPE}


def vertex(choice: ModelChoice) -> VertexSpec:
    """Return the spec of a model on Vertex AI; a tuned model's endpoint is asked in the region where it is."""
    endpoint = _ENDPOINT.match(choice.name)
    return VertexSpec(
        project=SKLLMConfig.get_google_project(),
        location=endpoint[1] if endpoint else SKLLMConfig.get_google_location(),
        **api_settings(choice),
    )
