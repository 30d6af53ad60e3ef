"""Failures of an API as row errors: what kind, whether to try again, whether every row shares it."""

from __future__ import annotations

import math
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias

from skllm_ray.llm.api.response_body import StatusError, UnreadableError, parsed
from skllm_ray.llm.api.server_message import Told, found_nobody, kind_of, told_in
from skllm_ray.tasks.base import ErrorKind, RowError

Redact: TypeAlias = Callable[[str], str]
"""Takes keys and prompt texts out of a message."""

_FEW_REFUSALS: Final = 20
_MANY_REFUSALS: Final = 200
_MOST_TOKENS: Final = 1_000_000_000
_RETRYABLE: Final = {"timeout", "connection", "server_error", "malformed_response", "rate_limit"}
_FATAL: Final = {"authentication", "permission", "model_not_found", "insufficient_quota"}
_ABOUT_THE_ROW: Final = {"context_length", "content_filter"}
_SOMEWHERE: Final = "the server"
_LONGEST_MESSAGE: Final = 2000
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "milli": 0.001}
_ONE_TIME: Final = (
    r"\d{1,9}(?:\.\d{1,9})?\s?(?:hours?|minutes?|(?:milli)?seconds?|min|secs?|ms|h|m|s)\b|\d{1,4}[hm](?=\d)"
)
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s?(ms|milli|h|m|s)", re.IGNORECASE)
_WAIT: Final = re.compile(rf"(?:try again|retry|wait)\s(?:in|after|for)\s((?:(?:{_ONE_TIME})[\s,]*)+)", re.IGNORECASE)
_DOWN: Final = {502, 503, 521, 522, 523, 530}  # from 521 on, Cloudflare's


