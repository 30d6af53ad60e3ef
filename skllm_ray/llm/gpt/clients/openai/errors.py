"""Failures of an API as row errors: what kind, whether to try again, whether every row shares it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeAlias

from skllm_ray.tasks.base import ErrorKind, RowError

if TYPE_CHECKING:
    import openai

Redact: TypeAlias = Callable[[str], str]
"""Takes keys and prompt texts out of a message."""

_INVALID = re.compile(r"^\W*\d+ validation errors?\b")
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
_CODE = re.compile(r"[\w.-]{1,64}")
_OWN_FIELDS = {"error", "code", "type", "detail", "statusCode"}
_MOST_REFUSALS = 20
_MOST_TOKENS = 1_000_000_000
_RETRYABLE = {"timeout", "connection", "server_error", "malformed_response", "rate_limit"}
_FATAL = {"authentication", "permission", "model_not_found", "insufficient_quota"}


def classify(error: Exception, redact: Redact) -> RowError:
    """Return what `error`, raised by the OpenAI SDK, means for its row."""
    import openai

    # A timeout is a subclass of APIConnectionError; and the aiohttp transport calls every lost connection a timeout.
    if isinstance(error, openai.APITimeoutError) and _is_timeout(_root(error)):
        return row_error("timeout", "The server did not answer in time.")
    if isinstance(error, openai.APIConnectionError):
        return row_error("connection", f"The connection failed: {_root_cause(error, redact)}")
    if isinstance(error, openai.APIStatusError):
        return _from_status_error(error, redact)
    return unexpected(error, redact)


def unexpected(error: Exception, redact: Redact) -> RowError:
    """Return what an exception means that is not one of the SDK's own."""
    if isinstance(error, UnicodeEncodeError):
        return row_error("bad_request", "The text holds half of a surrogate pair, which no request can carry.")
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return row_error("malformed_response", "The server's answer is not JSON.")
    message = f"Unexpected {type(error).__name__}: {redact(str(error))}"
    return row_error("malformed_response", message, retryable=False)


def count_of(value: object) -> int:
    """Return a number of tokens as a server told it; 0 where it told nothing that can be one.

    Examples
    --------
    >>> [count_of(value) for value in (12, 12.0, "12", -3, 1.5, None, True, 10**25)]
    [12, 12, 12, 0, 0, 0, 0, 0]
    """
    if isinstance(value, str) and value.isdecimal():
        value = int(value[:20])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS
    return int(value) if is_count else 0  # type: ignore[call-overload]  # it is an int


def row_error(
    kind: ErrorKind, message: str, *, retryable: bool | None = None, retry_after_s: float | None = None
) -> RowError:
    """Return the row error of `kind`, retryable and fatal as its kind usually is."""
    again = kind in _RETRYABLE if retryable is None else retryable
    return RowError(kind, message, retryable=again, fatal=kind in _FATAL, retry_after_s=retry_after_s)


class Refusals:
    """Decides whether refusals that a gateway may have made concern single rows or all of them.

    A firewall blocks the one text that looks like an attack; a wrong address, or a key that the gateway does not know,
    is refused whatever is asked.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def judge(self, failure: RowError) -> RowError:
        """Return `failure`, fatal if so many came without an answer in between."""
        if failure.kind not in _FATAL:
            return failure
        self._in_a_row += 1
        return replace(failure, fatal=failure.fatal or self._in_a_row >= _MOST_REFUSALS)

    def answered(self) -> None:
        """Note that a row was answered."""
        self._in_a_row = 0


def kind_of(status: int, codes: Sequence[str | None], message: str) -> ErrorKind:
    """Return the kind of failure that an HTTP status, the server's codes and its message tell."""
    for code in codes:
        if code in _BY_CODE:
            return _BY_CODE[code]
    if status in {400, 422} and _TOO_LONG.search(message):
        return "context_length"
    if status == 500 and _INVALID.search(message):
        return "bad_request"  # llama-cpp-python's server answers so to a parameter that it does not know
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
    except (ValueError, OverflowError):
        return None


def _from_status_error(error: openai.APIStatusError, redact: Redact) -> RowError:
    said, told = _said(error), (error.code, error.type)
    codes = [code for code in told if isinstance(code, str) and _CODE.fullmatch(code)]
    kind = kind_of(error.status_code, codes, said)
    code = f" {redact(codes[0])}" if codes and codes[0] == error.code else ""
    message = f"HTTP {error.status_code}{code}: {redact(said) or 'no further message'}"
    found = row_error(kind, message, retry_after_s=retry_after_s(error.response.headers))
    return found if _is_the_apis_own(error) else replace(found, fatal=False)


def _said(error: openai.APIStatusError) -> str:
    """Return the server's own message, in any of the usual forms, but never a proxy's error page."""
    if isinstance(error.body, dict):
        return str(error.body.get("message") or error.body.get("detail") or "")
    return error.body if isinstance(error.body, str) and _is_json(error) else ""


def _is_json(error: openai.APIStatusError) -> bool:
    return "json" in error.response.headers.get("content-type", "")


def _is_the_apis_own(error: openai.APIStatusError) -> bool:
    """Return whether the API itself refused, and not a gateway before it, which may object to one text alone."""
    try:
        body = json.loads(error.response.content)
    except ValueError:
        return False
    return isinstance(body, dict) and bool(_OWN_FIELDS & body.keys())


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_timeout(cause: BaseException) -> bool:
    names = {base.__name__ for base in type(cause).__mro__}
    return any("Timeout" in name for name in names)


def _root_cause(error: BaseException, redact: Redact) -> str:
    error = _root(error)
    return f"{type(error).__name__} {redact(str(error))}".strip()


def _number(value: str | None, unit_s: float) -> float | None:
    try:
        seconds = float(value or "") * unit_s
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
