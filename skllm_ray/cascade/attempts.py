"""How often the same rows were certified: one certificate picked among several promises less than each by itself."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from skllm_ray.cascade.certificate import Certificate

_DIGEST: Final = 16
_MOST_KEPT: Final = 10_000
_seen: dict[str, set[str]] = {}
"""By rows, the outcomes of their certificates in this process; the oldest rows are forgotten."""
_lock = threading.Lock()


class RowsDigest:
    """A number for a set of texts, whatever their order: the sum of their hashes.

    Examples
    --------
    >>> one, other = RowsDigest(["a", "b"]), RowsDigest(["b"])
    >>> other.add(["a"])
    >>> one.hexdigest() == other.hexdigest()
    True
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._sum = 0
        self.add(texts)

    def add(self, texts: Iterable[str]) -> None:
        """Take more texts in."""
        hashes = (
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest() for text in texts
        )
        self._sum = (self._sum + sum(int.from_bytes(one, "big") for one in hashes)) % (1 << 8 * _DIGEST)

    def hexdigest(self) -> str:
        """Return it as text."""
        return f"{self._sum:0{2 * _DIGEST}x}"


def counted(certificate: Certificate, rows: str, sample: str) -> Certificate:
    """Return a certificate that tells how many this process has made for the same rows, itself included.

    Parameters
    ----------
    certificate : Certificate
        A new one.
    rows : str
        Names the rows, as :class:`RowsDigest` does.
    sample : str
        Names what was sampled and found. The same outcome under the same terms is no other attempt.
    """
    terms = (certificate.max_disagreement, certificate.confidence, certificate.n_sampled, sample)
    with _lock:
        outcomes = _seen.setdefault(rows, set())
        outcomes.add(repr(terms))
        if len(_seen) > _MOST_KEPT:
            del _seen[next(iter(_seen))]
        return replace(certificate, n_attempts=len(outcomes))
