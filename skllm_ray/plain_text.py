"""Texts that are not ours, such as a server's messages, labels and names of files, made fit to be shown and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.text import Text

_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")

_HALF: Final = re.compile("[\ud800-\udfff]")
_PASSWORD: Final = re.compile(r"(?<=://)([^/\s:@'\"]*):[^/\s@'\"]+@")
_PARAMETER = re.compile(
    r"([?&;](?:[\w.-]*(?:secret|token(?!s)|password|signature|api[_-]?key|account[_-]?key)[\w.-]*|sig|key|code|pwd)=)"
    r"[^&\s'\"#;,]+",
    re.IGNORECASE,
)


def whole(text: str) -> str:
    r"""Return a text without halves of surrogate pairs, which no UTF-8 can hold.

    Examples
    --------
    >>> whole("caf\u00e9 \ud83d") == "caf\u00e9 \ufffd"
    True
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def has_half(value: object) -> bool:
    r"""Return whether a text, or one in a mapping or list, has half of a surrogate pair, which no request can carry.

    Examples
    --------
    >>> [has_half(value) for value in ("caf\u00e9", "\ud83d", {"a": ["\ud83d"]}, 3)]
    [False, True, True, False]
    """
    if isinstance(value, str):
        return not value.isascii() and _HALF.search(value) is not None
    if isinstance(value, Mapping):
        return any(has_half(inner) for pair in value.items() for inner in pair)
    return isinstance(value, (list, tuple)) and any(map(has_half, value))


def without_passwords(text: str) -> str:
    """Return a text in which addresses show stars in place of their passwords, keys and signatures.

    Examples
    --------
    >>> without_passwords("output='s3://AKIA:secret@bucket/out' is there")
    "output='s3://AKIA:***@bucket/out' is there"
    >>> without_passwords("az://c/in.csv?sv=2024&sig=a%2Bb, s3://b/in.csv?access_key=AKIA&secret_key=x&region=eu")
    'az://c/in.csv?sv=2024&sig=***, s3://b/in.csv?access_key=AKIA&secret_key=***&region=eu'
    """
    if "://" not in text:
        return text
    return _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def printable(text: object) -> str:
    r"""Return a text that a terminal only shows: control characters, which it would obey, are written out.

    Passwords in addresses are stars.

    Line breaks and tabs stay. So do all other characters, those that are right-to-left among them; marks that turn the
    direction of what follows are written out.

    Examples
    --------
    >>> printable("\x1b[31mred\x00")
    '\\x1b[31mred\\x00'
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], whole(without_passwords(str(text))))


def cell(text: object) -> Text:
    """Return a text for a table in a terminal: what looks like markup in it is shown, not obeyed."""
    from rich.text import Text

    return Text(printable(text))
