"""How many requests at once serve an endpoint best, where nobody declares it: found by trying, and remembered.

By Little's law, what is in flight, divided by how long an answer takes, is what a server gets done. So a level is tried
until its answers tell their mean latency, then twice as many, as long as that brings more; where it does not, latency
has grown faster than throughput, and the level before is the knee. Below the first level it is looked for only where
the server lost by being asked twice as much. A server that has grown since is found by trying again, now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST: Final = 32
"""The first level for a provider's API."""
FIRST_OF_A_SERVER: Final = 4
"""The first level for a server of one's own, which may have a few slots."""
LOOK_S: Final = 0.1
"""How often a holder reports while the knee is looked for, in seconds."""

_LARGEST: Final = 1024
_ENOUGH: Final = 8  # answers that tell of a level
_GAIN: Final = 1.1  # a doubled level must bring so much more
_AGAIN_S: Final = 30.0
_LONGEST_AGAIN_S: Final = 600.0


@dataclass(slots=True)
class Knee:
    """The concurrency of an endpoint, as it is being found."""

    level: float = FIRST
    refused: bool = False
    """Whether a quota refused requests: from then on the level grows slowly, whatever the server could do."""
    seeks: bool = True
    """Whether it doubles."""
    falls: bool = False
    """Whether it halves."""
    before: tuple[float, float] | None = None
    """The level that was left, and its throughput."""
    since: float = float("-inf")
    """From when answers tell of this level: those that were under way before do not."""
    done: int = 0
    seconds: float = 0.0
    again_s: float = _AGAIN_S
    settled_at: float = float("inf")

    def halve(self) -> None:
        """Take a quota's refusal."""
        self.level = max(1.0, self.level / 2)
        self.refused, self.seeks, self.falls = True, False, False

    def grow_slowly(self) -> None:
        """Allow a little more, after a refusal."""
        self.level = min(_LARGEST, self.level + 2)

    @property
    def is_found(self) -> bool:
        """Whether no other level is being tried."""
        return not self.seeks and not self.falls

    def look(self, now: float, done: int, latency_s: float) -> None:
        """Take what holders tell while the level is all used, and go on to another level where it is time."""
        if now < self.since:
            return
        if self.since == float("-inf"):
            self.since = now
        self.done, self.seconds = self.done + done, self.seconds + done * latency_s
        mean_s = self.seconds / self.done if self.done else 0.0
        if self.done < _ENOUGH or now - self.since < 2 * mean_s:
            return
        throughput = self.level / max(mean_s, 1e-6)
        if self.seeks:
            self._seek(now, throughput, mean_s)
        elif self.falls:
            self._fall(now, throughput, mean_s)
        elif now - self.settled_at >= self.again_s:
            self.seeks, self.before = True, None
            self._seek(now, throughput, mean_s)
        else:
            self.done, self.seconds, self.since = 0, 0.0, now

    def _seek(self, now: float, throughput: float, mean_s: float) -> None:
        if self.before is None or throughput >= _GAIN * self.before[1]:
            self.before = (self.level, throughput)
            if self.level < _LARGEST:
                self._go(min(_LARGEST, self.level * 2), now, mean_s)
            else:
                self._settle(now)
            return
        level, known = self.before
        suffers = throughput * _GAIN < known and level > 1
        self._go(level, now, mean_s)
        self.seeks, self.falls, self.before = False, suffers, None
        if not suffers:
            self._settle(now)

    def _fall(self, now: float, throughput: float, mean_s: float) -> None:
        """Try half as many, since the server gets less done the more it is asked."""
        if (self.before is None or throughput >= _GAIN * self.before[1]) and self.level > 1:
            self.before = (self.level, throughput)
            self._go(max(1.0, self.level // 2), now, mean_s)
            return
        if self.before is not None and throughput < _GAIN * self.before[1]:
            self._go(self.before[0], now, mean_s)
        self._settle(now)

    def _go(self, level: float, now: float, mean_s: float) -> None:
        """Try a level; what is under way takes a while, longer where it is too much."""
        self.since = now + (2 * mean_s if level > self.level else mean_s)
        self.level, self.done, self.seconds = level, 0, 0.0

    def _settle(self, now: float) -> None:
        self.again_s = _AGAIN_S if self.settled_at == float("inf") else min(_LONGEST_AGAIN_S, 2 * self.again_s)
        self.seeks, self.falls, self.before, self.settled_at = False, False, None, now
