"""What settings are made of: limits, prices, timeouts, resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypeAlias, TypeVar

C = TypeVar("C")

Confidence: TypeAlias = Literal["auto", "written", "off"]
"""How calls that merely show probabilities may get them."""


def lasting(cls: type[C]) -> type[C]:
    """Make a frozen dataclass with slots pickle by its fields' names, so that versions with other fields read it.

    Without it, Python pickles the values alone, by position. Those of the first release are read too: the fields that
    a class had then must stay in their order, and new ones need a default and stand after them.
    """
    own: Any = cls
    known = {one.name: one for one in fields(own)}

    def get_state(self: Any) -> dict[str, Any]:
        return {name: getattr(self, name) for name in known}

    def set_state(self: Any, state: Mapping[str, Any] | Sequence[Any]) -> None:
        told = state if isinstance(state, Mapping) else dict(zip(known, state, strict=False))
        for name, one in known.items():
            default = one.default if one.default_factory is MISSING else one.default_factory()
            object.__setattr__(self, name, told.get(name, default))

    own.__getstate__, own.__setstate__ = get_state, set_state
    return cls


@lasting
@dataclass(frozen=True, slots=True)
class SecretRef:
    """Names a credential without holding it: what a backend spec carries to the workers."""

    name: str
    """What it is called in messages, such as ``openai_key``."""
    env: tuple[str, ...]
    """The environment variables in which a worker looks for it."""
    fingerprint: str = ""
    """Which credential the driver had; empty if it had none."""
    resolver: str = ""
    """A function that the worker asks for it, as ``package.module:function``; empty if there is none."""


@lasting
@dataclass(frozen=True, slots=True)
class RateLimit:
    """A quota that every job of the cluster shares."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None


@lasting
@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an API may take, in seconds."""

    connect_s: float = 10.0
    """To connect."""
    request_s: float = 120.0
    """For one try of a row, once it is connected."""
    row_s: float = 600.0
    """For a row with all its tries and the pauses between them, from when the limits first let it through."""


@lasting
@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars per million tokens.

    Examples
    --------
    >>> Price(0.75, 4.5, 0.075).cost_usd(1_000_000, 100_000)
    1.2
    >>> dear = Price(2.5, 15.0, long=Price(5.0, 22.5), long_above=272_000)
    >>> dear.cost_usd(272_000, 0), dear.cost_usd(272_001, 0)
    (0.68, 1.360005)
    """

    input: float
    output: float = 0.0
    cached_input: float | None = None
    """For the input that the provider had cached; None is the price of other input."""
    as_of: str = ""
    """The day on which this was the price, such as ``2026-11-23``, or the release of a price list that has it."""
    long: Price | None = None
    """The higher price of all tokens of a request with a long prompt; None where its length changes nothing."""
    long_above: int = 0
    """The most prompt tokens, cached ones included, that a request may have for the usual price."""

    def at(self, prompt_tokens: float) -> Price:
        """Return the price that holds for a request with so many prompt tokens."""
        return self if self.long is None or prompt_tokens <= self.long_above else self.long

    def cost_usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Return the price of one reply; `cached_tokens` are a part of `prompt_tokens`.

        Add up the prices of replies rather than price their sums: a long prompt costs more a token.
        """
        price = self.at(prompt_tokens)
        if price is not self:
            return price.cost_usd(prompt_tokens, completion_tokens, cached_tokens)
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + completion_tokens * self.output) / 1e6


@lasting
@dataclass(frozen=True, slots=True)
class GGUFResources:
    """How many actors hold a GGUF model, and what each takes."""

    min_replicas: int = 1
    max_replicas: int | None = None
    num_gpus: float | None = None
    num_cpus: float | None = None
    n_ctx: int | None = None
    keep_alive_s: float | None = None
    cpu_replicas: int = 0
    placement_timeout_s: float | None = field(default=None, compare=False)
    """Concerns waiting alone: a loaded model need not be loaded anew when it changes."""
