"""Scores and best labels where a sequence can only be copied as a whole: models with recurrent layers.

Every row's prompt is decoded in a sequence of its own, behind the shared beginning. Each continuation is then decoded
in a copy of that sequence, many of many rows in one decode. Its last token is never decoded, and a token that
continuations share is decoded with each of them, but its logits are asked for once. A search for the best label alone
decodes, round by round, only those that can still win: what is known of a continuation bounds it from above.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp import search
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.logarithms import log_sum_exp
from skllm_ray.llm.gpt.clients.llama_cpp.scoring import Scorer, closing
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError, Row, Scores, Trie, fitting

_Path = tuple[int, ...]


@dataclass(slots=True)
class _Node:
    """A beginning of continuations, and the tokens that follow upon it."""

    end_tokens: NDArray[np.int64]
    ends: NDArray[np.int64]
    """The continuations that end with these tokens."""
    tokens: NDArray[np.int64]
    children: NDArray[np.int64]
    """The nodes that these tokens lead to."""
    widths: NDArray[np.int64]
    """How many paths lie behind each of these nodes: they follow upon one another, in this order."""
    first: int
    """The first path that passes here."""


class Paths:
    """The continuations of a prompt without their last tokens, those that are a beginning of another left out.

    Parameters
    ----------
    trie : Trie
        The continuations.
    """

    def __init__(self, trie: Trie) -> None:
        inner = sorted({tail[:-1] for tail in trie.tails})
        self.paths = [one for one, after in itertools.pairwise([*inner, (-1,)]) if after[: len(one)] != one]
        """Sorted, so that those with a common beginning follow upon one another."""
        self.n_continuations = len(trie.tails)
        numbers: dict[_Path, int] = {(): 0}
        self.nodes_of: list[list[int]] = []
        """The nodes along each path, the root left out."""
        for path in self.paths:
            self.nodes_of.append([numbers.setdefault(path[: depth + 1], len(numbers)) for depth in range(len(path))])
        self.nodes = _nodes(trie, numbers, self.paths)


def _nodes(trie: Trie, numbers: dict[_Path, int], paths: Sequence[_Path]) -> list[_Node]:
    ends: dict[int, list[tuple[int, int]]] = {}
    for index, tail in enumerate(trie.tails):
        ends.setdefault(numbers[tail[:-1]], []).append((tail[-1], index))
    children: dict[int, list[tuple[int, int]]] = {}
    firsts, widths = dict.fromkeys(numbers.values(), -1), dict.fromkeys(numbers.values(), 0)
    for position, path in enumerate(paths):
        for depth in range(len(path) + 1):
            node = numbers[path[:depth]]
            firsts[node] = position if firsts[node] < 0 else firsts[node]
            widths[node] += 1
    for beginning, node in numbers.items():  # in the order of the paths
        if beginning:
            children.setdefault(numbers[beginning[:-1]], []).append((beginning[-1], node))

    def columns(pairs: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        one, other = np.asarray(pairs, np.int64).reshape(-1, 2).T
        return one, other

    nodes = []
    for node in numbers.values():
        follow, leads = columns(children.get(node, []))
        width = np.asarray([widths[child] for child in leads.tolist()], np.int64)
        nodes.append(_Node(*columns(ends.get(node, [])), follow, leads, width, firsts[node]))
    return nodes


@dataclass(slots=True)
class _Standing:
    """A row whose prompt stands in a sequence of its own, and what is known of its continuations."""

    row: Row
    paths: Paths
    sequence: int
    scores: NDArray[np.float64] = field(init=False)
    """Of the continuations; minus infinity where it is not known yet."""
    bases: NDArray[np.float64] = field(init=False)
    """The log-probability of each node whose parent is known."""
    bounds: NDArray[np.float64] = field(init=False)
    """What a continuation along each path has at most."""
    open: NDArray[np.bool_] = field(init=False)
    """The paths that were not yet decoded."""
    known: NDArray[np.bool_] = field(init=False)
    """The nodes whose logits were asked for."""

    def __post_init__(self) -> None:
        self.scores = np.full(self.paths.n_continuations, -np.inf)
        self.bases = np.zeros(len(self.paths.nodes))
        self.bounds = np.zeros(len(self.paths.paths))
        self.open = np.asarray([bool(path) for path in self.paths.paths], np.bool_)
        self.known = np.zeros(len(self.paths.nodes), np.bool_)

    def note(self, engine: Engine, number: int, logits: NDArray[np.float32], total: float) -> None:
        """Take in the logits behind a node, of shape (1, n_vocab), and the logarithm of their sum of exponentials."""
        node, base = self.paths.nodes[number], self.bases[number] - total
        if len(node.ends):
            self.scores[node.ends] = base + closing(engine, logits, np.zeros_like(node.ends), node.end_tokens)
        if len(node.children):
            values = base + logits[0, node.tokens]
            self.bases[node.children] = values
            self.bounds[node.first : node.first + int(node.widths.sum())] = np.repeat(values, node.widths)


@dataclass(slots=True)
class _Step:
    """A path of a row that is to be decoded."""

    standing: _Standing
    path: int

    @property
    def tokens(self) -> _Path:
        return self.standing.paths.paths[self.path]

    def take(self) -> list[int]:
        """Return the nodes of the path that are not known, and call them so: they are its last ones."""
        standing = self.standing
        standing.open[self.path] = False
        new = [node for node in standing.paths.nodes_of[self.path] if not standing.known[node]]
        standing.known[new] = True
        return new


class BranchScorer:
    """Scores rows as :class:`.scoring.Scorer` does, by copies.

    Parameters
    ----------
    engine : Engine
        The model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, prompts: Sequence[Sequence[int]], tries: Sequence[Trie]) -> list[Scores]:
        """Return every row's log-probabilities, one per continuation."""
        results: list[Scores] = [np.zeros(0)] * len(prompts)
        for standing in _standings(self._engine, fitting(self._engine, prompts, tries, results)):
            _decode(
                self._engine,
                [_Step(one, path) for one in standing for path in np.flatnonzero(one.open).tolist()],
                standing,
            )
            for one in standing:
                results[one.row.index] = one.scores
        return results

    def finish(self) -> None:
        """Do nothing: what was added is complete."""


