"""Counts that the blocks of a lazy Dataset add up to, wherever they are done and however often."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError


class _Counts:
    """Holds what each block counted. A block that is done again counts once."""

    def __init__(self) -> None:
        self._by_block: dict[str, Mapping[str, int]] = {}

    def put(self, block: str, counts: Mapping[str, int]) -> dict[str, int]:
        """Take a block's counts, and return the sum of all."""
        self._by_block[block] = counts
        return self.total()

    def total(self) -> dict[str, int]:
        """Return the sum of all blocks."""
        found: dict[str, int] = {}
        for counts in self._by_block.values():
            for name, n in counts.items():
                found[name] = found.get(name, 0) + n
        return found


@dataclass(frozen=True)
class Tally:
    """Counts in an actor of Ray's, which ends with the process that began it."""

    actor: Any

    @classmethod
    def begin(cls) -> Tally:
        """Start it."""
        return cls(ray.remote(num_cpus=0)(_Counts).remote())

    def put(self, block: str, counts: Mapping[str, int]) -> dict[str, int]:
        """Add a block's counts, and return the sum of all; nothing where nobody counts any more."""
        return self._answer("put", block, counts)

    def total(self) -> dict[str, int]:
        """Return the sum of all blocks so far; nothing where nobody counts any more."""
        return self._answer("total")

    def _answer(self, method: str, *given: Any) -> dict[str, int]:
        """Ask the actor; where its Ray has ended, or is another by now, nobody answers."""
        if not ray.is_initialized():
            return {}
        with suppress(RayError, ValueError):
            return dict(ray.get(getattr(self.actor, method).remote(*given)))
        return {}
