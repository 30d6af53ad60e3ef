"""How the sequences of a context share their beginning, and how they forget.

A KV cache lets one token belong to many sequences, and forgets the end of a sequence from any position on. Recurrent
layers have one state per sequence in its place, that of the last token: a token belongs to one sequence, a sequence is
copied or forgotten as a whole, and its state is allocated whether it is used or not. So there a beginning stands in one
sequence, from which rows are copied, and copies of some of its own beginnings are kept for the day when it must become
shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

N_MARKS = 2
"""Sequences that keep earlier states of the shared beginning."""
_WORTH_A_MARK = 16  # tokens
TOGETHER = frozenset(
    {
        "bailingmoe3",
        "deepseek4",
        "falcon-h1",
        "glm5-next",
        "granitehybrid",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "mamba",
        "mamba2",
        "minimax-01",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "qwen4exp",
        "rwkv6",
        "rwkv7",
    }
)
"""Architectures with recurrent layers that were seen to give each of several sequences in one decode its own logits.

llama.cpp mixes them up for some (``plamo2``, ``arwkv7`` and ``rwkv6qwen2``, in the version that was tried): those, and
what was not tried, are decoded one sequence at a time. ``python -m benchmarks.architectures`` tries them all.
"""


class Sequences(Protocol):
    """What an engine's sequences can do. Sequence 0 always holds the shared beginning."""

    shares_tokens: bool
    """Whether one token may belong to several sequences, and the end of a sequence may be removed."""
    decode_together: bool
    """Whether one decode may hold several sequences."""
    n_holders: int
    """How many sequences, from 0 on, a token of the shared beginning is decoded for."""

    def stops(self, kept: int, length: int, ahead: int) -> Sequence[int]:
        """Return up to where the shared beginning is decoded, step by step, the last one being `length`.

        Parameters
        ----------
        kept, length : int
            Tokens that are there, and that shall be there.
        ahead : int
            How many of them the rows that come next will share.
        """
        ...

    def mark(self, length: int) -> None:
        """Take note that the shared beginning has `length` tokens now."""
        ...

    def cut(self, length: int) -> int:
        """Shorten the shared beginning to `length` tokens, or fewer; return how many are left."""
        ...

    def open(self, sequence: int, source: int = 0) -> None:
        """Let an empty sequence begin as `source` stands."""
        ...

    def release(self, sequence: int, n_prefix: int) -> None:
        """Remove what stands behind the shared beginning in one sequence, or, with -1, in all."""
        ...

    def clear(self) -> None:
        """Empty all sequences."""
        ...


class SharedTokens:
    """Sequences of a KV cache: all of them hold the shared beginning.

    Parameters
    ----------
    lib : module
        ``llama_cpp``.
    memory : object
        The context's memory.
    n_sequences : int
        Sequences of the context.
    """

    shares_tokens = True
    decode_together = True

    def __init__(self, lib: ModuleType, memory: Any, n_sequences: int) -> None:
        self._lib, self._memory = lib, memory
        self.n_holders = n_sequences

    def stops(self, kept: int, length: int, ahead: int) -> Sequence[int]:  # noqa: ARG002 - any end can be cut off
        """Return `length` alone."""
        return (length,)

    def mark(self, length: int) -> None:
        """Do nothing: any end can be cut off."""

    def cut(self, length: int) -> int:
        """Remove everything from `length` on."""
        self.remove(-1, length)
        return length

    def open(self, sequence: int, source: int = 0) -> None:
        """Do nothing: the shared beginning stands in every sequence."""

    def release(self, sequence: int, n_prefix: int) -> None:
        """Remove what stands behind the shared beginning."""
        self.remove(sequence, n_prefix)

    def clear(self) -> None:
        """Empty all sequences."""
        self._lib.llama_memory_clear(self._memory, False)

    def remove(self, sequence: int, start: int, stop: int = -1) -> None:
        """Remove the tokens from position `start` up to `stop`, or to the end, of one sequence, or, with -1, of all."""
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, start, stop):
            raise RuntimeError("llama.cpp does not forget the end of a sequence of this model.")


class StateCopies:
    """Sequences of recurrent layers: rows are copies of sequence 0.

    A copy costs nothing until a token is decoded for it: llama.cpp lets both have one state until then.

    Parameters
    ----------
    lib : module
        ``llama_cpp``.
    memory : object
        The context's memory.
    first_mark : int
        The first of the `N_MARKS` sequences that keep earlier states of the shared beginning; rows take those before.
    decode_together : bool
        Whether one decode may hold several sequences.
    """

    shares_tokens = False
    n_holders = 1

    def __init__(self, lib: ModuleType, memory: Any, first_mark: int, decode_together: bool) -> None:
        self._lib, self._memory = lib, memory
        self.decode_together = decode_together
        self._first_mark = first_mark
        self._marks: list[int] = []
        """The lengths of what the marks hold, ascending. They are beginnings of sequence 0, and take no more cells."""
        self._opened: set[int] = set()

    def stops(self, kept: int, length: int, ahead: int) -> Sequence[int]:
        """Return `length`, and before it what the next rows will need, to be marked."""
        return (ahead, length) if kept + _WORTH_A_MARK <= ahead < length else (length,)

    def mark(self, length: int) -> None:
        """Keep a copy of sequence 0."""
        if len(self._marks) == N_MARKS:
            self._forget(self._first_mark + len(self._marks) - 1)
            self._marks.pop()
        self._copy(0, self._first_mark + len(self._marks))
        self._marks.append(length)

    def cut(self, length: int) -> int:
        """Go back to the longest beginning that is kept and not longer than `length`."""
        while self._marks and self._marks[-1] > length:
            self._marks.pop()
            self._forget(self._first_mark + len(self._marks))
        self._forget(0)
        if not self._marks:
            return 0
        self._copy(self._first_mark + len(self._marks) - 1, 0)
        return self._marks[-1]

    def open(self, sequence: int, source: int = 0) -> None:
        """Copy `source`."""
        self._copy(source, sequence)
        self._opened.add(sequence)

    def release(self, sequence: int, n_prefix: int) -> None:  # noqa: ARG002 - a row is forgotten as a whole
        """Empty one sequence, or, with -1, all but those that hold the shared beginning."""
        for one in [*self._opened] if sequence < 0 else [sequence]:
            self._forget(one)
            self._opened.discard(one)

    def clear(self) -> None:
        """Empty all sequences."""
        self._lib.llama_memory_clear(self._memory, False)
        self._marks.clear()
        self._opened.clear()

    def _copy(self, source: int, target: int) -> None:
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def _forget(self, sequence: int) -> None:
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1):
            raise RuntimeError(f"llama.cpp does not forget sequence {sequence} of this model.")
