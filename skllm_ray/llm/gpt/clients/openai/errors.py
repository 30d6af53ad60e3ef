"""Failures of an API as row errors: what kind, whether to try again, whether every row shares it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeAlias

from skllm_ray.tasks.base import ErrorKind, RowError

if TYPE_CHECKING:
    import openai

Redact: TypeAlias = Callable[[str], str]
"""Takes keys and prompt texts out of a message."""

_LONGEST_MESSAGE = 400
_ECHO = 12
_CREDENTIAL = re.compile(r"\b(?:sk-[\w*.-]{4,}|ya29\.[\w.-]+|Bearer\s+\S+)")
_QUOTED = re.compile(r"""'([^']{3,})'|"([^"]{3,})"|`([^`]{3,})`""")
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|too many tokens|(prompt|input) is too long|token count .*exceeds", re.IGNORECASE
)

_BY_CODE: dict[str, ErrorKind] = {
    "context_length_exceeded": "context_length",
    "exceed_context_size_error": "context_length",
    "string_above_max_length": "context_length",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "insufficient_quota": "insufficient_quota",
    "billing_hard_limit_reached": "insufficient_quota",
    "invalid_api_key": "authentication",
    "model_not_found": "model_not_found",
    "DeploymentNotFound": "model_not_found",
}
_BY_STATUS: dict[int, ErrorKind] = {
    401: "authentication",
    402: "insufficient_quota",
    403: "permission",
    404: "model_not_found",
    408: "timeout",
    409: "server_error",
    413: "context_length",
    429: "rate_limit",
    504: "timeout",
}
_RETRYABLE = {"timeout", "connection", "server_error", "malformed_response", "rate_limit"}
_FATAL = {"authentication", "permission", "model_not_found", "insufficient_quota"}


def classify(error: Exception, redact: Redact) -> RowError:
    """Return what `error`, raised by the OpenAI SDK, means for its row."""
    import openai

    # A timeout is a subclass of APIConnectionError; and the aiohttp transport calls every lost connection a timeout.
    if isinstance(error, openai.APITimeoutError) and _is_timeout(_root(error)):
        return row_error("timeout", "The server did not answer in time.")
    if isinstance(error, openai.APIConnectionError):
        return row_error("connection", redact(f"The connection failed: {_root_cause(error)}"))
    if isinstance(error, openai.APIStatusError):
        return _from_status_error(error, redact)
    return unexpected(error, redact)


def unexpected(error: Exception, redact: Redact) -> RowError:
    """Return what an exception means that is not one of the SDK's own."""
    if isinstance(error, UnicodeEncodeError):
        return row_error("bad_request", "The text holds half of a surrogate pair, which no request can carry.")
    if isinstance(error, json.JSONDecodeError):
        return row_error("malformed_response", "The server's answer is not JSON.")
    return row_error("malformed_response", redact(f"Unexpected {type(error).__name__}: {error}"), retryable=False)


def row_error(
    kind: ErrorKind, message: str, *, retryable: bool | None = None, retry_after_s: float | None = None
) -> RowError:
    """Return the row error of `kind`, retryable and fatal as its kind usually is."""
    again = kind in _RETRYABLE if retryable is None else retryable
    return RowError(kind, message, retryable=again, fatal=kind in _FATAL, retry_after_s=retry_after_s)


def kind_of(status: int, codes: Sequence[str | None], message: str) -> ErrorKind:
    """Return the kind of failure that an HTTP status, the server's codes and its message tell."""
    for code in codes:
        if code in _BY_CODE:
            return _BY_CODE[code]
    if status in {400, 422} and _TOO_LONG.search(message):
        return "context_length"
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return "server_error" if status >= 500 else "bad_request"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long the server asks to wait, in seconds: ``retry-after-ms`` first, then ``retry-after``.

    Examples
    --------
    >>> retry_after_s({"retry-after-ms": "1500", "retry-after": "2"})
    1.5
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = _number(headers.get(name), unit_s)
        if seconds is not None:
            return seconds
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except ValueError:
        return None


def redact(message: str, secrets: Sequence[str], texts: Sequence[str]) -> str:
    """Return `message` without the `secrets`, without what looks like one, and without what it repeats of `texts`.

    Examples
    --------
    >>> redact("invalid input 'my diary'", secrets=[], texts=["Judge: my diary"])
    "invalid input '[…]'"
    """
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    message = _CREDENTIAL.sub("***", message)
    rest = "…" if len(message) > _LONGEST_MESSAGE else ""
    message, text = message[:_LONGEST_MESSAGE], "\n".join(texts)
    if "\\" in message:  # a server may repeat a text with its escapes
        text = "\n".join([text, repr(text), json.dumps(text), json.dumps(text, ensure_ascii=False)])
    hidden = {at for span in _echoes(message, text) for at in range(*span)}
    masked = "".join("\0" if at in hidden else character for at, character in enumerate(message))
    return re.sub("\0+", "[…]", masked) + rest


def _echoes(message: str, text: str) -> list[tuple[int, int]]:
    """Return the spans of `message` that stand in `text`: quoted ones, and any of a certain length."""
    quoted = [match.span(match.lastindex or 0) for match in _QUOTED.finditer(message)]
    windows = [(start, start + _ECHO) for start in range(len(message) - _ECHO + 1)]
    return [(start, end) for start, end in quoted + windows if message[start:end] in text]


def _from_status_error(error: openai.APIStatusError, redact: Redact) -> RowError:
    said = _said(error)
    kind = kind_of(error.status_code, (error.code, error.type), said)
    code = f" {error.code}" if error.code else ""
    message = redact(f"HTTP {error.status_code}{code}: {said or 'no further message'}")
    return row_error(kind, message, retry_after_s=retry_after_s(error.response.headers))


def _said(error: openai.APIStatusError) -> str:
    """Return the server's own message, in any of the usual forms, but never a proxy's error page."""
    if isinstance(error.body, dict):
        return str(error.body.get("message") or error.body.get("detail") or "")
    is_json = "json" in error.response.headers.get("content-type", "")
    return error.body if is_json and isinstance(error.body, str) else ""


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_timeout(cause: BaseException) -> bool:
    names = {base.__name__ for base in type(cause).__mro__}
    return any("Timeout" in name for name in names)


def _root_cause(error: BaseException) -> str:
    error = _root(error)
    return f"{type(error).__name__} {error}".strip()


def _number(value: str | None, unit_s: float) -> float | None:
    try:
        seconds = float(value or "") * unit_s
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
