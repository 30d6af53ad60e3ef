"""Classification by scoring: log-probabilities of all labels, exactly, many rows in one decode.

The prompt, the answer's opening, a label and its closing quote are tokenised as one string (a label alone would
tokenise differently). The tokens that all labels share are decoded once, and the rest forms a trie: a token that
several labels share belongs to all their sequences and is decoded once as well. A label's score is the sum of the
log-probabilities of its tokens; at its end any token that begins with the closing quote counts, because a model may go
on with ``"}`` as well as with ``"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.engine import Decoding, Engine, common_length
from skllm_ray.llm.gpt.clients.llama_cpp.logarithms import log_sum_exp

_LANES = 16
"""Floats that a CPU adds up at once: with AVX-512, and fewer elsewhere.

Attention adds up the cells of the cache in such groups. A row that begins at another place within a group than it would
alone is added up in another order; the last bits of its floats differ, and where they tip the rounding of an activation
to 8 bits, its log-probabilities differ visibly. Exact scores begin every row, and end the shared prefix, at a multiple.
"""


_KERNEL = 8
"""Tokens that a CPU's kernels for 4-bit to 6-bit weights take at once, twice: what is left over at a decode's end is
computed by others, which round otherwise. Exact scores decode multiples."""


class ContextOverflowError(Exception):
    """A row needs more tokens than the context holds."""

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        super().__init__(n_tokens, n_ctx)
        self.n_tokens, self.n_ctx = n_tokens, n_ctx


Scores = NDArray[np.float64] | ContextOverflowError
"""A row's log-probabilities, one per continuation, or why there are none."""


@dataclass(frozen=True, slots=True)
class _Part:
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

    @property
    def n_continuations(self) -> int:
        return len(self.ends)

    @property
    def n_outputs(self) -> int:
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
        self._parts: list[_Part] | None = None

    def __len__(self) -> int:
        return len(self.tails)

    @property
    def parts(self) -> list[_Part]:
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

    def _part(self, members: Sequence[int]) -> _Part:
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
        return _Part(
            np.asarray([path[-1] for path in nodes], np.int32),
            np.asarray([len(path) - 1 for path in nodes], np.int32),
            np.asarray([sequences[path][0] for path in nodes], np.int32),
            np.asarray([len(sequences[path]) for path in nodes], np.int32),
            np.asarray(steps, np.int64).reshape(-1, 3),
            np.asarray(ends, np.int64).reshape(-1, 3),
        )


@dataclass(slots=True)
class Row:
    """A prompt, and how it may go on."""

    index: int
    """Its place among the rows of the call."""
    common: list[int]
    """The prompt's tokens, and those that all continuations begin with."""
    trie: Trie


def score(
    engine: Engine, prompts: Sequence[Sequence[int]], tries: Sequence[Trie], *, exact: bool = False
) -> list[Scores]:
    """Return the log-probability of every continuation of every prompt.

    Parameters
    ----------
    engine : Engine
        The model.
    prompts : sequence of token sequences, of length n_rows
        What comes before.
    tries : sequence of Trie, of length n_rows
        Each row's continuations.
    exact : bool, default=False
        Whether a row's scores are to be those that it has alone, whoever its neighbours are. It costs up to 30 tokens a
        row, and is of use on a CPU alone.

    Returns
    -------
    list of ndarray of shape (n_continuations,), or ContextOverflowError
        One entry per row, in order; not normalised.

    Raises
    ------
    ValueError
        If a row has no token before its continuations part.
    """
    scorer = Scorer(engine, exact=exact)
    results = scorer.add(prompts, tries)
    scorer.finish()
    return results


class Scorer:
    """Scores rows as they come, as :func:`score` does.

    While a GPU decodes some rows, the ones before are added up and the next ones laid out, by the caller too.

    Parameters
    ----------
    engine : Engine
        The model.
    exact : bool, default=False
        See :func:`score`.
    """

    def __init__(self, engine: Engine, *, exact: bool = False) -> None:
        self._engine = engine
        self._step = _LANES if exact else 1
        self._under_way: tuple[_Decoded, list[Scores]] | None = None

    def add(self, prompts: Sequence[Sequence[int]], tries: Sequence[Trie]) -> list[Scores]:
        """Begin to score some rows; what is returned is complete after :meth:`finish`."""
        results: list[Scores] = [np.zeros(len(trie)) for trie in tries]
        rows = fitting(self._engine, prompts, tries, results)
        for decoded in _decoded_groups(self._engine, rows, self._step):
            self.finish()
            self._under_way = decoded, results
            if not self._engine.overlaps:  # what is decoded stands in llama.cpp's buffer, and need not be copied
                self.finish()
        return results

    def finish(self) -> None:
        """Wait for what was begun."""
        if self._under_way is not None:
            decoded, results = self._under_way
            self._under_way = None
            _collect(self._engine, decoded, results)


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