def open_scorer(engine: Engine, *, exact: bool = False) -> Scorer | BranchScorer:
    """Return the scorer that fits the engine's model; see :class:`.scoring.Scorer`."""
    return Scorer(engine, exact=exact) if engine.sequences.shares_tokens else BranchScorer(engine)


def score(
    engine: Engine, prompts: Sequence[Sequence[int]], tries: Sequence[Trie], *, exact: bool = False
) -> list[Scores]:
    """Return the log-probability of every continuation of every prompt; see :func:`.scoring.score`."""
    scorer = open_scorer(engine, exact=exact)
    results = scorer.add(prompts, tries)
    scorer.finish()
    return results


def best(
    engine: Engine, prompts: Sequence[Sequence[int]], tries: Sequence[Trie], *, exact: bool = False
) -> list[search.Found]:
    """Return the most likely continuation of every prompt; see :func:`.search.best`. Copies are exact either way."""
    if engine.sequences.shares_tokens:
        return search.best(engine, prompts, tries, exact=exact)
    results: list[Scores] = [np.zeros(0)] * len(prompts)
    rows = fitting(engine, prompts, tries, results)
    found: list[search.Found] = [entry if isinstance(entry, ContextOverflowError) else 0 for entry in results]
    for standing in _standings(engine, rows):
        width = 1
        while steps := [step for one in standing for step in _can_win(one, width)]:
            _decode(engine, steps, standing)
            width *= 2
        for one in standing:
            found[one.row.index] = int(one.scores.argmax())
    return found


def _can_win(standing: _Standing, most: int) -> list[_Step]:
    """Return the likeliest paths that may lead to a better continuation than the best one so far."""
    bounds = np.where(standing.open & (standing.bounds > standing.scores.max()), standing.bounds, -np.inf)
    likeliest = np.argsort(-bounds, kind="stable")[:most]
    return [_Step(standing, path) for path in likeliest.tolist() if bounds[path] > -np.inf]


