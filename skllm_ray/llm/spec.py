"""What the specs of all HTTP vendors have in common: limit, price, retries, cache and identity."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from skllm_ray.config import Confidence, Price, RateLimit, SecretRef, SKLLMConfig
from skllm_ray.llm.api.options import RequestOptions, body_options, freeze_options, limits_in, spec_key, thaw_options
from skllm_ray.llm.api.retry_policy import RetryPolicy
from skllm_ray.llm.base import WORKERS_AT_ONCE, BackendSpec, CacheSettings, Capabilities, ModelChoice, Wanted
from skllm_ray.llm.model_facts import ModelFacts
from skllm_ray.llm.tiers import FLEX_OPTIONS, FLEX_TIMEOUTS, FLEX_WAIT_S, Tier, at_tier, tier_of
from skllm_ray.tasks.base import Usage

_FLEX: Final = frozenset(f'{name}="flex"' for name in FLEX_OPTIONS)


def api_settings(choice: ModelChoice) -> dict[str, Any]:
    """Return what the settings of this process say for a model of any HTTP vendor, as fields of its `ApiSpec`."""
    told = SKLLMConfig.get_timeouts()
    if SKLLMConfig._settings.timeouts is None and tier_of(choice.options) == "flex":
        told = FLEX_TIMEOUTS
    return {
        "model": choice.name,
        "request_options": choice.options,
        "patience": RetryPolicy(timeout_s=told.request_s, deadline_s=told.row_s, connect_s=told.connect_s),
        "limit": SKLLMConfig.get_rate_limit(choice.full_name),
        "price": SKLLMConfig.get_price(choice.full_name),
        "confidence": SKLLMConfig.get_confidence(),
        "reply_cache": SKLLMConfig.get_reply_cache(),
        "reply_cache_max_bytes": SKLLMConfig.get_reply_cache_max_bytes(),
    }


def with_cost(usage: Usage, price: Price | None, *, wrote: bool = False) -> Usage:
    """Return what a reply used, with what that costs; unchanged where the price, or the usage, is not known.

    A server that counts no tokens of a prompt, or none of an answer that it `wrote`, has not said that they are free.

    Examples
    --------
    >>> with_cost(Usage(1000, 10), Price(2.0, 10.0)).cost_usd
    0.0021
    >>> with_cost(Usage(1000, 0), Price(2.0, 10.0), wrote=True).cost_usd is None
    True
    """
    if price is None or (price.input and not usage.prompt_tokens):
        return usage
    if wrote and price.output and not usage.completion_tokens:
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
    """Whether to ask for the probabilities of the labels, and to fail without them."""
    confidence: Confidence = "auto"
    """How a call that merely shows probabilities may get them."""
    takes_log_probs: bool = False
    """Whether to ask for probabilities where the server gives them, and to go on without them where it does not."""
    price: Price | None = None
    """The user's own price; None takes the list price, where one is known."""
    reply_cache: str | None = None
    """Where replies are kept; None keeps none."""
    reply_cache_max_bytes: int = 1_000_000_000
    """The largest size of that file."""
    headers: tuple[tuple[str, SecretRef], ...] = ()
    """Extra HTTP headers, and where the worker finds what they hold."""
    by_deadline: bool = False
    """Whether a job has chosen the flex tier, as its deadline allows; answers are those of the standard tier."""

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
    def flex_option(self) -> str | None:
        """The request option that asks for the flex tier; None where the model has none, or the user named a tier."""
        return None

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
    def tier(self) -> Tier:
        """How the request options want rows served."""
        return tier_of(thaw_options(self.request_options))

    @property
    def identity(self) -> tuple[str, ...]:
        """What an answer depends on besides the question: endpoint, model and parameters.

        Probabilities that merely come along are no part of it: an answer that was paid for without them stays of use.
        """
        options = [f"{name}={value}" for name, value in freeze_options(self.request_options)]
        if self.by_deadline:
            options = [told for told in options if told not in _FLEX]
        options += [f"{name}: {reference.fingerprint}" for name, reference in self.headers]
        return (*self.place, self.model, str(self.log_probs), *options)

    @property
    def key(self) -> str:
        """A hash of every field; of credentials, only the fingerprints."""
        return spec_key(self.place[0], self)

    def asked_for(self, wanted: Wanted) -> Self:
        """Return the spec for a call that wants probabilities, where there are any or in any case."""
        if wanted == "confidence":
            return replace(self, takes_log_probs=self.confidence != "off" and self.facts.log_probs)
        return replace(self, log_probs=True) if wanted == "log_probs" else self

    def at_flex(self) -> Self | None:
        """Return the spec at the flex tier, for a job that has time; its answers are those of the standard one."""
        name, price = self.flex_option, self.price
        if name is None or self.capabilities.price is None:
            return None
        options = {**thaw_options(self.request_options), name: "flex"}
        told = replace(self.patience, timeout_s=FLEX_WAIT_S, deadline_s=max(FLEX_WAIT_S, self.patience.deadline_s))
        price = None if price is None else at_tier(price, "flex", self.vendor or "openai")
        return replace(self, request_options=freeze_options(options), patience=told, price=price, by_deadline=True)

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
