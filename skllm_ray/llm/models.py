"""Facts about models, in tables: the defaults, prices with their dates, and what does not work where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Final

from skllm_ray.config import Price


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """A default, and how long it can be relied on."""

    name: str
    ends: date | None
    """The day on which the provider turns it off; None where none is announced."""


DEFAULTS: Final = {
    "gpt": DefaultModel("gpt-5.4-mini", None),
    "vertex": DefaultModel("gemini-3.5-flash-lite", None),
    "gpt embedding": DefaultModel("text-embedding-3-small", None),
    "vertex embedding": DefaultModel("gemini-embedding-001", None),
    "gpt_tunable": DefaultModel("gpt-4.1-mini-2025-04-14", date(2027, 1, 14)),
    "vertex_tunable": DefaultModel("gemini-3.5-flash-lite", None),
}
"""The default model of each family. Changing one is a minor release, listed in CHANGELOG.md."""


_AS_OF: Final = "2026-06-01"
PRICES: Final[dict[str, Price]] = {
    "gpt-5.5": Price(5.0, 30.0, 0.5, _AS_OF),
    "gpt-5.4": Price(2.5, 15.0, 0.25, _AS_OF),
    "gpt-5.4-mini": Price(0.75, 4.5, 0.075, _AS_OF),
    "gpt-5": Price(1.25, 10.0, 0.125, _AS_OF),
    "gpt-5-mini": Price(0.25, 2.0, 0.025, _AS_OF),
    "gpt-5-nano": Price(0.05, 0.4, 0.005, _AS_OF),
    "gpt-4.1": Price(2.0, 8.0, 0.5, _AS_OF),
    "gpt-4.1-mini": Price(0.4, 1.6, 0.1, _AS_OF),
    "gpt-4.1-nano": Price(0.1, 0.4, 0.025, _AS_OF),
    "gpt-4o": Price(2.5, 10.0, 1.25, _AS_OF),
    "gpt-4o-mini": Price(0.15, 0.6, 0.075, _AS_OF),
    "text-embedding-3-small": Price(0.02, as_of=_AS_OF),
    "text-embedding-3-large": Price(0.13, as_of=_AS_OF),
    "text-embedding-ada-002": Price(0.1, as_of=_AS_OF),
}
"""OpenAI's list prices in US dollars per million tokens, without discounts. A model that is not here has no price:
its rows tell tokens only, until ``SKLLMConfig.set_price`` says what it costs."""

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_REASONING = re.compile(r"^(o\d|gpt-5)")


def price_of(model: str) -> Price | None:
    """Return the list price of an OpenAI model, be it named with the date of its snapshot or without.

    Examples
    --------
    >>> price_of("gpt-4o-mini-2024-07-18").input
    0.15
    """
    return PRICES.get(_SNAPSHOT.sub("", model))


def without_log_probs(model: str) -> bool:
    """Return whether `model` is known to refuse ``logprobs``: OpenAI's reasoning models do."""
    return _REASONING.match(model) is not None