def _standings(engine: Engine, rows: Sequence[Row]) -> Iterator[list[_Standing]]:
    """Decode the rows' prompts, so many at once as there is room for; they stand until the next are asked for."""
    paths = {id(trie): Paths(trie) for trie in {id(row.trie): row.trie for row in rows}.values()}
    for run, n_prefix in engine.runs([row.common for row in rows]):
        # llama.cpp decodes sequences of one length together: the longest come first.
        members = sorted((rows[i] for i in run), key=lambda row: -len(row.common))
        for group in _groups(engine, members, n_prefix):
            standing = [_Standing(row, paths[id(row.trie)], number) for number, row in enumerate(group, 1)]
            try:
                _decode_prompts(engine, standing, n_prefix)
                yield standing
            finally:
                engine.release()


def _groups(engine: Engine, rows: Sequence[Row], n_prefix: int) -> Iterator[list[Row]]:
    most_rows = min(max(1, (engine.n_sequences - 1) // 2), engine.n_outputs)
    group: list[Row] = []
    tokens = 0
    for row in rows:
        need = len(row.common) - n_prefix
        longest = max(len(tail) for one in [*group, row] for tail in one.trie.tails)
        if group and (tokens + need > min(engine.n_batch, engine.room - longest) or len(group) == most_rows):
            yield group
            group, tokens = [], 0
        group.append(row)
        tokens += need
    if group:
        yield group


def _decode_prompts(engine: Engine, standing: Sequence[_Standing], n_prefix: int) -> None:
    batch = engine.new_batch()
    for one in standing:
        engine.sequences.open(one.sequence)
        batch.add(one.row.common[n_prefix:], n_prefix, one.sequence, last_wanted=True)
    logits = engine.decode(batch)
    for output, (one, total) in enumerate(
        zip(standing, log_sum_exp(logits, engine.options.n_threads).tolist(), strict=True)
    ):
        one.known[0] = True
        one.note(engine, 0, logits[output : output + 1], total)


def _decode(engine: Engine, steps: Sequence[_Step], standing: Sequence[_Standing]) -> None:
    """Decode paths, each in a copy of its row's sequence."""
    first_free = len(standing) + 1
    room = engine.room - sum(len(one.row.common) - engine.n_prefix for one in standing)
    start = 0
    while start < len(steps):
        stop, tokens = start, 0
        while stop < len(steps) and stop - start < engine.n_sequences - first_free:
            tokens += len(steps[stop].tokens)
            if stop > start and tokens > min(engine.n_batch, room):
                break
            stop += 1
        _decode_at_once(engine, steps[start:stop], first_free)
        start = stop


def _decode_at_once(engine: Engine, steps: Sequence[_Step], first_free: int) -> None:
    new = [step.take() for step in steps]
    laid = sorted(range(len(steps)), key=lambda i: -len(steps[i].tokens))
    batch, at, n_wanted = engine.new_batch(), [0] * len(steps), 0
    for sequence, i in enumerate(laid, first_free):
        standing, tokens = steps[i].standing, steps[i].tokens
        engine.sequences.open(sequence, standing.sequence)
        wanted = np.arange(len(tokens)) >= len(tokens) - len(new[i])
        batch.add(tokens, len(standing.row.common), sequence, wanted=wanted)
        at[i], n_wanted = n_wanted, n_wanted + len(new[i])
    logits = engine.decode(batch)
    totals = log_sum_exp(logits, engine.options.n_threads).tolist()
    for i, step in enumerate(steps):  # in the order in which nodes were taken: a node's parent comes before it
        for output, node in enumerate(new[i], at[i]):
            step.standing.note(engine, node, logits[output : output + 1], totals[output])
    for sequence in range(first_free, first_free + len(steps)):
        engine.sequences.release(sequence, engine.n_prefix)
