"""Facts about models, in one table: what they take, what they cost, when they end. And the default models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, Literal

from skllm_ray.config import Price

AnswerForm = Literal["json_schema", "json_object", "plain"]
"""What a model can be held to: a JSON schema, any JSON object, or nothing."""
Vendor = Literal["openai", "google"]
"""Whose list prices there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of a model before it is asked. What is wrong or missing here is learnt from its refusals."""

    names: str = ""
    """A regular expression of the names that the row is about, without the date of a snapshot."""
    price: Price | None = None
    """The list price, without discounts; None leaves it to `genai-prices`."""
    ends: date | None = None
    """The day on which the provider turns it off; None where none is announced."""
    successor: str = ""
    """What to use in its place after that."""
    system_role: bool = True
    """Whether a conversation may hold a system message."""
    sampling: bool = True
    """Whether it takes ``temperature`` and the like."""
    length_parameter: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """What limits the length of an answer."""
    answer_form: AnswerForm = "json_schema"
    """The strictest form that it can be held to."""
    log_probs: bool = True
    """Whether it tells the log-probabilities of its tokens."""
    thinks: bool = False
    """Whether it thinks before it answers, in tokens that count as the answer's."""


def _priced(name: str, price: Price, **facts: Any) -> ModelFacts:
    return ModelFacts(names=re.escape(name), price=price, **facts)


_AS_OF: Final = "2026-06-01"
_SMALL: Final = "gpt-5.4-mini"
_LARGE: Final = "gpt-5.4"
_REASONING: Final[dict[str, Any]] = {"sampling": False, "log_probs": False, "thinks": True}
_EARLY_REASONING: Final[dict[str, Any]] = {**_REASONING, "system_role": False, "answer_form": "plain"}
_OLD: Final[dict[str, Any]] = {"ends": date(2026, 10, 23), "successor": _SMALL}
_END_2026: Final[dict[str, Any]] = {"ends": date(2026, 12, 11)}
_END_2027: Final[dict[str, Any]] = {"ends": date(2027, 1, 14)}

