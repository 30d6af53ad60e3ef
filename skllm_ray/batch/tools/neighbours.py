"""Which texts are most like a text: by their words, without a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.sparse import csr_array

_WORDS: Final = re.compile(r"\w+")
_LONGEST: Final = 20_000  # characters of a text that are read
_LEAST: Final = 0.05


def nearest(texts: Sequence[str], others: Sequence[str], n: int = 3) -> list[list[tuple[int, float]]]:
    """Return the places of the `others` that are most like each text, and how much: cosines of TF-IDF of their words.

    A text that is the same is no neighbour.

    Examples
    --------
    >>> found = nearest(["lost my card"], ["I lost the card", "hello", "lost my card"], n=2)
    >>> [place for place, _ in found[0]]
    [0]
    """
    if not texts or not others:
        return [[] for _ in texts]
    words: dict[str, int] = {}
    pool, asked = _counts(others, words, learns=True), _counts(texts, words, learns=False)
    known = np.bincount(pool.indices, minlength=len(words))
    weights = np.log((1 + len(others)) / (1 + known)) + 1
    like = (_scaled(asked, weights) @ _scaled(pool, weights).T).tocsr()
    found = []
    for row, text in enumerate(texts):
        begin, end = like.indptr[row], like.indptr[row + 1]
        places, values = like.indices[begin:end], like.data[begin:end]
        order = [i for i in np.argsort(-values, kind="stable")[: 4 * n].tolist() if others[places[i]] != text]
        found.append([(int(places[i]), float(values[i])) for i in order[:n] if values[i] > _LEAST])
    return found


def _counts(texts: Sequence[str], words: dict[str, int], *, learns: bool) -> csr_array:
    """Return which words stand in each text."""
    ends, places = [0], list[int]()
    for text in texts:
        told = dict.fromkeys(_WORDS.findall(text[:_LONGEST].lower()))
        places += (
            [words.setdefault(word, len(words)) for word in told] if learns else [words[w] for w in told if w in words]
        )
        ends.append(len(places))
    return csr_array((np.ones(len(places)), places, ends), shape=(len(texts), max(1, len(words))))


def _scaled(counts: csr_array, weights: np.ndarray) -> csr_array:
    """Return weighted counts of length 1."""
    weighted = counts * weights[None, :] if len(weights) else counts
    weighted = csr_array(weighted)
    lengths = np.sqrt(np.asarray((weighted * weighted).sum(axis=1))).ravel()
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return csr_array(weighted * scale[:, None])
