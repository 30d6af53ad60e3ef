"""Failures of Vertex AI as row errors."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from skllm_ray.llm.api.failures import (
    AnswerError,
    Redact,
    failure,
    is_timeout,
    lost,
    retry_after_s,
    root,
    row_error,
    unexpected,
)
from skllm_ray.llm.api.server_message import Told, told_in
from skllm_ray.tasks.base import ErrorKind, RowError

if TYPE_CHECKING:
    from google.genai.errors import APIError

_RETRY_DELAY = re.compile(r"(\d+(?:\.\d+)?)s")


def classify(error: Exception, redact: Redact, where: str = "Vertex AI") -> RowError:
    """Return what `error`, raised by google-genai, its transport or its authentication, means for its row."""
    from google.auth.exceptions import GoogleAuthError
    from google.genai.errors import APIError

    if isinstance(error, AnswerError):
        return failure(200, error.told, error.headers, redact, where)
    if isinstance(error, APIError):
        found = failure(error.code, told_of(error), {}, redact, where)
        return replace(found, retry_after_s=_retry_after_s(error))
    if isinstance(error, GoogleAuthError):
        kind: ErrorKind = "connection" if error.retryable else "authentication"
        return row_error(kind, f"Google credentials: {type(error).__name__}: {redact(str(error))}")
    return _from_transport(error, redact, where)


def told_of(error: Exception) -> Told:
    """Return what the service said, if it is the reason of `error`."""
    from google.genai.errors import APIError

    if isinstance(error, AnswerError):
        return error.told
    if not isinstance(error, APIError) or not isinstance(error.details, dict):
        return Told()
    # The SDK puts a page, or what else is no error of the API's form, into fields of the same names.
    return (told_in(error.details) if "error" in error.details else None) or Told()


def _retry_after_s(error: APIError) -> float | None:
    """Return the wait that the headers ask for, or else Google's ``RetryInfo``."""
    asked = None if error.response is None else retry_after_s(error.response.headers)
    if asked is not None or not isinstance(error.details, dict):
        return asked
    for detail in _details(error.details):
        delay = _RETRY_DELAY.fullmatch(str(detail.get("retryDelay", "")))
        if delay:
            return float(delay[1])
    return None


def _details(body: dict[str, Any]) -> list[dict[str, Any]]:
    inner = body.get("error")
    details = inner.get("details") if isinstance(inner, dict) else None
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []


def _from_transport(error: Exception, redact: Redact, where: str) -> RowError:
    """Tell the transport's exceptions by name: which package they come from depends on what is installed."""
    cause = root(error)
    if is_timeout(error) and is_timeout(cause):
        return row_error("timeout", f"No answer in time from {where}.")
    names = {base.__name__ for base in type(error).__mro__}
    is_lost = names & {"TransportError", "ClientError", "ConnectionError", "TimeoutException"}
    return lost(cause, redact, where) if is_lost else unexpected(cause, redact, where)