def _groups(engine: Engine, rows: Sequence[Row], n_prefix: int, step: int) -> Iterator[list[Row]]:
    """Yield sets of rows that fit into one decode; a row whose continuations do not fit at once comes alone."""
    group: list[Row] = []
    tokens = sequences = outputs = 0
    for row in rows:
        part = row.trie.parts[0]
        n_tokens = len(row.common) - n_prefix + len(part.tokens)
        need = -(-n_tokens // step) * step, part.n_continuations, part.n_outputs
        alone = len(row.trie.parts) > 1
        full = (
            tokens + need[0] > min(engine.room, engine.n_batch)
            or sequences + need[1] >= engine.n_sequences
            or outputs + need[2] > engine.n_outputs
        )
        if group and (full or alone):
            yield group
            group, tokens, sequences, outputs = [], 0, 0, 0
        if alone:
            yield [row]
            continue
        group.append(row)
        tokens, sequences, outputs = tokens + need[0], sequences + need[1], outputs + need[2]
    if group:
        yield group


_Decoded = tuple[Decoding, list[tuple[Row, _Part]]]
"""A decode, and whose continuations' logits it gives, in their order."""


def _decoded_groups(engine: Engine, rows: Sequence[Row], step: int) -> Iterator[_Decoded]:
    for run, n_prefix in engine.runs([row.common for row in rows], step):
        for group in _groups(engine, [rows[i] for i in run], n_prefix, step):
            yield from _decode_group(engine, group, n_prefix, step)


def _decode_group(engine: Engine, group: Sequence[Row], n_prefix: int, step: int) -> Iterator[_Decoded]:
    batch = engine.new_batch()
    sequence = 1
    parts = group[0].trie.parts
    for row in group:
        engine.fill_up(batch, step)
        part = row.trie.parts[0]
        n_sequences = part.n_continuations if len(parts) == 1 else max(p.n_continuations for p in parts)
        batch.add(row.common[n_prefix:], n_prefix, sequence, n_sequences, last_wanted=True)
        batch.add(part.tokens, len(row.common) + part.depths, sequence + part.firsts, part.counts, wanted=True)
        sequence += n_sequences
    engine.fill_up(batch, _KERNEL if step > 1 else 1)
    yield engine.start(batch), [(row, row.trie.parts[0]) for row in group]
    if len(parts) > 1:  # a single row: its other continuations follow upon the same text, one part after the other
        row = group[0]
        last = row.common[-1:]
        for part in parts[1:]:
            engine.trim(len(row.common) - 1)
            engine.release(0)  # what filled the decode before up stands at earlier positions
            batch = engine.new_batch()
            batch.add(last, len(row.common) - 1, 1, max(p.n_continuations for p in parts), last_wanted=True)
            batch.add(part.tokens, len(row.common) + part.depths, 1 + part.firsts, part.counts, wanted=True)
            engine.fill_up(batch, _KERNEL if step > 1 else 1)
            yield engine.start(batch), [(row, part)]
    engine.release()


def _collect(engine: Engine, decoded: _Decoded, results: list[Scores]) -> None:
    """Add up the log-probabilities of the continuations' tokens, of all rows together."""
    decoding, scored = decoded
    logits = decoding.logits()
    totals = log_sum_exp(logits, engine.options.n_threads)
    begun = np.cumsum([(0, 0), *((len(row.trie), part.n_outputs) for row, part in scored)], axis=0)
    offsets = [(n_scores, n_outputs, 0) for n_scores, n_outputs in begun.tolist()]
    scores = np.zeros(offsets[-1][0])
    label, output, token = np.concatenate([part.steps + at for (_, part), at in zip(scored, offsets, strict=False)]).T
    np.add.at(scores, label, logits[output, token] - totals[output])
    label, output, token = np.concatenate([part.ends + at for (_, part), at in zip(scored, offsets, strict=False)]).T
    scores[label] += _closing(engine, logits, output, token) - totals[output]
    for (row, _), found in zip(scored, np.split(scores, begun[1:-1, 0]), strict=True):
        results[row.index] += found


def _closing(
    engine: Engine, logits: NDArray[np.float32], outputs: NDArray[np.int64], tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the logits of the last tokens; of a closing quote that of all tokens that begin with one."""
    found = logits[outputs, tokens].astype(np.float64)
    quotes = np.isin(tokens, engine.quotes)
    if quotes.any():
        nodes, back = np.unique(outputs[quotes], return_inverse=True)
        found[quotes] = log_sum_exp(logits[np.ix_(nodes, engine.quoted_tokens)])[back]
    return found
