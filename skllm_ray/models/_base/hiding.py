"""Credentials among an estimator's parameters: wrapped when they are set, so that no repr and no pickle shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError

_NAMES: Final = re.compile(
    r"(?:.*(?:[-_]|(?<=[a-z0-9])(?=[A-Z])))?"  # clientSecret as client_secret
    r"(?i:(?:api|access|private|subscription|virtual)[-_]?key|authorization|auth|password|passwd|secret|credentials?"
    r"|cookie|token)"
)
_VALUES: Final = re.compile(
    r"\s*(?:bearer\s+\S+|basic\s+\S+|[sp]k-[\w*.-]{8,}|ya29\.\S+|AIza[\w-]{20,}|AKIA[A-Z0-9]{12,}|gh[pousr]_\w{16,}"
    r"|github_pat_\w{16,}|glpat-[\w-]{16,}|hf_\w{16,}|gsk_\w{16,}|xai-\w{16,}|nvapi-[\w-]{16,}|pplx-\w{16,}|r8_\w{16,}"
    r"|xox[abprs]-[\w-]{8,}|eyJ[\w-]{8,}\.[\w-]{8,}\.|-----BEGIN |[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@)",
    re.IGNORECASE,
)
"""How keys of well-known services begin; then a JSON web token, a key in PEM, and an address with a password."""


def hidden(name: str, value: Any) -> Any:
    """Return the parameter `name` with every credential in it wrapped; the same object where there is none to wrap.

    Examples
    --------
    >>> hidden("key", "sk-1234")
    Secret(***)
    >>> hidden("request_options", {"top_p": 1, "api_key": "1234"})
    {'top_p': 1, 'api_key': Secret(***)}
    """
    if name == "key":
        return _all_wrapped(
            value
        )  # what is no str is refused later, as scikit-learn wants, and shown nowhere till then
    return _wrapped(value) if name == "request_options" else value


def refuse_credentials(options: object) -> None:
    """Raise ``ConfigurationError`` where request options hold a credential: they travel with every estimator."""
    where = _where(options, ())
    if where:
        raise ConfigurationError(
            f"request_options holds what looks like a credential, under {'.'.join(where)!r}.",
            "A key goes into key=… or SKLLMConfig.set_openai_key(…), where nothing shows it.",
        )


def _all_wrapped(value: Any) -> Any:
    """Return a key, whatever holds it by mistake, with every text in it wrapped; the same object where all are."""
    if isinstance(value, str):
        return value if isinstance(value, Secret) else Secret(value)
    if isinstance(value, (bytes, bytearray)):
        return [Secret(value.decode("utf-8", "replace"))]
    if isinstance(value, Mapping):
        items = {name: _all_wrapped(inner) for name, inner in value.items()}
        return value if all(items[name] is inner for name, inner in value.items()) else items
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_all_wrapped(one) for one in value]
        return value if all(one is other for one, other in zip(parts, value, strict=True)) else parts
    return value


def _wrapped(value: Any, name: str = "") -> Any:
    if isinstance(value, str):
        is_one = not isinstance(value, Secret) and value and (_NAMES.fullmatch(name) or _VALUES.match(value))
        return Secret(value) if is_one else value
    if isinstance(value, Mapping):
        items = {key: _wrapped(inner, str(key)) for key, inner in value.items()}
        return value if all(items[key] is inner for key, inner in value.items()) else items
    if isinstance(value, (list, tuple)):
        parts = [_wrapped(inner, name) for inner in value]
        return value if all(one is other for one, other in zip(parts, value, strict=True)) else parts
    return value


def _where(value: object, path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names under which the first wrapped credential stands; none if there is none."""
    if isinstance(value, Secret):
        return path
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, (list, tuple)):
        inside = enumerate(value)
    return next((found for key, inner in inside if (found := _where(inner, (*path, str(key))))), ())
