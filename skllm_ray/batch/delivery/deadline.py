"""When a job stops waiting for batches, so that what is left can be asked directly in time."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.tiers import FLEX_WAIT_S

_PERIOD: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)?", re.IGNORECASE)
_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_ROWS_PER_S: Final = 5.0  # of a server of which no limit is declared: few, since batches are cheaper
_MARGIN: Final = 1.25
_CANCEL_S: Final = 600.0  # the longest that OpenAI takes to cancel a batch
_FLEX_S: Final = 3600.0
"""How much earlier what is open is asked directly where that can be done at a flex tier, as cheap as a batch."""


@dataclass(frozen=True)
class Deadline:
    """By when all rows are to be answered.

    Parameters
    ----------
    ends_at : float
        In seconds since the epoch.
    rows_per_s : float
        How many rows are asked directly in a second.
    """

    ends_at: float
    rows_per_s: float = _ROWS_PER_S

    @classmethod
    def of(cls, told: str, began: str, spec: BackendSpec) -> Deadline:
        """Return the deadline of a job that began at a moment, as its manifest tells, and asks a model."""
        limit = spec.limit.requests_per_minute if spec.limit else None
        rate = limit / 60.0 if limit else _ROWS_PER_S
        return cls(datetime.fromisoformat(began).timestamp() + seconds_of(told), rate)

    def is_due(self, rows_left: int, *, live: bool, flex: bool = False) -> bool:
        """Return whether as many rows have to be asked directly from now on, after live batches are cancelled.

        With `flex`, an hour is left to ask them at a flex tier first.
        """
        needed_s = _MARGIN * rows_left / self.rows_per_s + (_CANCEL_S if live else 0.0) + (_FLEX_S if flex else 0.0)
        return time.time() + needed_s >= self.ends_at

    def is_too_late_for_flex(self, rows_left: int) -> bool:
        """Return whether the flex tier is to be left: what it was asked last may take as long as a request may."""
        return time.time() + _MARGIN * rows_left / self.rows_per_s + FLEX_WAIT_S >= self.ends_at


def seconds_of(told: str) -> float:
    """Return a period in seconds; a number alone is one of seconds.

    Raises
    ------
    ConfigurationError
        If it is none.

    Examples
    --------
    >>> seconds_of("8h"), seconds_of("30 min"), seconds_of("0")
    (28800.0, 1800.0, 0.0)
    """
    found = _PERIOD.fullmatch(told.strip())
    if found is None:
        raise ConfigurationError(f"deadline={told!r} is no period.", "Write '8h', '30min', '90s' or '1d'.")
    return float(found[1]) * _SECONDS[(found[2] or "s").lower()]
