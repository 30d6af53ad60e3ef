"""What a server's headers say is left of its quotas."""

from __future__ import annotations

import re
from collections.abc import Mapping

from skllm_ray.llm.rate_limit.messages import Left

_LONGEST_NUMBER = 18
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = r"(\d{1,12}(?:\.\d{0,12})?)(h|ms|m|s|us|µs|ns)"
_DURATION = re.compile(f"(?:{_PART})+", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{0,12})?", re.ASCII)


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
