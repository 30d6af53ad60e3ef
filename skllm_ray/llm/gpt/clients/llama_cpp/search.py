"""The likeliest continuation of each of many prompts, without scoring all of them.

A best-first search per row, of many rows in one decode: behind the prompts' ends all continuations' first tokens are
known, the likeliest partial continuation is followed, and as a partial score can only fall, a row is done when a whole
continuation is at least as likely as all partial ones. Each decode takes the next steps of the rows that are under way,
and fills up with prompts of those to come. With a vocabulary of 100,000 and more, a token's logits cost more than the
token itself, so that this pays for few labels as well.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.logarithms import log_sum_exp
from skllm_ray.llm.gpt.clients.llama_cpp.scoring import ContextOverflowError, Row, Scores, Trie, fitting

_MOST_BRANCHES = 16  # of one row in one decode


@dataclass(slots=True)
class Node:
    """A beginning that some continuations share."""

    path: tuple[int, ...]
    children: list[Node] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    """The last tokens of the continuations that end here, each with its continuation's position."""

    @property
    def tokens(self) -> list[int]:
        """The children's last tokens."""
        return [child.path[-1] for child in self.children]

    def chain(self) -> list[Node]:
        """Return this node and those behind it up to where continuations part or end."""
        found = [self]
        while len(found[-1].children) == 1 and not found[-1].ends:
            found.append(found[-1].children[0])
        return found


def tree(trie: Trie) -> Node:
    """Return the root of a trie's continuations."""
    nodes: dict[tuple[int, ...], Node] = {(): Node(())}
    for index, tail in enumerate(trie.tails):
        for depth in range(1, len(tail)):
            if tail[:depth] not in nodes:
                nodes[tail[:depth]] = Node(tail[:depth])
                nodes[tail[: depth - 1]].children.append(nodes[tail[:depth]])
        nodes[tail[:-1]].ends.append((tail[-1], index))
    return nodes[()]


@dataclass(slots=True)
class _Step:
    """Nodes of a row whose logits are asked for, one behind the other."""

    search: _Search
    nodes: list[Node]
    score: float
    """Of what leads to the first one."""
    sequence: int = 0
    """Where it is decoded; 0 for a prompt, which takes all of its row's."""


@dataclass(slots=True)
class _Search:
    """A row that is under way."""

    row: Row
    first: int
    """The first of its sequences."""
    winner: int = -1
    highest: float = -np.inf
    second: float = -np.inf
    """The score of the next likeliest whole continuation."""
    margin: float = 0.0
    """How far below the best one a continuation is of interest."""
    width: int = 1
    partial: list[tuple[float, int, Node]] = field(default_factory=list)
    """A heap: the negative score, a number that no other entry has, and what was not followed yet."""
    n_pushed: int = 0

    def push(self, node: Node, score: float) -> None:
        """Keep a partial continuation that may still win, or come close."""
        if score > self.highest - self.margin:
            self.n_pushed += 1
            heapq.heappush(self.partial, (-score, self.n_pushed, node))

    def steps(self, most: int) -> list[_Step]:
        """Return the likeliest steps that may lead to a better continuation; none when the row is done."""
        found: list[_Step] = []
        while not self.is_done and len(found) < min(most, self.width):
            score, _, node = heapq.heappop(self.partial)
            found.append(_Step(self, node.chain(), -score))
        self.width = min(2 * self.width, _MOST_BRANCHES)
        return found

    @property
    def is_done(self) -> bool:
        """Whether nothing that was not followed can win, or come close; or whether two are close already."""
        return self.is_close or not self.partial or -self.partial[0][0] <= self.highest - self.margin

    @property
    def is_close(self) -> bool:
        """Whether the two likeliest differ by less than the margin, and no other can leave them behind."""
        bound = -self.partial[0][0] if self.partial else -np.inf
        return self.second > self.highest - self.margin and bound <= self.highest


Found = int | ContextOverflowError | None
"""A row's likeliest continuation; None where the two likeliest are too close for a search to tell."""


def best(engine: Engine, prompts: Sequence[Sequence[int]], tries: Sequence[Trie], margin: float = 0.0) -> list[Found]:
    """Return the position of every prompt's most likely continuation.

    Parameters
    ----------
    engine : Engine
        The model, whose sequences share tokens.
    prompts : sequence of token sequences, of length n_rows
        What comes before.
    tries : sequence of Trie, of length n_rows
        Each row's continuations.
    margin : float, default=0.0
        Of log-probabilities: where the two likeliest differ by less, there is no answer.

    Raises
    ------
    ValueError
        If a row has no token before its continuations part.
    """
    overflows: list[Scores] = [np.zeros(0)] * len(prompts)
    rows = fitting(engine, prompts, tries, overflows)
    found: list[Found] = [entry if isinstance(entry, ContextOverflowError) else 0 for entry in overflows]
    for run, n_prefix in engine.runs([row.common for row in rows]):
        for search in _Searcher(engine, [rows[i] for i in run], n_prefix, margin).run():
            found[search.row.index] = None if search.is_close else search.winner
    return found


