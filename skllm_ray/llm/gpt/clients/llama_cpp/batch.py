"""The tokens of a decode, in numpy arrays that llama.cpp reads in place.

A row of Python calls per token would cost as much as a small model takes to decode it; here every call adds a run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SEQUENCES = 256  # llama.cpp's LLAMA_MAX_SEQ
_SEQUENCES = np.arange(MAX_SEQUENCES, dtype=np.int32)
_FIRST = _SEQUENCES.ctypes.data
_POINTER = ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))


class Batch:
    """Runs of tokens, each at consecutive positions of consecutive sequences.

    Parameters
    ----------
    capacity : int, default=1024
        Tokens that the arrays begin with; they grow.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.n_tokens = 0
        self.n_filled = 0
        """How many of them only keep the others in their places."""
        self.tokens = np.empty(capacity, np.int32)
        self.positions = np.empty(capacity, np.int32)
        self.n_sequences = np.empty(capacity, np.int32)
        self.sequences = np.empty(capacity, np.uint64)  # addresses within _SEQUENCES
        self.wanted = np.zeros(capacity, np.int8)

    def __len__(self) -> int:
        return self.n_tokens

    def add(
        self,
        tokens: Sequence[int] | NDArray[np.int32],
        position: int | NDArray[np.int32],
        sequence: int | NDArray[np.int32],
        n_sequences: int | NDArray[np.int32] = 1,
        *,
        wanted: bool | NDArray[np.bool_] = False,
        last_wanted: bool = False,
    ) -> None:
        """Add a run of tokens.

        Parameters
        ----------
        tokens : sequence of int of length n
            The tokens.
        position : int or ndarray of shape (n,)
            The first one's position, or each one's.
        sequence, n_sequences : int or ndarray of shape (n,)
            The first sequence that they belong to, and to how many consecutive ones.
        wanted : bool or ndarray of bool of shape (n,)
            Whether the logits of all, or of each one, are to be kept.
        last_wanted : bool
            Whether those of the last one are.
        """
        start, stop = self.n_tokens, self.n_tokens + len(tokens)
        if stop > len(self.tokens):
            self._grow(stop)
        self.tokens[start:stop] = tokens
        self.positions[start:stop] = (
            np.arange(position, position + len(tokens)) if isinstance(position, int) else position
        )
        self.n_sequences[start:stop] = n_sequences
        self.sequences[start:stop] = _FIRST + 4 * np.asarray(sequence, np.uint64)
        self.wanted[start:stop] = wanted
        if last_wanted:
            self.wanted[stop - 1] = 1
        self.n_tokens = stop

    def fill(self, n_tokens: int, position: int, sequence: int) -> None:
        """Add tokens that nobody looks at, of one sequence from `position` on."""
        self.add(np.full(n_tokens, self.tokens[0] if self.n_tokens else 0, np.int32), position, sequence)
        self.n_filled += n_tokens

    def ends(self) -> list[int]:
        """Return where the tokens of each sequence end, where they follow upon one another."""
        return [*(np.flatnonzero(np.diff(self.sequences[: len(self)])) + 1).tolist(), len(self)]

    def clear(self) -> None:
        """Forget all tokens."""
        self.n_tokens = self.n_filled = 0

    def part(self, lib: Any, start: int, stop: int) -> Any:
        """Return tokens `start` to `stop` as a ``llama_batch`` that shares this object's memory."""
        batch = lib.llama_batch()
        batch.n_tokens = stop - start
        batch.token = _pointer(self.tokens, start)
        batch.pos = _pointer(self.positions, start)
        batch.n_seq_id = _pointer(self.n_sequences, start)
        batch.seq_id = ctypes.cast(self.sequences.ctypes.data + 8 * start, _POINTER)
        batch.logits = ctypes.cast(self.wanted.ctypes.data + start, ctypes.POINTER(ctypes.c_int8))
        return batch

    def _grow(self, needed: int) -> None:
        size = max(needed, 2 * len(self.tokens))
        for name in ("tokens", "positions", "n_sequences", "sequences", "wanted"):
            before = getattr(self, name)
            after = np.zeros(size, before.dtype)
            after[: len(before)] = before
            setattr(self, name, after)


def _pointer(array: NDArray[np.int32], start: int) -> Any:
    return ctypes.cast(array.ctypes.data + 4 * start, ctypes.POINTER(ctypes.c_int32))
