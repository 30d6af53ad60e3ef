"""Where a request goes, the headers that are sent with it, and what a server's headers say is left of its quotas."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from skllm_ray.config import Secret
from skllm_ray.llm.api.http_client import SentHeaders
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.rate_limit.messages import Left

OPENAI_URL: Final = "https://api.openai.com/v1"
"""Where OpenAI itself is."""

_LONGEST_NUMBER = 18
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = r"(\d{1,12}(?:\.\d{0,12})?)(h|ms|m|s|us|µs|ns)"
_DURATION = re.compile(f"(?:{_PART})+", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{0,12})?", re.ASCII)


def address(spec: OpenAISpec, path: str) -> str:
    """Return the address of a path below the base URL; what is an address already stays as it is."""
    if "://" in path:
        return path
    base = (spec.base_url or OPENAI_URL).rstrip("/")
    if spec.api != "azure":
        return base + path
    return f"{base}/openai/deployments/{quote(spec.model, safe='')}{path}?api-version={quote(spec.api_version or '')}"


def sent_headers(spec: OpenAISpec, key: Secret, extra: Mapping[str, Secret]) -> SentHeaders:
    """Return the headers of every request. As OpenAI's SDK does, they name the organisation of the environment."""
    found = SentHeaders(
        {
            "accept": "application/json",
            "accept-encoding": "gzip, deflate",
            "content-type": "application/json",
            "user-agent": f"skllm_ray ({platform.python_implementation()} {platform.python_version()})",
            "openai-organization": spec.org or os.environ.get("OPENAI_ORG_ID", ""),
            "openai-project": os.environ.get("OPENAI_PROJECT_ID", ""),
        }
    )
    if spec.api == "azure":
        found.add("api-key", key)
    else:
        found.add("authorization", key, "Bearer ")
    for name, value in extra.items():
        found.add(name, value)
    return found


def left_of_quotas(headers: Mapping[str, str]) -> tuple[Left | None, Left | None]:
    """Return what is left of the requests and of the tokens.

    Examples
    --------
    >>> left_of_quotas({"x-ratelimit-remaining-requests": "7", "x-ratelimit-reset-requests": "1m30s"})
    (Left(amount=7, reset_s=90.0), None)
    """
    return _left(headers, "requests"), _left(headers, "tokens")


def _left(headers: Mapping[str, str], what: str) -> Left | None:
    amount = headers.get(f"x-ratelimit-remaining-{what}")
    if amount is None or not amount.isdecimal() or len(amount) > _LONGEST_NUMBER:
        return None
    return Left(int(amount), seconds_of(headers.get(f"x-ratelimit-reset-{what}") or ""))


def seconds_of(text: str) -> float | None:
    """Return the seconds in a duration as OpenAI writes it, or in a plain number; None where it is neither.

    Examples
    --------
    >>> seconds_of("6m0s"), seconds_of("20ms"), seconds_of("0"), seconds_of("soon")
    (360.0, 0.02, 0.0, None)
    """
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, text, re.ASCII))