class _Searcher:
    """Searches the rows of one run, whose shared beginning stands in all sequences."""

    def __init__(self, engine: Engine, rows: Sequence[Row], n_prefix: int, margin: float) -> None:
        self._engine, self._n_prefix, self._margin = engine, n_prefix, margin
        self._waiting = deque(rows)
        self._roots = {id(trie): tree(trie) for trie in {id(row.trie): row.trie for row in rows}.values()}
        branches = min(_MOST_BRANCHES, max(len(row.trie) for row in rows), engine.n_sequences - 1)
        self._branches = branches
        self._free = list(range(1, engine.n_sequences - branches + 1, branches))[::-1]
        self._longest = max(len(tail) for row in rows for tail in row.trie.tails)
        self._under_way: list[_Search] = []
        self._quotes = frozenset(engine.quotes.tolist())

    def run(self) -> list[_Search]:
        """Return the searches, all done."""
        engine = self._engine
        done: list[_Search] = []
        try:
            while self._waiting or self._under_way:
                batch = engine.new_batch()
                steps = [*self._lay_steps(batch), *self._lay_rows(batch)]
                self._take_in(steps, engine.decode(batch))
                for step in steps:
                    if step.sequence:
                        engine.sequences.release(step.sequence, len(step.search.row.common))
                for search in [one for one in self._under_way if one.is_done]:
                    self._under_way.remove(search)
                    self._free.append(search.first)
                    for sequence in range(search.first, search.first + self._branches):
                        engine.release(sequence)
                    done.append(search)
        finally:
            engine.release()
        return done

    def _lay_steps(self, batch: Batch) -> Iterator[_Step]:
        """Add what the rows under way ask next, as far as there is room; the rest waits."""
        engine, n_outputs = self._engine, 0
        room = min(engine.n_batch, engine.room - self._n_cells())
        for search in self._under_way:
            for branch, step in enumerate(search.steps(self._branches)):
                path = step.nodes[-1].path
                n_outputs += len(step.nodes)
                if len(batch) and (len(batch) + len(path) > room or n_outputs > engine.n_outputs):
                    search.push(step.nodes[0], step.score)
                    continue
                step.sequence = search.first + branch
                wanted = np.arange(len(path)) >= len(path) - len(step.nodes)
                batch.add(path, len(search.row.common), step.sequence, wanted=wanted)
                yield step

    def _lay_rows(self, batch: Batch) -> Iterator[_Step]:
        """Fill the decode up with prompts."""
        engine, cells = self._engine, self._n_cells() + len(batch)
        n_outputs = int(batch.wanted[: len(batch)].sum())
        while self._waiting and self._free:
            row = self._waiting[0]
            tokens = row.common[self._n_prefix :]
            full = len(batch) + len(tokens) > engine.n_batch or cells + len(tokens) + self._longest > engine.room
            if (full or n_outputs >= engine.n_outputs) and (len(batch) or self._under_way):
                break
            search = _Search(self._waiting.popleft(), self._free.pop(), margin=self._margin)
            batch.add(tokens, self._n_prefix, search.first, self._branches, last_wanted=True)
            self._under_way.append(search)
            cells, n_outputs = cells + len(tokens), n_outputs + 1
            yield _Step(search, [self._roots[id(row.trie)]], 0.0)

    def _n_cells(self) -> int:
        return sum(len(search.row.common) - self._n_prefix for search in self._under_way)

    def _take_in(self, steps: Sequence[_Step], logits: NDArray[np.float32]) -> None:
        totals = log_sum_exp(logits, self._engine.options.n_threads)
        output = 0
        for step in steps:
            score = step.score
            for number, node in enumerate(step.nodes, 1):
                after = step.nodes[number] if number < len(step.nodes) else None
                score = self._note(step.search, node, score - totals[output], logits[output], after)
                output += 1

    def _note(
        self, search: _Search, node: Node, score: float, logits: NDArray[np.float32], after: Node | None
    ) -> float:
        """Take in the logits behind a node; return the score of `after`, which is one of its children."""
        closing: float | None = None  # any token that begins with a quote closes a label
        for token, position in node.ends:
            if token in self._quotes:
                closing = closing if closing is not None else self._closing(logits)
                value = score + closing
            else:
                value = score + float(logits[token])
            if value > search.highest:
                search.winner, search.highest, search.second = position, value, search.highest
            else:
                search.second = max(search.second, value)
        if after is not None:
            return score + float(logits[after.path[-1]])
        if node.children:
            for child, value in zip(node.children, logits[node.tokens].tolist(), strict=True):
                search.push(child, score + value)
        return score

    def _closing(self, logits: NDArray[np.float32]) -> float:
        return float(log_sum_exp(logits[self._engine.quoted_tokens][None])[0])
