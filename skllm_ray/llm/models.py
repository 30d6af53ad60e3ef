"""Default models, in one table, with the dates on which their providers end them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """A default, and how long it can be relied on."""

    name: str
    ends: date | None
    """The day on which the provider turns it off; None where none is announced."""


DEFAULTS: Final = {
    "gpt": DefaultModel("gpt-5.4-mini", None),
    "vertex": DefaultModel("gemini-3.5-flash-lite", None),
    "gpt_tunable": DefaultModel("gpt-4.1-mini-2025-04-14", date(2027, 1, 14)),
    "vertex_tunable": DefaultModel("gemini-3.5-flash-lite", None),
}
"""The default model of each family. Changing one is a minor release, listed in CHANGELOG.md."""
