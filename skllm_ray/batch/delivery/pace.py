"""How much of a provider's queue the batches of a run may fill, as its refusals tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from skllm_ray.llm.provider_batches import ProviderBatch

_LIMIT: Final = re.compile(r"limit\D{0,20}(\d[\d,._]*\d|\d)", re.IGNORECASE)


class QueueLimit:
    """The tokens that the provider's queue takes at once. It tells them when a batch fails for it, if at all.

    Attributes
    ----------
    tokens : int or None
        The limit; None where none is known.
    """

    def __init__(self) -> None:
        self.tokens: int | None = None

    def room(self, live: Sequence[ProviderBatch]) -> int | None:
        """Return the tokens that another batch may hold beside the live ones; None for no limit."""
        if self.tokens is None:
            return None
        return max(0, self.tokens - sum(record.spec.tokens for record in live))

    def refused(self, record: ProviderBatch, live: Sequence[ProviderBatch]) -> None:
        """Learn from a batch that failed since too many tokens were enqueued beside the `live` ones.

        Where the message names the limit, four fifths of it are taken, since tokens are only estimated here. Otherwise
        half of what was enqueued is tried next.
        """
        found = _LIMIT.search(record.error or "")
        told = int(re.sub(r"\D", "", found[1])) if found else 0
        enqueued = record.spec.tokens + sum(one.spec.tokens for one in live)
        before = enqueued if self.tokens is None else min(self.tokens, enqueued)
        least = before // 2
        self.tokens = max(1, min(told * 4 // 5, before - 1) if told and told * 4 // 5 < before else least)
