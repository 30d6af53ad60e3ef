"""Which rows are sampled, and random numbers for rows that depend on a seed and on the row alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FEWEST_SAMPLED, _MOST_SAMPLED = 300, 10_000
_LOW_BITS: Final = (1 << 20) - 1


def sample_size(n_rows: int) -> int:
    """Return the number of rows to sample of `n_rows` by default: n_rows^(2/3), from 300 to 10,000, at most all.

    Examples
    --------
    >>> sample_size(100), sample_size(4_000), sample_size(27_000), sample_size(10**9)
    (100, 300, 900, 10000)
    """
    return min(n_rows, max(_FEWEST_SAMPLED, min(_MOST_SAMPLED, int(n_rows ** (2 / 3) + 0.5))))


def draw_sample(n_rows: int, n_sampled: int, seed: int) -> NDArray[np.int64]:
    """Return the sampled positions, in order: a uniform draw without replacement that depends on the seed alone.

    Examples
    --------
    >>> draw_sample(10, 3, seed=0).tolist() == draw_sample(10, 3, seed=0).tolist()
    True
    """
    keys = random_keys(seed, "sample", np.arange(n_rows))
    if n_sampled >= n_rows:
        return np.arange(n_rows)
    return np.sort(np.argpartition(keys, n_sampled)[:n_sampled])


def learning_half(seed: int, sample: ArrayLike) -> NDArray[np.bool_]:
    """Return which rows of a sample are there to learn a score from; the others certify.

    Parameters
    ----------
    seed : int
        The sample's.
    sample : array-like of int
        The sampled positions.

    Examples
    --------
    >>> learning_half(0, range(5)).sum().item()
    2
    """
    keys = random_keys(seed, "halves", sample)
    chosen = np.zeros(len(keys), bool)
    chosen[np.argsort(keys, kind="stable")[: len(keys) // 2]] = True
    return chosen


def is_audited(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Return which rows are among a share of them that is chosen by their random numbers.

    Examples
    --------
    >>> is_audited(random_keys(0, "audit", range(1000)), 0.1).sum().item()
    115
    """
    return np.asarray(keys < np.uint64(min(share, 1.0) * (2**64 - 1)))


def random_keys(seed: int, purpose: str, positions: ArrayLike) -> NDArray[np.uint64]:
    """Return a random number for each position; different purposes give independent ones.

    The sample and the order of ties must not come from the same numbers: rows would then be sampled in the order in
    which ties are kept, and the promise would break.

    Parameters
    ----------
    seed : int
        The run's seed, written down before the first request.
    purpose : str
        What the numbers are for, such as "sample" or "ties".
    positions : array-like of int
        The rows' positions.

    Returns
    -------
    ndarray of uint64
        SplitMix64 (Steele, Lea and Flood, 2014) of the positions, keyed by a hash of seed and purpose. Positions are
        mapped one to one, so that no two are equal.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}\0{purpose}".encode(), digest_size=8).digest(), "big")
    z = np.asarray(positions).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def text_keys(seed: int, purpose: str, texts: Sequence[str]) -> NDArray[np.uint64]:
    """Return a random number for each text, which depends on the seed, the purpose and the text alone.

    For rows that have no position, such as those of a stream. The lowest 20 bits are 0, so that a sample can tell rows
    with equal texts apart in them.

    Examples
    --------
    >>> one, other, again = text_keys(0, "ties", ["a", "b", "a"])
    >>> bool(one == again), bool(one == other)
    (True, False)
    """
    key = f"{seed}\0{purpose}".encode()
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key[:64]).digest() for text in texts
    )
    return np.frombuffer(digests, ">u8").astype(np.uint64) & ~np.uint64(_LOW_BITS)