MODELS: Final[tuple[ModelFacts, ...]] = (
    _priced("gpt-5.5", Price(5.0, 30.0, 0.5, _AS_OF, Price(10.0, 45.0, 1.0, _AS_OF), 272_000), **_REASONING),
    _priced(_LARGE, Price(2.5, 15.0, 0.25, _AS_OF, Price(5.0, 22.5, 0.5, _AS_OF), 272_000), **_REASONING),
    _priced(_SMALL, Price(0.75, 4.5, 0.075, _AS_OF), **_REASONING),
    _priced("gpt-5", Price(1.25, 10.0, 0.125, _AS_OF), **_REASONING, **_END_2026, successor=_LARGE),
    _priced("gpt-5-mini", Price(0.25, 2.0, 0.025, _AS_OF), **_REASONING, **_END_2026, successor=_SMALL),
    _priced("gpt-5-nano", Price(0.05, 0.4, 0.005, _AS_OF), **_REASONING, **_END_2026, successor=_SMALL),
    _priced("gpt-4.1", Price(2.0, 8.0, 0.5, _AS_OF), **_END_2027, successor=_LARGE),
    _priced("gpt-4.1-mini", Price(0.4, 1.6, 0.1, _AS_OF), **_END_2027, successor=_SMALL),
    _priced("gpt-4.1-nano", Price(0.1, 0.4, 0.025, _AS_OF), **_OLD),
    _priced("gpt-4o-2024-05-13", Price(5.0, 15.0, as_of=_AS_OF), **_OLD, answer_form="json_object"),
    _priced("gpt-4o", Price(2.5, 10.0, 1.25, _AS_OF), **_END_2027, successor=_LARGE),
    _priced("gpt-4o-mini", Price(0.15, 0.6, 0.075, _AS_OF), **_END_2027, successor=_SMALL),
    _priced("text-embedding-3-small", Price(0.02, as_of=_AS_OF)),
    _priced("text-embedding-3-large", Price(0.13, as_of=_AS_OF)),
    _priced("text-embedding-ada-002", Price(0.1, as_of=_AS_OF)),
    ModelFacts(names=r"gpt-5\.[23]-chat-latest", ends=date(2026, 8, 10), successor=_SMALL, **_REASONING),
    ModelFacts(
        names=r"gpt-5(\.1)?-chat-latest|gpt-5\.1-codex", ends=date(2026, 7, 23), successor=_SMALL, **_REASONING
    ),
    ModelFacts(names=r"gpt-5\.1|gpt-5\.4-nano", ends=date(2027, 4, 1), successor=_SMALL, **_REASONING),
    ModelFacts(names=r"gpt-5.*", **_REASONING),
    ModelFacts(names=r"o1-preview", ends=date(2025, 7, 28), successor=_LARGE, **_EARLY_REASONING),
    ModelFacts(names=r"o1-mini", ends=date(2025, 10, 27), successor=_SMALL, **_EARLY_REASONING),
    ModelFacts(names=r"o3", **_REASONING, **_END_2026, successor=_LARGE),
    ModelFacts(names=r"o1|o[34]-mini", **_REASONING, **_OLD),
    ModelFacts(names=r"o\d.*", **_REASONING),
    ModelFacts(names=r"chatgpt-4o-latest", ends=date(2026, 2, 17), successor=_LARGE),
    ModelFacts(names=r"gpt-4o(-mini)?-search-preview", ends=date(2026, 7, 23), successor=_SMALL, sampling=False),
    ModelFacts(names=r"gpt-4-turbo|gpt-4-1106-preview", **_OLD, answer_form="json_object"),
    ModelFacts(
        names=r"gpt-4-(0125|turbo)-preview|gpt-4-0314", ends=date(2026, 3, 26), successor=_SMALL,
        answer_form="json_object",
    ),
    ModelFacts(names=r"gpt-4(-0613)?", **_OLD, answer_form="plain"),
    ModelFacts(names=r"gpt-4-32k(-\d{4})?", ends=date(2025, 6, 6), successor=_SMALL, answer_form="plain"),
    ModelFacts(names=r"gpt-3\.5-turbo-1106", ends=date(2026, 9, 28), successor=_SMALL, answer_form="json_object"),
    ModelFacts(names=r"gpt-3\.5-turbo(-0125)?", **_OLD, answer_form="json_object"),
    ModelFacts(
        names=r"gpt-3\.5-turbo-(16k|0301|0613|16k-0613)", ends=date(2024, 9, 13), successor=_SMALL, answer_form="plain"
    ),
    ModelFacts(names=r"gemini-3.*", sampling=False, thinks=True),  # Google's guide says to leave it out
    ModelFacts(
        names=r"gemini-2\.5-flash-lite.*", ends=date(2026, 10, 31), successor="gemini-3.5-flash-lite", thinks=True
    ),
    ModelFacts(names=r"gemini-2\.5-.*", thinks=True, ends=date(2026, 10, 31), successor="gemini-3.5-flash"),
    ModelFacts(names=r"(text|chat)-bison.*", ends=date(2025, 4, 30), successor="gemini-3.5-flash-lite"),
)  # fmt: skip
"""The first row whose names match is the one. Prices are OpenAI's, in US dollars per million tokens, of the date that
stands with them; ends are those that OpenAI's SDK and Google's documentation announce, the end of the month where they
name no day."""

_UNKNOWN: Final = ModelFacts()
_ELSEWHERE: Final = ModelFacts(length_parameter="max_tokens")  # the older name is what other servers know
_SNAPSHOT: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@lru_cache(maxsize=1024)
def facts_of(model: str, api: str = "openai") -> ModelFacts:
    """Return what is known of a model, be it named with the date of its snapshot or without, or tuned from it.

    Behind a custom URL, a name says nothing about what answers.

    Examples
    --------
    >>> facts_of("gpt-5-mini-2025-08-07").sampling
    False
    >>> facts_of("gpt-5-mini", "custom_url").length_parameter
    'max_tokens'
    """
    if api == "custom_url":
        return _ELSEWHERE
    name = model.removeprefix("ft:").partition(":")[0]
    forms = (name, _SNAPSHOT.sub("", name))
    return next((row for row in MODELS if any(re.fullmatch(row.names, form) for form in forms)), _UNKNOWN)


