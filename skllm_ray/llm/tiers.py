"""What a provider takes for the same request by another way: its flex tier, or a batch. The one place that knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from skllm_ray.config import Price, Timeouts
from skllm_ray.llm.model_facts import Vendor

Tier = Literal["standard", "flex", "batch"]
"""How a request is served: at once, at once where there is room, or within a day."""

SERVICE_TIER: Final = "service_tier"
"""The request option that OpenAI takes."""
SHARED_REQUEST_TYPE: Final = "shared_request_type"
"""The request option that Vertex AI takes as a header."""
FLEX_OPTIONS: Final = (SERVICE_TIER, SHARED_REQUEST_TYPE)
FLEX_WAIT_S: Final = 900.0
"""How long a request of a job that has a deadline may take at a flex tier, as OpenAI advises."""
FLEX_TIMEOUTS: Final = Timeouts(request_s=1800.0, row_s=7200.0)
"""How long a row may take at a flex tier, where nobody says otherwise: OpenAI advises 15 minutes, Google up to 30."""
_FLEX: Final = re.compile(r"gpt-5(\.\d+)?(-mini|-nano)?|o3|o4-mini")
_SNAPSHOT: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$")

SHARES: Final[dict[Tier, float]] = {"standard": 1.0, "flex": 0.5, "batch": 0.5}
"""What each tier costs at OpenAI, Azure OpenAI and Google, as a share of the standard price."""


def tier_of(options: Mapping[str, Any]) -> Tier:
    """Return the tier that request options name: OpenAI's ``service_tier``, or Vertex AI's ``shared_request_type``.

    Examples
    --------
    >>> tier_of({"service_tier": "flex"}), tier_of({"shared_request_type": "flex"}), tier_of({})
    ('flex', 'flex', 'standard')
    """
    return "flex" if "flex" in {options.get(name) for name in FLEX_OPTIONS} else "standard"


_NAMES: Final[dict[str, Tier]] = {
    "auto": "standard",
    "default": "standard",
    "flex": "flex",
    "ON_DEMAND": "standard",
    "ON_DEMAND_FLEX": "flex",
}


def tier_named(name: str) -> Tier | None:
    """Return the tier that an answer names, in OpenAI's ``service_tier`` or in Vertex AI's ``trafficType``.

    None is a tier whose price is not known here: one that costs more to be served first, or that is paid by the hour.

    Examples
    --------
    >>> tier_named("default"), tier_named("ON_DEMAND_FLEX"), tier_named("priority")
    ('standard', 'flex', None)
    """
    return _NAMES.get(name)


def has_flex(model: str) -> bool:
    """Return whether OpenAI serves a model at its flex tier.

    Examples
    --------
    >>> [has_flex(model) for model in ("gpt-5.4-mini", "o3-2025-04-16", "gpt-4o-mini")]
    [True, True, False]
    """
    return _FLEX.fullmatch(_SNAPSHOT.sub("", model)) is not None


def at_tier(price: Price, tier: Tier, vendor: Vendor = "openai", share: float | None = None) -> Price:
    """Return the price of the same tokens at a tier.

    At Google, the discounts of a tier and of cached input do not add up: cached input keeps its own price.

    Parameters
    ----------
    price : Price
        The standard price.
    tier : {"standard", "flex", "batch"}
        How requests are served.
    vendor : {"openai", "google"}, default="openai"
        Whose rules hold.
    share : float or None, default=None
        What the tier costs, as a share of the standard price; None takes `SHARES`.

    Examples
    --------
    >>> half = at_tier(Price(2.0, 8.0, 0.5), "batch")
    >>> half.input, half.output, half.cached_input
    (1.0, 4.0, 0.25)
    >>> at_tier(Price(2.0, 8.0, 0.5), "batch", "google").cached_input
    0.5
    """
    share = SHARES[tier] if share is None else share
    cached = price.cached_input
    if cached is not None and vendor == "openai":
        cached *= share
    elif cached is not None:
        cached = min(cached, price.input * share)
    long = None if price.long is None else at_tier(price.long, tier, vendor, share)
    return replace(price, input=price.input * share, output=price.output * share, cached_input=cached, long=long)
