"""How long a row is tried, and when a server is given up."""

from __future__ import annotations

from dataclasses import dataclass

from skllm_ray.llm.rate_limit.bucket import LONGEST_PAUSE_S

_LONGEST_SILENCE_S = 30.0


_FEWEST_TRIES = 8  # that began after the first one had failed


_SILENT = {"timeout", "connection"}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a row may take, and how often it is tried."""

    timeout_s: float = 120.0
    """The longest that the server may take for one try, once it is connected."""
    deadline_s: float = 600.0
    """The longest time for a row, with all its tries and pauses, from when the limit first lets it through."""
    max_tries: int = 5
    """How often a row is asked, as long as trying again may help. Tries that a 429 refused do not count."""
    backoff_s: float = 0.5
    """Upper bound of the first random pause between tries; it doubles with every try. What the server says wins."""
    connect_s: float = 10.0
    """The longest that connecting may take."""
    repeats_lost: bool = True
    """Whether to ask again after a failure that leaves open whether the server did its work, and wants to be paid."""
    waits: bool = True
    """Whether a server that had served, and is not there now, is waited for as long as a row may take. A batch job
    waits by itself, and says so."""

    @property
    def try_s(self) -> float:
        """The longest that one try may take in all."""
        return self.timeout_s + self.connect_s


class _Streak:
    """Failed tries in a row, which tell a server that is gone from one that is slow or busy.

    It is gone when nobody was served for `seconds`, and several tries that began after the first failure did no better.
    One that nobody has ever reached is gone after `at_first_s`.
    """

    def __init__(self, seconds: float, at_first_s: float) -> None:
        self.seconds = at_first_s
        self._seconds = seconds
        self._began = self._latest = float("-inf")
        self._tries = 0

    def end(self) -> None:
        """Let the next failure begin a new one."""
        self._latest = float("-inf")

    def goes_on(self, sent_at: float, now: float, served_at: float) -> bool:
        """Take a failure; return whether it is one too many."""
        if served_at > float("-inf"):
            self.seconds = self._seconds
        idle_s = max(self.seconds, LONGEST_PAUSE_S)  # longer than a quota's refusals let everybody wait
        if served_at >= self._began or sent_at > self._latest + idle_s:  # or nobody tried for a while
            self._began, self._tries = now, 0
        self._latest = now
        self._tries += sent_at >= self._began
        return self._tries >= _FEWEST_TRIES and now - self._began >= self.seconds
