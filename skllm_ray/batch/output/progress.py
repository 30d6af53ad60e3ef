"""Counts of what was done and what it cost, of a unit, a run or a whole output."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

SPENT: Final = (
    "asked",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cost_usd",
    "unpriced",
    "unknown_usd",
)
"""The counts of what was asked and what it cost: a part that is lost or made anew does not undo them."""


@dataclass
class Progress:
    """What was done and what it cost: of a worker since its last report, of a unit, of a run or of a whole output."""

    rows: int = 0
    asked: int = 0
    """Requests that were sent and have an end: an answer, or an error."""
    reused: int = 0
    """Rows whose reply was there already: from an interrupted run."""
    duplicates: int = 0
    """Rows whose text another row had."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    """What is known to be spent."""
    unpriced: int = 0
    """Replies of unknown price."""
    unknown_usd: float = 0.0
    """The most that requests may have cost where it is not known what, or whether, they cost."""
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, other: Progress) -> None:
        """Add another's counts."""
        for name in ("rows", "reused", "duplicates", *SPENT):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors.update(other.errors)

    def bill(self) -> Progress:
        """Return what was asked and what it cost, without the rows that it was for."""
        return Progress(**{name: getattr(self, name) for name in SPENT})
