"""One quota of a bucket: how much of it counts now, and how fast more may follow. No clock of its own."""

from __future__ import annotations

import heapq

from skllm_ray.llm.rate_limit.messages import HEARTBEAT_S, LARGEST_LEASE, WINDOW_S

_SLACK_S = 0.6  # the pacer's own margin for requests that travel longer than others


class Meter:
    """One quota: what was used in the last window, what is out on lease, how fast more may follow."""

    def __init__(self, now: float) -> None:
        self.limit: int | None = None
        self.out = 0
        self.ratio = 1.0
        """What is used of what is set aside, as far as known; the pacer counts on it, the window does not."""
        self._dated: list[tuple[float, int]] = []
        self._used = 0
        self._balance = 0.0
        self._then = now

    def used(self, now: float) -> int:
        """Return what counts now."""
        while self._dated and self._dated[0][0] <= now:
            self._used -= heapq.heappop(self._dated)[1]
        return self._used + self.out

    def add(self, amount: int, date: float) -> None:
        """Count `amount`, used at `date`, for a window."""
        if amount > 0:
            heapq.heappush(self._dated, (date + WINDOW_S, amount))
            self._used += amount

    @property
    def burst(self) -> float:
        """Return what may be granted at once after a silence: a second's worth."""
        return max(1.0, min(LARGEST_LEASE, (self.limit or 0) / WINDOW_S))

    def refill(self, now: float, burst: float) -> float:
        """Return what the pacer would grant."""
        if self.limit is None:
            return float("inf")
        rate = max(self.limit - burst + 1, self.limit / 2) / (WINDOW_S + _SLACK_S)
        self._balance = min(burst, self._balance + rate * (now - self._then))
        self._then = now
        return self._balance

    def take(self, amount: int) -> None:
        """Set `amount` aside."""
        self.out += amount
        self._balance -= amount * self.ratio

    def give_back(self, reserved: int, ratio: float, used: int, burst: float) -> None:
        """Take back what was set aside, at the `ratio` of then, for what was used."""
        self.out -= reserved
        self._balance = min(burst, self._balance + reserved * ratio - used)
        if reserved and used:
            self.ratio += 0.1 * (min(1.0, used / reserved) - self.ratio)

    def wait_s(self, now: float, need: float, burst: float) -> float:
        """Return when `need` may be there."""
        if self.limit is None:
            return 0.0
        rate = max(self.limit - burst + 1, self.limit / 2) / (WINDOW_S + _SLACK_S)
        paced = (min(need * self.ratio, burst) - self._balance) / rate
        full = self.used(now) + need > self.limit
        freed = self._dated[0][0] - now if full and self._dated else 0.0
        return max(paced, min(freed, HEARTBEAT_S), 0.0)
