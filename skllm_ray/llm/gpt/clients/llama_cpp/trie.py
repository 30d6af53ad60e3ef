"""The continuations of a prompt as a trie, and rows: prompts with their tries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.decoding import common_length
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine


class ContextOverflowError(Exception):
    """A row needs more tokens than the context holds."""

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        super().__init__(n_tokens, n_ctx)
        self.n_tokens, self.n_ctx = n_tokens, n_ctx


Scores = NDArray[np.float64] | ContextOverflowError
"""A row's log-probabilities, one per continuation, or why there are none."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a trie's continuations, so many that one decode can hold them. Node 0 is where they part."""

    tokens: NDArray[np.int32]
    """Each node's token, of shape (n_nodes,), node 0 left out, shallow ones first."""
    depths: NDArray[np.int32]
    firsts: NDArray[np.int32]
    """The first of the consecutive sequences that a node belongs to."""
    counts: NDArray[np.int32]
    steps: NDArray[np.int64]
    """Which continuation takes which token after which node, of shape (n_steps, 3)."""
    ends: NDArray[np.int64]
    """The same of the last tokens, of shape (n_continuations, 3)."""
    numbers: dict[tuple[int, ...], int]
    """Each node's number by the tokens that lead to it."""

    @property
    def n_continuations(self) -> int:
        """How many continuations it has."""
        return len(self.ends)

    @property
    def n_outputs(self) -> int:
        """Tokens whose logits give all scores."""
        return 1 + len(self.tokens)


class Trie:
    """The continuations of a prompt, as a tree of tokens.

    Parameters
    ----------
    continuations : sequence of token sequences
        At least one, all different, none the beginning of another.
    most_outputs : int
        How many logits one decode can keep.
    most_sequences : int
        How many sequences a row's continuations can take: one of the engine's stays free for the prefix alone.
    most_shared : int or None, default=None
        How many of the tokens that all continuations begin with may count as the prompt's, so that the scores leave
        their probability out; None sets no limit.

    Raises
    ------
    ValueError
        If a continuation is empty.
    """

    def __init__(
        self,
        continuations: Sequence[Sequence[int]],
        most_outputs: int,
        most_sequences: int,
        most_shared: int | None = None,
    ) -> None:
        if not all(continuations):
            raise ValueError("A continuation needs at least one token.")
        low, high = min(map(tuple, continuations)), max(map(tuple, continuations))
        n_shared = min(common_length(low, high), min(map(len, continuations)) - 1)
        n_shared = n_shared if most_shared is None else min(n_shared, most_shared)
        self.shared = list(continuations[0][:n_shared])
        self.tails = [tuple(tail[n_shared:]) for tail in continuations]
        self.n_nodes = len({tail[:depth] for tail in self.tails for depth in range(1, len(tail))})
        self._most_outputs, self._most_sequences = most_outputs, most_sequences
        self._parts: list[Part] | None = None

    def __len__(self) -> int:
        return len(self.tails)

    @property
    def parts(self) -> list[Part]:
        """The continuations in parts that one decode can hold."""
        if self._parts is None:
            self._parts = [self._part(members) for members in self._members()]
        return self._parts

    def _members(self) -> Iterator[list[int]]:
        members: list[int] = []
        n_outputs = 1
        for index in sorted(range(len(self.tails)), key=self.tails.__getitem__):
            need = len(self.tails[index]) - 1
            if members and (len(members) >= self._most_sequences or n_outputs + need > self._most_outputs):
                yield members
                members, n_outputs = [], 1
            members.append(index)
            n_outputs += need
        yield members

    def _part(self, members: Sequence[int]) -> Part:
        sequences: dict[tuple[int, ...], list[int]] = {}
        for sequence, index in enumerate(members):
            for depth in range(1, len(self.tails[index])):
                sequences.setdefault(self.tails[index][:depth], []).append(sequence)
        nodes = sorted(sequences, key=len)
        numbers = {(): 0} | {path: number for number, path in enumerate(nodes, 1)}
        steps, ends = [], []
        for index in members:
            tail = self.tails[index]
            walk = [(index, numbers[tail[:depth]], token) for depth, token in enumerate(tail)]
            steps += walk[:-1]
            ends.append(walk[-1])
        return Part(
            np.asarray([path[-1] for path in nodes], np.int32),
            np.asarray([len(path) - 1 for path in nodes], np.int32),
            np.asarray([sequences[path][0] for path in nodes], np.int32),
            np.asarray([len(sequences[path]) for path in nodes], np.int32),
            np.asarray(steps, np.int64).reshape(-1, 3),
            np.asarray(ends, np.int64).reshape(-1, 3),
            numbers,
        )


@dataclass(slots=True)
class Row:
    """A prompt, and how it may go on."""

    index: int
    """Its place among the rows of the call."""
    common: list[int]
    """The prompt's tokens, and those that all continuations begin with."""
    trie: Trie


def tokens_needed(prompt: Sequence[int], trie: Trie) -> int:
    """Return how many tokens of the context it takes to compare the continuations of a prompt."""
    return len(prompt) + len(trie.shared) + max(len(part.tokens) for part in trie.parts)


def fitting(
    engine: Engine, prompts: Sequence[Sequence[int]], tries: Sequence[Trie], results: list[Scores]
) -> list[Row]:
    """Return the rows that the context can hold; the others' `results` say that it cannot."""
    rows = []
    for index, (prompt, trie) in enumerate(zip(prompts, tries, strict=True)):
        common = [*prompt, *trie.shared]
        if not common:
            raise ValueError("A row needs at least one token before its continuations part.")
        needed = tokens_needed(prompt, trie)
        if needed > engine.n_ctx:
            results[index] = ContextOverflowError(needed, engine.n_ctx)
        else:
            rows.append(Row(index, common, trie))
    return rows
