"""Says in one line that a server is waited for, and in another that it answers again. No SDK here."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from skllm_ray.plain_text import printable
from skllm_ray.tasks.base import RowError

_FAILING_S: Final = 5.0
"""How long all requests fail before it is said."""
_SILENT_S: Final = 30.0
"""How long none is answered before it is said: a model may well take its time."""
AGAIN: Final = "answers again."
_NEVER: Final = float("-inf")
_logger = logging.getLogger(__name__)


class OutageNotice:
    """Knows since when no request was answered. Without it a call would wait for minutes and say nothing.

    The lines are warnings of Python's ``logging``: without any configuration they go to the standard error, which
    notebooks show, and which Ray hands on from workers.

    Parameters
    ----------
    where : str
        The server's address.
    row_s : float
        How long a row may take.
    """

    def __init__(self, where: str, row_s: float) -> None:
        self._where = where
        self._row_s = row_s
        self._since = _NEVER
        self._told_at = _NEVER
        self._reason = ""
        self._trouble = ""

    def failed(self, failure: RowError, now: float) -> None:
        """Note that a try failed for a reason that may pass."""
        if self._since == _NEVER:
            self._since = now
        self._reason = f"{failure.kind}: {failure.message}"

    def look(self, now: float, served_at: float, oldest_sent_at: float | None) -> str:
        """Say what is to be said; return why the server is waited for, empty where it is not, or not for long.

        Parameters
        ----------
        now, served_at : float
            The time, and when a request was last answered.
        oldest_sent_at : float or None
            When the oldest request in flight was sent; None where none is.
        """
        if served_at >= max(self._since, self._told_at) > _NEVER:
            if self._trouble:
                _logger.warning("skllm_ray: %s %s", self._where, AGAIN)
            self._since = self._told_at = _NEVER
            self._trouble = ""
        if self._trouble:
            return self._trouble
        if self._since > _NEVER and now - self._since >= _FAILING_S:
            self._tell(self._since, now, self._reason)
        elif oldest_sent_at is not None and now - max(oldest_sent_at, served_at) >= _SILENT_S:
            self._tell(max(oldest_sent_at, served_at), now, "requests are out, and none is answered")
        return self._trouble

    def _tell(self, since: float, now: float, why: str) -> None:
        self._told_at = now
        clock = datetime.now().astimezone()
        began, ends = (clock + timedelta(seconds=at - now) for at in (since, since + self._row_s))
        self._trouble = printable(
            f"waiting for {self._where}, which has served no row since {began:%H:%M:%S} ({why.rstrip('. ')}). Rows are "
            f"tried until {ends:%H:%M:%S} at the latest (SKLLMConfig.set_timeouts(row_s=…))."
        )
        _logger.warning("skllm_ray: %s", self._trouble)
