"""Failures of Vertex AI as row errors."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from skllm_ray.llm.gpt.clients.openai.errors import Redact, kind_of, retry_after_s, row_error, unexpected
from skllm_ray.tasks.base import ErrorKind, RowError

if TYPE_CHECKING:
    from google.genai.errors import APIError

_RETRY_DELAY = re.compile(r"(\d+(?:\.\d+)?)s")


def classify(error: Exception, redact: Redact) -> RowError:
    """Return what `error`, raised by google-genai, its transport or its authentication, means for its row."""
    from google.auth.exceptions import GoogleAuthError
    from google.genai.errors import APIError, UnknownApiResponseError

    if isinstance(error, APIError):
        return _from_api_error(error, redact)
    if isinstance(error, UnknownApiResponseError):
        return row_error("malformed_response", "The server's answer is not JSON.")
    if isinstance(error, GoogleAuthError):
        kind: ErrorKind = "connection" if error.retryable else "authentication"
        return row_error(kind, f"Google credentials: {type(error).__name__}: {redact(str(error))}")
    return _from_transport(error, redact)


def said(error: Exception) -> str:
    """Return the service's own message, if `error` is one."""
    return str(getattr(error, "message", None) or "")


def _from_api_error(error: APIError, redact: Redact) -> RowError:
    said = error.message if isinstance(error.details, dict) and "error" in error.details else None
    kind = kind_of(error.code, (), said or "")
    message = f"HTTP {error.code} {error.status or ''}: {redact(said or '') or 'no further message'}"
    found = row_error(kind, message, retry_after_s=_retry_after_s(error))
    return found if said is not None else replace(found, fatal=False)  # a gateway's page, which may mean one text alone


def _retry_after_s(error: APIError) -> float | None:
    """Return the wait that the headers ask for, or else Google's ``RetryInfo``."""
    asked = retry_after_s(getattr(error.response, "headers", None) or {})
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


def _from_transport(error: Exception, redact: Redact) -> RowError:
    """Tell the transport's exceptions by name: which package they come from depends on what is installed."""
    names = {base.__name__ for base in type(error).__mro__}
    if names & {"TimeoutException", "TimeoutError"}:
        return row_error("timeout", "The server did not answer in time.")
    if names & {"TransportError", "ClientError", "ConnectionError"}:
        return row_error("connection", f"The connection failed: {type(error).__name__} {redact(str(error))}".strip())
    return unexpected(error, redact)
