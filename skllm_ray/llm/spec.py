"""What the specs of all HTTP vendors have in common: limit, price, retries, cache and identity."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

from skllm_ray.config import Price, RateLimit, SecretRef, SKLLMConfig
from skllm_ray.llm.api.options import RequestOptions, body_options, freeze_options, limits_in, spec_key
from skllm_ray.llm.api.retry import RetryPolicy
from skllm_ray.llm.base import WORKERS_AT_ONCE, BackendSpec, CacheSettings, Capabilities, ModelChoice, Wanted
from skllm_ray.llm.model_facts import ModelFacts
from skllm_ray.tasks.base import Usage


def api_settings(choice: ModelChoice) -> dict[str, Any]:
    """Return what the settings of this process say for a model of any HTTP vendor, as fields of its `ApiSpec`."""
    told = SKLLMConfig.get_timeouts()
    return {
        "model": choice.name,
        "request_options": choice.options,
        "patience": RetryPolicy(timeout_s=told.request_s, deadline_s=told.row_s, connect_s=told.connect_s),
        "limit": SKLLMConfig.get_rate_limit(choice.full_name),
        "price": SKLLMConfig.get_price(choice.full_name),
        "reply_cache": SKLLMConfig.get_reply_cache(),
        "reply_cache_max_bytes": SKLLMConfig.get_reply_cache_max_bytes(),
    }


def with_cost(usage: Usage, price: Price | None) -> Usage:
    """Return what a reply used, with what that costs; unchanged where the price, or the usage, is not known.

    Examples
    --------
    >>> with_cost(Usage(1000, 10), Price(2.0, 10.0)).cost_usd
    0.0021
    """
    if price is None or usage == Usage():  # who tells nothing has not said that it cost nothing
        return usage
    return replace(usage, cost_usd=price.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSpec(BackendSpec):
    """A model behind a vendor's HTTP API. A vendor says where it is (`place`), what is known of it, and opens a client.

    Examples
    --------
    >>> from skllm_ray.llm.vertex.spec import VertexSpec
    >>> spec = VertexSpec(model="gemini-3.5-flash", project="my-project", price=Price(0.3, 2.5))
    >>> spec.capabilities.price.output
    2.5
    """

    model: str
    """The model's name, as the vendor knows it."""
    request_options: RequestOptions = ()
    """Extra request parameters, such as ``temperature``; kept in a form that hashes."""
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    """How long a row may take, and how often it is tried."""
    limit: RateLimit | None = None
    """The declared quota."""
    log_probs: bool = False
    """Whether to ask for the probabilities of the labels."""
    price: Price | None = None
    """The user's own price; None takes the list price, where one is known."""
    reply_cache: str | None = None
    """Where replies are kept; None keeps none."""
    reply_cache_max_bytes: int = 1_000_000_000
    """The largest size of that file."""
    headers: tuple[tuple[str, SecretRef], ...] = ()
    """Extra HTTP headers, and where the worker finds what they hold."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_options", freeze_options(self.request_options))

    # --- what a vendor says ------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def place(self) -> tuple[str, ...]:
        """Where the model is served: the vendor, then what tells its addresses apart. Part of the identity."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """What takes and refuses the same parameters."""

    @property
    @abstractmethod
    def facts(self) -> ModelFacts:
        """What is known of the model before it is asked."""

    @property
    @abstractmethod
    def has_vectors(self) -> bool:
        """Whether the vendor has models that embed."""

    @property
    @abstractmethod
    def list_price(self) -> Price | None:
        """The vendor's own price of the model; None where it is not known here."""

    @property
    @abstractmethod
    def credential(self) -> SecretRef | None:
        """Where the worker finds the key; None where the vendor's library finds it by itself."""

    # --- what follows ------------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What a client of the API can do; how much of it the server does is seen when it is asked."""
        cached = None if self.reply_cache is None else CacheSettings(self.reply_cache, self.reply_cache_max_bytes)
        return Capabilities(
            gives_log_probs=self.facts.log_probs,
            writes_labels=True,
            streams=True,
            takes_json_schemas=self.facts.answer_form == "json_schema",
            embeds=self.has_vectors,
            stateful=False,
            calls_at_once=WORKERS_AT_ONCE,
            stays_open=True,
            retry=self.patience,
            price=self.list_price if self.price is None else self.price,
            cache=cached,
        )

    @property
    def identity(self) -> tuple[str, ...]:
        """What an answer depends on besides the question: endpoint, model and parameters."""
        options = [f"{name}={value}" for name, value in freeze_options(self.request_options)]
        options += [f"{name}: {reference.fingerprint}" for name, reference in self.headers]
        return (*self.place, self.model, str(self.log_probs), *options)

    @property
    def key(self) -> str:
        """A hash of every field; of credentials, only the fingerprints."""
        return spec_key(self.place[0], self)

    def asked_for(self, wanted: Wanted) -> Self:
        """Return the spec for a call that wants the probabilities of labels."""
        return replace(self, log_probs=True) if wanted == "log_probs" else self

    def with_retry(self, retry: RetryPolicy) -> Self:
        """Return the spec with another policy of asking again."""
        return replace(self, patience=retry)

    def with_price(self, price: Price) -> Self:
        """Return the spec with the user's own price."""
        return replace(self, price=price)

    def most_output_tokens(self, bound: int | None) -> int | None:
        """Return the most tokens that an answer may have; a limit in `request_options` wins over `bound`."""
        own = limits_in(body_options(self.request_options))
        if not own:
            return bound
        if all(isinstance(limit, int) and not isinstance(limit, bool) and limit > 0 for limit in own):
            return int(max(own))
        return None
