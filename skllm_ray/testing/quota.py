"""Quotas in a sliding window, as API servers enforce them."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 60.0


class Window:
    """Counts what the last 60 s held, and the most that any 60 s held."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.most = 0
        self._used = 0
        self._seen: deque[tuple[float, int]] = deque()

    def wait_s(self, now: float, amount: int) -> float:
        """Return how long `amount` has to wait; 0 if there is room."""
        self._forget(now)
        if self.limit is None or self._used + amount <= self.limit:
            return 0.0
        left = self._used + amount - self.limit
        for date, used in self._seen:
            left -= used
            if left <= 0:
                return date + _WINDOW_S - now
        return _WINDOW_S

    def add(self, now: float, amount: int) -> None:
        """Count `amount` as used."""
        self._forget(now)
        self._seen.append((now, amount))
        self._used += amount
        self.most = max(self.most, self._used)

    def headers(self, what: str, now: float) -> tuple[tuple[str, str], ...]:
        """Return the headers that tell what is left; none without a limit."""
        if self.limit is None:
            return ()
        self._forget(now)
        left = max(0, self.limit - self._used)
        reset_s = self._seen[-1][0] + _WINDOW_S - now if self._seen else 0.0
        return (
            (f"x-ratelimit-limit-{what}", str(self.limit)),
            (f"x-ratelimit-remaining-{what}", str(left)),
            (f"x-ratelimit-reset-{what}", f"{reset_s:.3f}s"),
        )

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0][0] <= now - _WINDOW_S:
            self._used -= self._seen.popleft()[1]
