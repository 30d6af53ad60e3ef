"""Scores and best labels of rows that do not depend on the rows which are decoded with them, for CPUs.

Rows stand in :mod:`.places`. The nodes of a row's continuations are numbered as in its trie's only part, 0 being where
they part, and each has a cell by its number. So a node has the same logits in scores, which ask for all nodes at once,
and in a search for the likeliest continuation, which asks for those that may still win.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.decoding import Decoding, common_length
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.places import KERNEL, LANES, Place, Places, Tokens
from skllm_ray.llm.gpt.clients.llama_cpp.trie import Row


@dataclass(slots=True)
class Standing:
    """A row that is under way."""

    row: Row
    nodes: Sequence[int] = field(default_factory=tuple)
    """The continuations' tokens whose logits are asked for next, ascending, 0 first; none when the row is done."""


def stands(engine: Engine, row: Row) -> bool:
    """Return whether all continuations of a row have a sequence and logits in one decode."""
    parts = row.trie.parts
    shares = engine.sequences.shares_tokens
    return shares and len(parts) == 1 and parts[0].n_continuations + 2 <= engine.n_sequences


Asked = tuple[Decoding, list[Standing]]
"""A decode, and whose `nodes` it gives, row by row."""


def decodes(engine: Engine, rows: Sequence[Standing]) -> Iterator[Asked]:
    """Decode what rows ask for, many at a time, until none asks for more.

    Parameters
    ----------
    engine : Engine
        The model, whose sequences share tokens.
    rows : sequence of Standing
        The rows, whose tries have one part each. What they ask for next is to be set whenever a decode is yielded.
    """
    commons = [one.row.common for one in rows]
    for run, n_prefix in engine.runs(commons, LANES):
        try:
            yield from _Run(engine, [rows[i] for i in run], _tail([commons[i] for i in run], n_prefix)).decodes()
        finally:
            engine.release()


def _tail(commons: Sequence[list[int]], n_prefix: int) -> list[int]:
    """Return what the rows of a run, which are sorted, share behind the engine's prefix."""
    if len(commons) == 1:
        return []
    length = min(common_length(commons[0], commons[-1]), min(map(len, commons)) - 1, n_prefix + LANES - 1)
    return commons[0][n_prefix:length]


class _Run:
    """The rows of one run, which share a beginning, and `tail` behind it."""

    def __init__(self, engine: Engine, rows: Sequence[Standing], tail: list[int]) -> None:
        self._engine = engine
        self._begin = engine.n_prefix + len(tail)
        self._waiting = deque(sorted(rows, key=self._need))  # a place that a longer row takes over has less to fill
        self._standing: dict[Place, Standing] = {}
        self._places = Places(engine, tail, max(one.row.trie.parts[0].n_continuations for one in rows))

    def decodes(self) -> Iterator[Asked]:
        engine, places = self._engine, self._places
        while self._waiting or self._standing:
            if not self._standing and not any(self._fits(place) for place in places.all):
                places.start([self._need(one) for one in self._waiting])
            batch = engine.new_batch()
            asked = self._lay(batch)
            yield engine.start(engine.filled_up(batch, KERNEL if places.completes else 1)), asked
            places.decoded()
            self._standing = {place: one for place, one in self._standing.items() if one.nodes}

    def _lay(self, batch: Batch) -> list[Standing]:
        """Add what the rows that stand ask next, and new rows, in the order of their places; return them."""
        asked: list[Standing] = []
        for place in self._places.all:
            if place in self._standing:
                self._put(batch, place, self._standing[place], asked)
            elif self._fits(place) and self._put(batch, place, self._waiting[0], asked):
                self._standing[place] = self._waiting.popleft()
        while self._waiting:
            need = self._need(self._waiting[0])
            full = len(batch) and len(batch) + self._places.size(need) > self._engine.n_batch
            new = None if full else self._places.open(need)
            if new is None or not self._put(batch, new, self._waiting[0], asked):
                break
            self._standing[new] = self._waiting.popleft()
        return asked

    def _put(self, batch: Batch, place: Place, one: Standing, asked: list[Standing]) -> bool:
        """Add what a row asks next, if the decode has room for it; return whether it had."""
        tokens, is_new = self._tokens(one), place not in self._standing
        n_outputs = sum(len(each.nodes) for each in asked) + len(one.nodes)
        n_tokens = len(batch) + self._places.n_added(place, tokens, is_new=is_new)
        if len(batch) and (n_tokens > self._engine.n_batch or n_outputs > self._engine.n_outputs):
            return False
        self._places.put(batch, place, tokens, is_new=is_new)
        asked.append(one)
        return True

    def _fits(self, place: Place) -> bool:
        """Return whether the next row that waits fits into a place."""
        return bool(self._waiting) and self._places.holds(place, self._need(self._waiting[0]))

    def _need(self, one: Standing) -> int:
        """Return the cells of a row and of all its continuations."""
        return len(one.row.common) - self._begin + len(one.row.trie.parts[0].tokens)

    def _tokens(self, one: Standing) -> Tokens:
        """Return what a row asks for; its prompt where that is the first thing."""
        row, part = one.row, one.row.trie.parts[0]
        own = row.common[self._begin :] if one.nodes[0] == 0 else []
        nodes = np.asarray(one.nodes, np.int64)
        nodes = nodes[nodes > 0] - 1
        n_own, n_all = len(own), len(own) + len(nodes)
        start = len(row.common) - self._begin
        return Tokens(
            np.concatenate([np.arange(n_own), start + nodes]),
            np.concatenate([np.asarray(own, np.int32), part.tokens[nodes]]),
            np.concatenate([np.arange(self._begin, self._begin + n_own), len(row.common) + part.depths[nodes]]),
            np.concatenate([np.zeros(n_own, np.int64), part.firsts[nodes]]),
            np.concatenate([np.full(n_own, part.n_continuations), part.counts[nodes]]),
            np.arange(n_all) >= n_own - 1,
        )
