"""How often and how long a block's rows without an answer are asked again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

FEW: Final = 16
"""Rows: as many may well fail for reasons of their own."""
_FEW_WAIT_S: Final = 120.0
_ROUNDS: Final = 2  # more, where the server answers others


class Patience:
    """Decides how often and how long a block's failed rows are asked again."""

    def __init__(self, outage_s: float, pauses_s: Sequence[float]) -> None:
        self._outage_s, self._pauses_s = outage_s, pauses_s
        self._since: float | None = None
        self.rounds = 0

    def probe(self, keys: Sequence[str]) -> Sequence[str]:
        """Return the keys to ask about: all, or one after the other while the server gives no answer."""
        return keys if self._since is None else [keys[self.rounds % len(keys)]]

    def answered(self) -> None:
        """Note that the server is there."""
        self._since = None

    def pause_s(self, n_missing: int, *, answered: bool) -> float | None:
        """Return how long to wait; None where the rows are to be given up."""
        pause_s = self._pauses_s[min(self.rounds, len(self._pauses_s) - 1)]
        self.rounds += 1
        if answered:
            self._since = None
            return pause_s if self.rounds <= _ROUNDS else None
        now = time.monotonic()
        self._since = self._since or now
        most_s = self._outage_s if n_missing >= FEW else min(_FEW_WAIT_S, self._outage_s)
        return None if now - self._since + pause_s > most_s else pause_s
