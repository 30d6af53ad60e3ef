"""A credential that prints as stars and pickles as its fingerprint."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from skllm_ray.errors import ConfigurationError

_MARK = re.compile(r"\*\*\*[0-9a-f]{12}")


class Secret(str):
    """A credential that nothing shows; the SDK that needs it calls `reveal`.

    As a str it is only a mark: whatever is made of it, such as JSON, a concatenation or a table, shows no part of the
    credential. Only :meth:`reveal` gives the text; equality compares it. It wraps
    idempotently (``Secret(s) is s``), prints and formats as stars, and pickles as its fingerprint alone: where it is
    loaded, it is false and reveals nothing, and the credential is looked up again.

    Examples
    --------
    >>> secret = Secret("sk-1234")
    >>> secret
    Secret(***)
    >>> f"{secret}"
    '***'
    >>> "sk" in "".join([secret])
    False
    >>> secret.reveal()
    'sk-1234'
    """

    __slots__ = ("_text", "fingerprint")
    _text: str
    fingerprint: str
    """The first 12 hexadecimal digits of the SHA-256 of the credential; tells two credentials apart."""

    def __new__(cls, value: str, fingerprint: str | None = None) -> Secret:
        """Wrap `value`; a `Secret` is returned as it is."""
        if isinstance(value, Secret):
            return value
        if fingerprint is None and _MARK.fullmatch(value):  # what a format made of it that knows strings alone
            return cls("", value.removeprefix("***"))
        mark = fingerprint or hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        secret = super().__new__(cls, f"***{mark}")
        secret._text = str(value)
        secret.fingerprint = mark
        return secret

    def reveal(self) -> str:
        """Return the credential itself; empty if it was left behind when this object was pickled."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Secret):
            return (self._text, self.fingerprint) == (other._text, other.fingerprint)
        return bool(self._text) and self._text == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, format_spec: str) -> str:
        return "***"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Secret, ("", self.fingerprint))


def _text(name: str, value: object) -> str:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        shown = "an empty string" if isinstance(value, str) else f"a {type(value).__name__}"
        raise ConfigurationError(f"{name} must be a non-empty string; got {shown}.")
    return value.strip()
