"""Request options in a form that hashes and pickles, and the key that identifies a spec. No SDK here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from skllm_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FrozenOptions: TypeAlias = tuple[tuple[str, str], ...]
"""Extra request parameters as a spec keeps them: sorted pairs of a name and its value as JSON."""
RequestOptions: TypeAlias = Mapping[str, Any] | FrozenOptions
"""Extra request parameters as a spec takes them."""


def freeze_options(options: RequestOptions) -> FrozenOptions:
    """Return `options` as they stand in a spec. What is frozen stays as it is.

    Raises
    ------
    ConfigurationError
        If a name is not a string, or a value cannot be written as JSON.

    Examples
    --------
    >>> freeze_options({"top_p": 0.5, "reasoning_effort": "low"})
    (('reasoning_effort', '"low"'), ('top_p', '0.5'))
    """
    if isinstance(options, tuple):
        return options
    return tuple(sorted((_name(name), _json(name, value)) for name, value in options.items()))


def thaw_options(options: RequestOptions) -> dict[str, Any]:
    """Return `options` as a request holds them.

    Examples
    --------
    >>> thaw_options((("top_p", "0.5"),))
    {'top_p': 0.5}
    """
    return {name: json.loads(value) for name, value in freeze_options(options)}


_LIMITS: Final = {"maxtokens", "maxcompletiontokens", "maxoutputtokens"}


def body_options(options: RequestOptions) -> dict[str, Any]:
    """Return `options` as the fields of a request's body: what stands in ``extra_body`` is a field like others.

    Examples
    --------
    >>> body_options({"top_p": 1, "extra_body": {"top_k": 3}})
    {'top_p': 1, 'top_k': 3}
    """
    fields = thaw_options(options)
    extra = fields.pop("extra_body", None)
    return fields | (extra if isinstance(extra, dict) else {})


def limits_in(fields: Mapping[str, Any]) -> list[Any]:
    """Return what the user's own `fields` of a body allow an answer at most, by whatever name, in tokens.

    Examples
    --------
    >>> limits_in({"max_completion_tokens": 5000, "top_p": 1})
    [5000]
    """
    return [value for name, value in fields.items() if name.replace("_", "").lower() in _LIMITS]


def refuse_options(options: RequestOptions, reserved: Collection[str]) -> None:
    """Raise `ConfigurationError` for the first option that a user may not set."""
    extra = thaw_options(options).get("extra_body", {})
    if not isinstance(extra, dict):
        raise ConfigurationError(f"request_options['extra_body'] must be a dict; got {type(extra).__name__}.")
    for name in [*thaw_options(options), *extra]:
        if name == "extra_headers":
            raise ConfigurationError(
                "request_options may not hold 'extra_headers', since it shows and travels with an estimator.",
                "Call SKLLMConfig.set_extra_headers(…), which keeps what they hold to itself.",
            )
        if name in reserved:
            raise ConfigurationError(
                f"request_options may not hold {name!r}.", "It takes parameters of the model, one by one."
            )


def spec_key(family: str, spec: DataclassInstance) -> str:
    """Return a hash of every field of `spec`, which holds no secrets, only the fingerprints of some."""
    fields = json.dumps(asdict(spec), sort_keys=True, default=str)
    return f"{family}-{hashlib.sha256(fields.encode()).hexdigest()[:32]}"


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"request_options must have strings as names; got {name!r}.")
    return name


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"request_options[{name!r}] cannot be sent as JSON; it is a {type(value).__name__}."
        ) from None