@lru_cache(maxsize=1024)
def price_of(model: str, vendor: Vendor = "openai") -> Price | None:
    """Return the list price of a model, be it named with the date of its snapshot or without.

    Where the table above is silent, the data of the package ``genai-prices`` speak: those that are installed, for the
    network is never asked. A name that they do not have, as it is or without its date, has no price, and neither has a
    model whose price has more than one step by the length of the prompt.

    Examples
    --------
    >>> price_of("gpt-4o-mini-2024-07-18").input
    0.15
    >>> price_of("gemini-3.5-flash", "google").output
    9.0
    """
    if model.startswith("ft:") or "search" in model:  # tuned models have prices of their own; searches cost extra
        return None
    return (facts_of(model).price if vendor == "openai" else None) or _published(model, vendor)


def context_of(model: str, vendor: Vendor = "openai") -> int | None:
    """Return the tokens of a model's context, as `genai-prices` lists it; None where it lists none.

    Examples
    --------
    >>> context_of("gpt-4o-mini"), context_of("nobody-knows")
    (128000, None)
    """
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, found = get_snapshot().find_provider_model(model, None, vendor, None)
    except LookupError:
        return None
    return found.context_window if found.id in {model, _SNAPSHOT.sub("", model)} else None


def _published(model: str, vendor: Vendor) -> Price | None:
    import genai_prices

    try:
        found = genai_prices.calc_price(genai_prices.Usage(input_tokens=1), model, provider_id=vendor)
    except LookupError:
        return None
    listed = found.model_price
    if found.model.id not in {model, _SNAPSHOT.sub("", model)}:  # it also finds what is merely named alike
        return None
    if listed.input_mtok is None or listed.requests_kcount is not None:
        return None
    told = [listed.input_mtok, listed.output_mtok or Decimal(0), listed.cache_read_mtok]
    starts = {tier.start for one in told if isinstance(one, genai_prices.types.TieredPrices) for tier in one.tiers}
    usual, long = (_listed(told, by_length) for by_length in (False, True))
    if not starts:
        return usual
    if len(starts) > 1 or long.input < usual.input or long.output < usual.output:  # a budget relies on it
        return None
    return replace(usual, long=long, long_above=starts.pop())


def _listed(told: Sequence[Any], by_length: bool) -> Price:
    """Return what `genai-prices` lists, for prompts of usual length, or else for long ones."""
    import genai_prices

    tiered = genai_prices.types.TieredPrices
    plain = [(one.tiers[0].price if by_length else one.base) if isinstance(one, tiered) else one for one in told]
    fresh, output, cached = (None if one is None else float(one) for one in plain)
    return Price(fresh or 0.0, output or 0.0, cached, f"genai-prices {genai_prices.__version__}")


def end_notice(model: str, today: date) -> str | None:
    """Return what to tell about a model that its provider has turned off; None where it has not.

    Examples
    --------
    >>> end_notice("gpt-3.5-turbo", date(2026, 11, 1))
    "'gpt-3.5-turbo' was turned off on 2026-10-23: use model='gpt-5.4-mini'."
    """
    facts = facts_of(model)
    if model.startswith("ft:") or facts.ends is None or today < facts.ends:
        return None
    return f"{model!r} was turned off on {facts.ends}: use model={facts.successor!r}."


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """A default."""

    name: str


DEFAULTS: Final = {
    "gpt": DefaultModel("gpt-5.4-mini"),
    "vertex": DefaultModel("gemini-3.5-flash-lite"),
    "gpt embedding": DefaultModel("text-embedding-3-small"),
    "vertex embedding": DefaultModel("gemini-embedding-001"),
    "gpt_tunable": DefaultModel("gpt-4.1-mini-2025-04-14"),
    "vertex_tunable": DefaultModel("gemini-3.5-flash-lite"),
}
"""The default model of each family. Changing one is a minor release, listed in CHANGELOG.md."""
