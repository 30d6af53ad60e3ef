"""The likeliest continuation of each of many prompts, without scoring all of them.

A best-first search per row, of many rows in one decode: behind the prompts' ends all continuations' first tokens are
known, the likeliest partial continuation is followed, and as a partial score can only fall, a row is done when a whole
continuation is at least as likely as all partial ones. Each decode takes the next steps of the rows that are under way,
and fills up with prompts of those to come. With a vocabulary of 100,000 and more, a token's logits cost more than the
token itself, so that this pays for few labels as well.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.batch_invariant import Standing, decodes, stands
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.logarithms import log_sum_exp
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError, Row, Scores, Trie, fitting

_MOST_BRANCHES = 16  # of one row in one decode


@dataclass(slots=True)
class Node:
    """A beginning that some continuations share."""

    path: tuple[int, ...]
    number: int = 0
    """Its number in the trie's only part, 0 being the root's."""
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
    numbers = trie.parts[0].numbers if len(trie.parts) == 1 else {}
    nodes: dict[tuple[int, ...], Node] = {(): Node(())}
    for index, tail in enumerate(trie.tails):
        for depth in range(1, len(tail)):
            if tail[:depth] not in nodes:
                nodes[tail[:depth]] = Node(tail[:depth], numbers.get(tail[:depth], 0))
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
    width: int = 1
    partial: list[tuple[float, int, Node]] = field(default_factory=list)
    """A heap: the negative score, a number that no other entry has, and what was not followed yet."""
    asked: list[_Step] = field(default_factory=list)
    """The steps whose logits come next."""
    followed: dict[int, float] = field(default_factory=dict)
    """The score of each node behind the root that was followed, by its number."""
    n_pushed: int = 0

    def push(self, node: Node, score: float) -> None:
        """Keep a partial continuation that may still win."""
        if score > self.highest:
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
        """Whether nothing that was not followed can win."""
        return not self.partial or -self.partial[0][0] <= self.highest

    def ask(self) -> list[int]:
        """Choose the next steps; return the numbers of their nodes, ascending."""
        self.asked = self.steps(_MOST_BRANCHES)
        return sorted(node.number for step in self.asked for node in step.nodes)

    def take(
        self, engine: Engine, numbers: Sequence[int], logits: NDArray[np.float32], totals: NDArray[np.float64]
    ) -> None:
        """Take in the logits of what was asked, and of nodes that were asked for in advance, by their numbers."""
        at = {number: i for i, number in enumerate(numbers)}
        for step in self.asked:
            outputs = [at.pop(node.number) for node in step.nodes]
            self.note(engine, step, logits[outputs], totals[outputs])
        for number, output in at.items():
            for entry in [one for one in self.partial if one[2].number == number]:  # else it can no longer win
                self.partial.remove(entry)
                heapq.heapify(self.partial)
                step = _Step(self, [entry[2]], -entry[0])
                self.note(engine, step, logits[output : output + 1], totals[output : output + 1])

    def note(self, engine: Engine, step: _Step, logits: NDArray[np.float32], totals: NDArray[np.float64]) -> None:
        """Take in the logits behind the nodes of a step, of shape (n_nodes, n_vocab)."""
        score = step.score
        for number, (node, row) in enumerate(zip(step.nodes, logits, strict=True), 1):
            self.followed[node.number] = score
            score -= float(totals[number - 1])
            self._note_ends(engine, node, score, row)
            if number < len(step.nodes):
                score += float(row[step.nodes[number].path[-1]])
            elif node.children:
                for child, value in zip(node.children, row[node.tokens].tolist(), strict=True):
                    self.push(child, score + value)

    def _note_ends(self, engine: Engine, node: Node, score: float, logits: NDArray[np.float32]) -> None:
        closing: float | None = None  # any token that begins with a quote closes a label
        for token, position in node.ends:
            value = score + float(logits[token])
            if token in engine.quoting:
                if closing is None:
                    closing = float(log_sum_exp(logits[engine.quoted_tokens][None])[0])
                value = score + closing
            if value > self.highest:
                self.winner, self.highest = position, value


Found = int | ContextOverflowError
"""A row's likeliest continuation."""


