"""Classification by scoring: log-probabilities of all labels, exactly, many rows in one decode.

**Why not let the model write?** A written answer is one label, or none of them; it takes a decode for each token, and
it says nothing of the other labels. The log-probability of a label is a sum over its tokens, and a decode gives the
logits after all of them at once. So every label is scored, no answer is invalid, and `predict_proba` is exact.

**Why whole strings?** The prompt, the answer's opening, a label and its closing quote are tokenised as one string,
since a label alone has other tokens. A label ends in its closing quote, for else ``"good"`` would be a part of
``"good for children"``. A model may go on with ``"}`` as well as with ``"``, so any token that begins with the quote
counts as the end.

**Why a trie?** Labels share their first tokens, rows share the prompt's beginning. What is shared is decoded once: a
token that several labels share belongs to all their sequences in the cache.

::

    prompt's beginning      the same for all rows      decoded once for a run of rows, and kept (`Engine.runs`)
      rest of the prompt    a row's own                once a row                              ┐
        label's tokens      a tree for each row        once a node of the tree                 ├ one decode, many rows
        last token          never decoded              read from the logits before it          ┘

What becomes of a row:

==========================================  ==========================================================================
the row                                     then
==========================================  ==========================================================================
needs more tokens than the context          `ContextOverflowError` in its place; the other rows go on
fits beside others                          shares their decode: tokens, sequences and logits are counted (`_groups`)
has more labels than a decode has room for  comes alone, its tree in several parts, one decode after the other
``exact=True``                              begins at a multiple of `_LANES`, so that its last bits are its own
==========================================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.batch_invariant import Standing, decodes, stands
from skllm_ray.llm.gpt.clients.llama_cpp.decoding import Decoding
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.logarithms import log_sum_exp
from skllm_ray.llm.gpt.clients.llama_cpp.places import KERNEL, LANES
from skllm_ray.llm.gpt.clients.llama_cpp.trie import Part, Row, Scores, Trie, fitting


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
        Whether a row's scores are to be those that it has alone, whoever its neighbours are; of use on a CPU alone.
        Some tokens then keep rows in their places: few for the later rows of many.

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
        self._step = LANES if exact else 1
        self._under_way: tuple[_Decoded, list[Scores]] | None = None

    def add(self, prompts: Sequence[Sequence[int]], tries: Sequence[Trie]) -> list[Scores]:
        """Begin to score some rows; what is returned is complete after :meth:`finish`."""
        results: list[Scores] = [np.zeros(len(trie)) for trie in tries]
        rows = fitting(self._engine, prompts, tries, results)
        if self._step > 1:
            self._score_in_places([Standing(row) for row in rows if stands(self._engine, row)], results)
            rows = [row for row in rows if not stands(self._engine, row)]
        for decoded in _decoded_groups(self._engine, rows, self._step):
            self.finish()
            self._under_way = decoded, results
            if not self._engine.overlaps:  # what is decoded stands in llama.cpp's buffer, and need not be copied
                self.finish()
        return results

    def _score_in_places(self, rows: Sequence[Standing], results: list[Scores]) -> None:
        for one in rows:
            one.nodes = range(one.row.trie.parts[0].n_outputs)
        for decoding, asked in decodes(self._engine, rows):
            _collect(self._engine, (decoding, [(one.row, one.row.trie.parts[0]) for one in asked]), results)
            for one in asked:
                one.nodes = ()

    def finish(self) -> None:
        """Wait for what was begun."""
        if self._under_way is not None:
            decoded, results = self._under_way
            self._under_way = None
            _collect(self._engine, decoded, results)


def _groups(engine: Engine, rows: Sequence[Row], n_prefix: int, *, alone: bool) -> Iterator[list[Row]]:
    """Yield sets of rows that fit into one decode; alone if asked for, or where continuations do not fit at once."""
    group: list[Row] = []
    tokens = sequences = outputs = 0
    for row in rows:
        part = row.trie.parts[0]
        need = len(row.common) - n_prefix + len(part.tokens), part.n_continuations, part.n_outputs
        comes_alone = alone or len(row.trie.parts) > 1
        full = (
            tokens + need[0] > min(engine.room, engine.n_batch)
            or sequences + need[1] >= engine.n_sequences
            or outputs + need[2] > engine.n_outputs
        )
        if group and (full or comes_alone):
            yield group
            group, tokens, sequences, outputs = [], 0, 0, 0
        if comes_alone:
            yield [row]
            continue
        group.append(row)
        tokens, sequences, outputs = tokens + need[0], sequences + need[1], outputs + need[2]
    if group:
        yield group


_Decoded = tuple[Decoding, list[tuple[Row, Part]]]
"""A decode, and whose continuations' logits it gives, in their order."""


def _decoded_groups(engine: Engine, rows: Sequence[Row], step: int) -> Iterator[_Decoded]:
    for run, n_prefix in engine.runs([row.common for row in rows], step):
        for group in _groups(engine, [rows[i] for i in run], n_prefix, alone=step > 1):
            yield from _decode_group(engine, group, n_prefix, step)


def _decode_group(engine: Engine, group: Sequence[Row], n_prefix: int, step: int) -> Iterator[_Decoded]:
    batch = engine.new_batch()
    sequence = 1
    parts = group[0].trie.parts
    for row in group:
        part = row.trie.parts[0]
        n_sequences = part.n_continuations if len(parts) == 1 else max(p.n_continuations for p in parts)
        batch.add(row.common[n_prefix:], n_prefix, sequence, n_sequences, last_wanted=True)
        batch.add(part.tokens, len(row.common) + part.depths, sequence + part.firsts, part.counts, wanted=True)
        sequence += n_sequences
    yield engine.start(engine.filled_up(batch, KERNEL if step > 1 else 1)), [(row, row.trie.parts[0]) for row in group]
    if len(parts) > 1:  # a single row: its other continuations follow upon the same text, one part after the other
        row = group[0]
        last = row.common[-1:]
        for part in parts[1:]:
            engine.trim(len(row.common) - 1)
            engine.release(0)  # what filled the decode before up stands at earlier positions
            batch = engine.new_batch()
            batch.add(last, len(row.common) - 1, 1, max(p.n_continuations for p in parts), last_wanted=True)
            batch.add(part.tokens, len(row.common) + part.depths, 1 + part.firsts, part.counts, wanted=True)
            yield engine.start(engine.filled_up(batch, KERNEL if step > 1 else 1)), [(row, part)]
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
    scores[label] += closing(engine, logits, output, token) - totals[output]
    for (row, _), found in zip(scored, np.split(scores, begun[1:-1, 0]), strict=True):
        results[row.index] += found


def closing(
    engine: Engine, logits: NDArray[np.float32], outputs: NDArray[np.int64], tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the logits of the last tokens; of a closing quote that of all tokens that begin with one."""
    found = logits[outputs, tokens].astype(np.float64)
    quotes = np.isin(tokens, engine.quotes)
    if quotes.any():
        nodes, back = np.unique(outputs[quotes], return_inverse=True)
        found[quotes] = log_sum_exp(logits[np.ix_(nodes, engine.quoted_tokens)])[back]
    return found
