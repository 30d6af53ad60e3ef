"""Request options in a form that hashes and pickles, and the key that identifies a spec. No SDK here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

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


def refuse_options(options: RequestOptions, reserved: Collection[str]) -> None:
    """Raise `ConfigurationError` for the first option that a user may not set."""
    for name, _ in freeze_options(options):
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