def best(
    engine: Engine, prompts: Sequence[Sequence[int]], tries: Sequence[Trie], *, exact: bool = False
) -> list[Found]:
    """Return the position of every prompt's most likely continuation.

    Parameters
    ----------
    engine : Engine
        The model, whose sequences share tokens.
    prompts : sequence of token sequences, of length n_rows
        What comes before.
    tries : sequence of Trie, of length n_rows
        Each row's continuations.
    exact : bool, default=False
        Whether rows are computed as they would be alone, so that the likeliest is that of exact scores. It pays where
        continuations are few: each has a cell of its own, used or not.

    Raises
    ------
    ValueError
        If a row has no token before its continuations part.
    """
    overflows: list[Scores] = [np.zeros(0)] * len(prompts)
    rows = fitting(engine, prompts, tries, overflows)
    found: list[Found] = [entry if isinstance(entry, ContextOverflowError) else 0 for entry in overflows]
    if exact:
        for search in _search_in_places(engine, [row for row in rows if stands(engine, row)]):
            found[search.row.index] = search.winner
        rows = [row for row in rows if not stands(engine, row)]
    for run, n_prefix in engine.runs([row.common for row in rows]):
        for search in _Searcher(engine, [rows[i] for i in run], n_prefix).run():
            found[search.row.index] = search.winner
    return found


def _search_in_places(engine: Engine, rows: Sequence[Row]) -> list[_Search]:
    asking = {id(trie): _Asking(tree(trie)) for trie in {id(row.trie): row.trie for row in rows}.values()}
    searches: dict[int, _Search] = {}
    standing = [Standing(row, asking[id(row.trie)].first) for row in rows]
    for decoding, asked in decodes(engine, standing):
        logits = decoding.logits()
        totals = log_sum_exp(logits, engine.options.n_threads)
        start = 0
        for one in asked:
            stop = start + len(one.nodes)
            asks = asking[id(one.row.trie)]
            search = searches.setdefault(id(one), asks.begun(one.row))
            search.take(engine, one.nodes, logits[start:stop], totals[start:stop])
            one.nodes = search.ask()
            if not one.nodes:
                asks.done(search)
            start = stop
        for asks in asking.values():
            asks.choose()
    return [*searches.values()]


class _Asking:
    """What rows with one trie ask for with their prompts: what most rows before them needed."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._needed: Counter[int] = Counter()
        self._n_done = 0
        self.first: list[int] = [0]
        """The same list for all rows that wait."""

    def begun(self, row: Row) -> _Search:
        search = _Search(row, 0)
        search.asked = [_Step(search, [self._root], 0.0)]
        return search

    def done(self, search: _Search) -> None:
        self._needed.update(number for number, score in search.followed.items() if score >= search.highest)
        self._n_done += 1

    def choose(self) -> None:
        self.first[:] = sorted({0} | {number for number, n in self._needed.items() if 2 * n > self._n_done})


class _Searcher:
    """Searches the rows of one run, whose shared beginning stands in all sequences."""

    def __init__(self, engine: Engine, rows: Sequence[Row], n_prefix: int) -> None:
        self._engine, self._n_prefix = engine, n_prefix
        self._waiting = deque(rows)
        self._roots = {id(trie): tree(trie) for trie in {id(row.trie): row.trie for row in rows}.values()}
        branches = min(_MOST_BRANCHES, max(len(row.trie) for row in rows), engine.n_sequences - 1)
        self._branches = branches
        self._free = list(range(1, engine.n_sequences - branches + 1, branches))[::-1]
        self._longest = max(len(tail) for row in rows for tail in row.trie.tails)
        self._under_way: list[_Search] = []

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
            search = _Search(self._waiting.popleft(), self._free.pop())
            batch.add(tokens, self._n_prefix, search.first, self._branches, last_wanted=True)
            self._under_way.append(search)
            cells, n_outputs = cells + len(tokens), n_outputs + 1
            yield _Step(search, [self._roots[id(row.trie)]], 0.0)

    def _n_cells(self) -> int:
        return sum(len(search.row.common) - self._n_prefix for search in self._under_way)

    def _take_in(self, steps: Sequence[_Step], logits: NDArray[np.float32]) -> None:
        totals = log_sum_exp(logits, self._engine.options.n_threads)
        start = 0
        for step in steps:
            stop = start + len(step.nodes)
            step.search.note(self._engine, step, logits[start:stop], totals[start:stop])
            start = stop
