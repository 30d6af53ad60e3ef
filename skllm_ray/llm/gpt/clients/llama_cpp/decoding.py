"""Logits of a decode that may still be under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Decoding:
    """The logits of a batch, of which the last may still be on their way from a GPU.

    Parameters
    ----------
    view : callable
        Waits for a decode, and returns so many of its logits in llama.cpp's own buffer.
    """

    def __init__(self, view: Callable[[int], NDArray[np.float32]]) -> None:
        self._view = view
        self._taken: list[NDArray[np.float32]] = []
        self.n_in_buffer = 0
        """Rows of logits in llama.cpp's buffer, which the next decode overwrites."""

    def take(self) -> None:
        """Copy what is in llama.cpp's buffer."""
        if self.n_in_buffer:
            self._taken.append(self._view(self.n_in_buffer).copy())
            self.n_in_buffer = 0

    def logits(self) -> NDArray[np.float32]:
        """Return the logits of the wanted tokens, of shape (n_wanted, n_vocab), once; valid until the next decode."""
        if self.n_in_buffer and not self._taken:
            n_wanted, self.n_in_buffer = self.n_in_buffer, 0
            return self._view(n_wanted)
        self.take()
        if len(self._taken) == 1:
            return self._taken[0]
        return np.concatenate(self._taken) if self._taken else np.empty((0, 0), np.float32)


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many tokens, or characters, two sequences both begin with."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    low, high = 0, most  # one[:low] == other[:low], one[:high] != other[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