class AnswerError(Exception):
    """An answer with a good status tells of a failure.

    Parameters
    ----------
    told : Told
        What it says.
    headers : mapping of str to str
        The answer's headers.
    """

    def __init__(self, told: Told, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.told = told
        self.headers = headers


def classify(error: Exception, redact: Redact, where: str = "") -> RowError:
    """Return what `error`, raised by `HttpClient` or by what reads its answers, means for its row.

    Parameters
    ----------
    error : Exception
        What was raised.
    redact : callable
        Takes keys and prompt texts out of a message.
    where : str, default=""
        Its address, for messages.
    """
    import aiohttp

    if isinstance(error, AnswerError):
        return failure(200, error.told, error.headers, redact, where)
    if isinstance(error, StatusError):
        return failure(error.answer.status, told_of(error), error.answer.headers, redact, where)
    if isinstance(error, aiohttp.ServerTimeoutError):
        return row_error("timeout", f"No answer in time from {where or _SOMEWHERE}.")
    is_lost = isinstance(error, (aiohttp.ClientError, OSError))
    return (lost if is_lost else unexpected)(root(error), redact, where)


def told_of(error: Exception) -> Told:
    """Return what the server said, if it is the reason of `error`."""
    if isinstance(error, AnswerError):
        return error.told
    return told_by(error.answer.content) if isinstance(error, StatusError) else Told()


def told_by(content: bytes) -> Told:
    """Return what the body of an error says."""
    try:
        return told_in(parsed(content)) or Told()
    except UnreadableError:  # a proxy's page, which is not shown
        return Told()


def headers_of(error: Exception) -> Mapping[str, str] | None:
    """Return the headers of the answer that is the reason of `error`, if one is."""
    if isinstance(error, AnswerError):
        return error.headers
    return error.answer.headers if isinstance(error, StatusError) else None


def failure(status: int, told: Told, headers: Mapping[str, str], redact: Redact, where: str) -> RowError:
    """Return the row error of a failure that the server told."""
    kind = kind_of(status, told)
    code = f" {redact(told.code)}" if told.code else ""
    if told.status not in {None, status}:
        code = f" (error {told.status}){code}"
    message = f"HTTP {status}{code}: {redact(told.message) or 'no further message'}"
    if where and kind not in _ABOUT_THE_ROW:
        message = f"{message} [{where}]"
    wait_s = retry_after_s(headers)
    if wait_s is None and kind == "rate_limit":
        wait_s = wait_in(told.message)
    found = row_error(kind, message, retry_after_s=wait_s)
    is_down = (told.status or status if status == 200 else status) in _DOWN
    is_down = is_down or (kind == "server_error" and found_nobody(told.message))
    return replace(found, fatal=found.fatal and told.own, down=is_down)


def lost(cause: BaseException, redact: Redact, where: str) -> RowError:
    """Return the row error of a request that got no answer."""
    if isinstance(cause, (UnreadableError, UnicodeEncodeError)):
        return unexpected(cause, redact, where)
    reason = f"{type(cause).__name__} {redact(str(cause))}".strip()
    if isinstance(cause, ssl.SSLError):
        message = f"No secure connection to {where or _SOMEWHERE}: {reason.rstrip('.')}."
        if isinstance(cause, ssl.SSLCertVerificationError):
            message += " For a certificate authority of your own, set SSL_CERT_FILE to its file on every worker."
        return replace(row_error("connection", message, retryable=False), fatal=True)
    found = row_error("connection", f"The connection to {where or _SOMEWHERE} failed: {reason}")
    return replace(found, down=_was_refused(cause))


def unexpected(error: BaseException, redact: Redact, where: str = "") -> RowError:
    """Return what an exception means that is none of the SDK's own."""
    if isinstance(error, UnicodeEncodeError):
        return row_error("bad_request", "The request holds half of a surrogate pair, which none can carry.")
    if isinstance(error, UnreadableError):
        return row_error("malformed_response", f"{error} [{where}]" if where else str(error), retryable=error.again)
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
    """Decides whether refusals concern single rows or all of them.

    A firewall blocks the one text that looks like an attack, and a server refuses the one text that it cannot take. A
    wrong address, a key that the gateway does not know, or a model that it does not have is refused whatever is asked,
    and some gateways call all of these a bad request. So refusals end the job that came one after the other, without an
    answer in between, and with no older request in flight that may still get one. Twenty do, but of bad requests, once
    there was an answer before, two hundred that say the same.

    Parameters
    ----------
    where : str
        The address, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._asked = 0
        self._open: set[int] = set()
        self._began = 0
        self._said: Counter[str] = Counter()
        self._was_answered = False

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Hold a request while it is in flight."""
        self._asked += 1
        number = self._asked
        self._open.add(number)
        try:
            yield
        finally:
            self._open.discard(number)

    def judge(self, failure: RowError, *, is_one_rows: bool = True) -> RowError:
        """Return `failure`, fatal if so many came without an answer in between.

        Parameters
        ----------
        failure : RowError
            What a request met with; `asking` holds it no more, or it is the latest.
        is_one_rows : bool, default=True
            Whether the request was for one row, so that a bad request tells of it alone.
        """
        if failure.fatal or (failure.kind not in _FATAL and not (failure.kind == "bad_request" and is_one_rows)):
            return failure
        if not self._said:
            self._began = self._asked
        alike = "" if failure.kind in _FATAL else re.sub(r"\d+|\[…\]", "#", failure.message)
        self._said[alike] += 1
        most = _MANY_REFUSALS if alike and self._was_answered else _FEW_REFUSALS
        is_older_open = any(number <= self._began for number in self._open)
        if self._said[alike] < (most if not is_older_open else 10 * most):
            return failure
        told = f"{failure.message.rstrip('. ')}. {self._said[alike]} requests in a row were refused so"
        told += "." if self._where in told else f" [{self._where}]."
        return replace(failure, message=told, fatal=True)

    def answered(self) -> None:
        """Note that a row was answered."""
        self._said.clear()
        self._was_answered = True


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long the server asks to wait, in seconds: ``retry-after-ms`` first, then ``retry-after``.

    Examples
    --------
    >>> retry_after_s({"retry-after-ms": "1500", "retry-after": "2"})
    1.5
    >>> retry_after_s({"retry-after": "Sun, 06 Nov 1994 08:49:40 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"})
    3.0
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = _number(headers.get(name), unit_s)
        if seconds is not None:
            return seconds
    until, now = (_moment(headers.get(name, "")) for name in ("retry-after", "date"))
    if until is None:
        return None
    return max(0.0, until - (time.time() if now is None else now))  # this machine's clock may be wrong


def wait_in(message: str) -> float | None:
    """Return how long a message asks to wait, in seconds, where gateways drop the headers that say so.

    Examples
    --------
    >>> wait_in("Rate limit reached. Please try again in 1m2.5s."), wait_in("Please retry after 26 seconds.")
    (62.5, 26.0)
    >>> wait_in("try again in 20ms"), wait_in("Please try again later.")
    (0.02, None)
    """
    told = _WAIT.search(message[:_LONGEST_MESSAGE])
    if told is None:
        return None
    return sum(float(number) * _UNITS_S[unit.lower()] for number, unit in _TIME.findall(told[1]))


def _moment(date: str) -> float | None:
    """Return the time in a header, in seconds since 1970."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def is_timeout(cause: BaseException) -> bool:
    """Return whether an exception of the transport is a timeout, whichever package it comes from."""
    return any("Timeout" in base.__name__ for base in type(cause).__mro__)


def root(error: BaseException) -> BaseException:
    """Return the exception that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _was_refused(cause: BaseException) -> bool:
    """Return whether nothing was sent, since nobody took the connection."""
    names = {base.__name__ for base in type(cause).__mro__}
    return isinstance(cause, ConnectionRefusedError) or bool(names & {"ClientConnectorError", "ConnectError"})


def _number(value: str | None, unit_s: float) -> float | None:
    try:
        seconds = float(value or "") * unit_s
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
