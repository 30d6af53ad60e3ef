"""What share of rows may keep a cheap model's label, with a statement that holds in finite samples.

A fast classifier labels every row and says how sure it is. A strong classifier is asked about a random sample of the
rows. :func:`certify` finds from that sample how sure the fast one must be for its label to be kept, so that, with
probability at least `confidence`, at most a share `max_disagreement` of all rows carries a label that differs from
what the strong one would have said.

The method tests one hypothesis, however many thresholds are looked at. Let n of N rows be sampled, let D(t) be the
number of rows with a score above t whose labels differ, and x(t) the number of those in the sample. Rows of the sample
keep the strong label, so D(t) - x(t) rows are wrong in what is delivered. If that is more than αN while x(t) is at most
k, then D(t) is at least floor(αN) + 1 + x(t). The threshold is the score of the (k + 1)-th disagreement of the sample:
either the sample had more than k, and then the threshold lies at or below the first score at which D reaches
floor(αN) + 1 + k, which is a property of the rows and not of the sample; or it had k or fewer, all rows are kept, and D
is one number. In both cases the sample found unusually few disagreements, and k is chosen so that this has a
probability of at most 1 - confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skllm_ray.errors import ConfigurationError

__all__ = ["Certificate", "certify", "smallest_sample"]

_STEP: Final = 256  # numbers of disagreements that are tried at once
_SO_MANY: Final = 10**9  # rows, of which hypergeometric tails take long
_MOST_NEEDED: Final = 10**15


@dataclass(frozen=True, slots=True)
class Certificate:
    """How sure a fast classifier must be for its label to be kept, and what is promised then.

    Examples
    --------
    >>> certificate = certify([0.9, 0.8, 0.7, 0.6] * 50, [True] * 200, 1000, max_disagreement=0.05, confidence=0.95,
    ...                       tie_breakers=range(200))
    >>> certificate.n_allowed, certificate.threshold
    (6, -inf)
    >>> print(certificate)
    With probability at least 95%, at most 5% of these 1,000 rows carry a label that differs from what the strong model
    would have said. It does not say that the strong model is right.
    """

    n_rows: int | None
    """Rows that the promise is about, the sample included; None for a stream."""
    n_sampled: int
    """Rows about which both models were asked."""
    n_disagreed: int
    """Rows of the sample whose labels differ."""
    n_allowed: int
    """Disagreements of the sample that may lie above the threshold; -1 if the sample is too small for any promise."""
    threshold: float
    """Labels with a score above it are kept. It is -inf if all are kept that have a score, and inf if none is."""
    threshold_tie: float
    """Of scores that equal the threshold, those with a tie breaker above it are kept."""
    max_disagreement: float
    """The largest share of all rows whose label may differ."""
    confidence: float
    """The probability with which the promise holds, over the draw of the sample."""
    population: Literal["finite", "stream"]
    """"finite": the promise is about `n_rows` rows. "stream": it is about the rate of rows that are drawn
    independently, as the sample was."""
    n_needed: int
    """The smallest sample that could carry a promise."""
    n_repeated: int = 0
    """Rows of the sample about which the strong model was asked a second time, and answered."""
    n_changed: int = 0
    """Of these, those to which it gave another label then."""
    n_attempts: int = 1
    """How many certificates are known of for the same rows, this one included."""

    @property
    def holds(self) -> bool:
        """Whether the sample is large enough for a promise; if not, no label of the fast model is kept."""
        return self.n_allowed >= 0

    @property
    def self_agreement(self) -> tuple[float, float] | None:
        """How often the strong model agrees with itself: the interval, at this confidence; None where it is not known.

        Agreement with the strong model cannot be expected to be better than that.
        """
        n, x = self.n_repeated, self.n_repeated - self.n_changed
        return clopper_pearson(x, n, self.confidence) if n else None

    def keeps(self, scores: ArrayLike, tie_breakers: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Return which rows keep the fast model's label.

        Parameters
        ----------
        scores : array-like of shape (n_rows,)
            The fast model's scores; -inf is never kept.
        tie_breakers : array-like of shape (n_rows,) or None, default=None
            As given to :func:`certify`. Without them, a score that equals the threshold is not kept.

        Returns
        -------
        ndarray of bool, of shape (n_rows,)
        """
        given = _scores(scores)
        above = given > self.threshold
        if tie_breakers is None or not np.isfinite(self.threshold):
            return np.asarray(above)
        return np.asarray(above | ((given == self.threshold) & (np.asarray(tie_breakers) > self.threshold_tie)))

    def __str__(self) -> str:
        share, confidence = f"{100 * self.max_disagreement:g}%", f"{100 * self.confidence:g}%"
        differs = "carry a label that differs from what the strong model would have said"
        if not self.holds:
            return (
                f"Nothing is promised: {self.n_sampled:,} sampled rows are too few for {share} at a confidence of "
                f"{confidence}, which takes at least {self.n_needed:,}. Every row goes to the strong model."
            )
        most, end = f"at most {share}", "It does not say that the strong model is right."
        end += self._told_repeats() + self._told_attempts()
        if self.population == "finite":
            return f"With probability at least {confidence}, {most} of these {self.n_rows:,} rows {differs}. {end}"
        return (
            f"With probability at least {confidence}, {most} of rows like the {self.n_sampled:,} sampled ones, "
            f"drawn independently, {differs}. It bounds this rate, and not the share in any later batch. {end}"
        )

    def _told_repeats(self) -> str:
        interval = self.self_agreement
        if interval is None:
            return ""
        same, low, high = (f"{100 * share:.3g}%" for share in (1 - self.n_changed / self.n_repeated, *interval))
        return (
            f" Asked again about {self.n_repeated:,} sampled rows, it gave {same} of them the same label ({low} to "
            f"{high}, at {100 * self.confidence:g}%)."
        )

    def _told_attempts(self) -> str:
        if self.n_attempts < 2:
            return ""
        left = 1 - self.n_attempts * (1 - Fraction(repr(self.confidence)))
        kept = f"holds with {100 * float(left):.3g}% at least" if left > 0 else "promises nothing"
        return (
            f" It is one of {self.n_attempts} certificates for these rows: each holds by itself, and one that is "
            f"picked among them for what it says {kept}."
        )


def certify(
    scores: ArrayLike,
    agree: ArrayLike,
    n_rows: int | None,
    *,
    max_disagreement: float,
    confidence: float,
    tie_breakers: ArrayLike | None = None,
) -> Certificate:
    """Return the lowest threshold above which a fast model's labels may be kept, from a random sample of the rows.

    Parameters
    ----------
    scores : array-like of shape (n_sampled,)
        The fast model's scores of the sampled rows: the surer, the higher. An invalid or failed answer is -inf.
    agree : array-like of bool, of shape (n_sampled,)
        Whether both models gave the same label. A failed answer of the strong model is a disagreement.
    n_rows : int or None
        The rows of which the sample was drawn, uniformly and without replacement, the sample included. None: a stream,
        of whose rows the sample is independently drawn.
    max_disagreement : float in (0, 1)
        The largest share of all rows whose delivered label may differ from the strong model's.
    confidence : float in (0, 1)
        The probability with which that holds.
    tie_breakers : array-like of shape (n_sampled,) or None, default=None
        Numbers that order equal scores, drawn independently of the sample (see :func:`skllm_ray.cascade.random_keys`).

    Returns
    -------
    Certificate

    Raises
    ------
    ConfigurationError
        If a parameter is out of its range, shapes differ, a score is NaN, or two rows have the same score and the same
        tie breaker (-inf may repeat).

    Notes
    -----
    A fixed-sequence test of hypergeometric (for a stream, binomial) tails; the module's docstring says why it holds.

    Examples
    --------
    >>> certificate = certify([0.99, 0.9, 0.8] + [0.7 - i / 1000 for i in range(97)], [True] * 98 + [False] * 2, None,
    ...                       max_disagreement=0.05, confidence=0.95)
    >>> certificate.n_allowed, round(certificate.threshold, 3)
    (1, 0.604)
    """
    share = _share("max_disagreement", max_disagreement)
    delta = float(1 - _share("confidence", confidence))
    given, same = _scores(scores), np.asarray(agree)
    ties = np.zeros(given.shape) if tie_breakers is None else np.asarray(tie_breakers)
    _check_sample(given, same, ties, n_rows)
    n_rows = None if n_rows is None else int(n_rows)
    order = _order(given, ties)
    wrong = order[~same.astype(bool)[order]]
    n_allowed = _n_allowed(len(given), n_rows, share, delta)
    threshold, tie = -math.inf, -math.inf
    if n_allowed < 0:
        threshold = math.inf
    elif len(wrong) > n_allowed:
        threshold, tie = given[wrong[n_allowed]].item(), ties[wrong[n_allowed]].item()
    return Certificate(
        n_rows=n_rows,
        n_sampled=len(given),
        n_disagreed=len(wrong),
        n_allowed=n_allowed,
        threshold=threshold,
        threshold_tie=tie,
        max_disagreement=float(max_disagreement),
        confidence=float(confidence),
        population="stream" if n_rows is None else "finite",
        n_needed=_n_needed(n_rows, share, delta),
    )


def clopper_pearson(n_hits: int, n_tried: int, confidence: float) -> tuple[float, float]:
    """Return the interval of a share (Clopper and Pearson, 1934); all of 0 to 1 where nothing was tried.

    Examples
    --------
    >>> low, high = clopper_pearson(30, 30, 0.95)
    >>> round(low, 3), high
    (0.884, 1.0)
    """
    from scipy import stats  # half a second of a CPU, which most jobs need not spend

    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, n_hits, n_tried - n_hits + 1)) if n_hits else 0.0
    high = float(stats.beta.ppf(1 - tail, n_hits + 1, n_tried - n_hits)) if n_hits < n_tried else 1.0
    return low, high


def smallest_sample(n_rows: int | None, *, max_disagreement: float, confidence: float) -> int:
    """Return the smallest sample that can carry a promise, if both models agree on all of it.

    Parameters
    ----------
    n_rows : int or None
        The rows that the promise is about; None is a stream.
    max_disagreement, confidence : float in (0, 1)
        As for :func:`certify`.

    Examples
    --------
    >>> smallest_sample(None, max_disagreement=0.05, confidence=0.95)
    59
    """
    share, delta = _share("max_disagreement", max_disagreement), float(1 - _share("confidence", confidence))
    return _n_needed(n_rows, share, delta)


@lru_cache(maxsize=256)
def _n_allowed(n_sampled: int, n_rows: int | None, share: Fraction, delta: float) -> int:
    """Return the largest number of disagreements in a row from 0 on that a sample may show; -1 if not even 0."""
    tried = np.arange(_STEP)
    for start in range(0, n_sampled + 1, _STEP):
        fails = _tail(start + tried, n_sampled, n_rows, share) > delta
        if fails.any():
            return start + int(np.argmax(fails)) - 1
    return n_sampled


def _tail(x: NDArray[np.int64], n_sampled: int, n_rows: int | None, share: Fraction) -> NDArray[np.float64]:
    """Return the probability that a sample shows `x` disagreements or fewer though too many labels are wrong."""
    from scipy import stats

    if n_rows is None:
        return np.asarray(stats.binom.cdf(x, n_sampled, float(share)))
    wrong = math.floor(share * n_rows) + 1 + x
    if n_rows > _SO_MANY:  # the binomial tail is the larger one, by next to nothing (Uhlmann, 1966)
        return np.asarray(stats.binom.cdf(x, n_sampled, wrong / n_rows))
    tail = stats.hypergeom.cdf(x, n_rows, np.minimum(wrong, n_rows), n_sampled)
    return np.where(wrong > n_rows, 0.0, tail)  # so many labels cannot be wrong


@lru_cache(maxsize=256)
def _n_needed(n_rows: int | None, share: Fraction, delta: float) -> int:
    """Return the smallest sample for which 0 disagreements are a promise."""
    high = n_rows if n_rows is not None else math.ceil(math.log(delta) / math.log1p(-float(share)))
    high = min(high, _MOST_NEEDED)
    low = 0
    while low < high:
        middle = (low + high) // 2
        if _tail(np.zeros(1, np.int64), middle, n_rows, share)[0] <= delta:
            high = middle
        else:
            low = middle + 1
    return low


def _order(scores: NDArray[np.float64], ties: NDArray[Any]) -> NDArray[np.intp]:
    """Return the rows' order, highest score first; refuse rows whose order is not known."""
    order = np.lexsort((ties, scores))[::-1]
    one, other = order[:-1], order[1:]
    same = (scores[one] == scores[other]) & (ties[one] == ties[other]) & (scores[one] > -math.inf)
    if same.any():
        at = int(np.argmax(same))
        raise ConfigurationError(
            f"scores: rows {int(one[at])} and {int(other[at])} both have the score {scores[one[at]]:g}, and no tie "
            "breaker orders them.",
            "Give tie_breakers: random numbers, one per row, drawn independently of the sample (random_keys).",
        )
    return order


def _scores(scores: ArrayLike) -> NDArray[np.float64]:
    try:
        given = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        raise ConfigurationError("scores must be numbers.", "An answer that failed has the score -inf.") from None
    if given.ndim != 1 or np.isnan(given).any():
        raise ConfigurationError(
            f"scores must be one-dimensional and hold no NaN; got the shape {given.shape}"
            f"{' with NaN' if np.isnan(given).any() else ''}.",
            "An answer that failed or is not valid has the score -inf.",
        )
    return given


def _check_sample(scores: NDArray[np.float64], agree: NDArray[Any], ties: NDArray[Any], n_rows: int | None) -> None:
    if agree.shape != scores.shape or ties.shape != scores.shape:
        raise ConfigurationError(
            f"scores, agree and tie_breakers must be of one length; got {scores.shape}, {agree.shape} and {ties.shape}."
        )
    if agree.dtype != np.bool_ and agree.size:
        raise ConfigurationError(f"agree must hold booleans; got {agree.dtype}.")
    if ties.dtype.kind not in "iuf" or np.isnan(ties).any():
        raise ConfigurationError(f"tie_breakers must be numbers, none of them NaN; got {ties.dtype}.")
    whole = isinstance(n_rows, int | float | np.integer | np.floating) and not isinstance(n_rows, bool)
    if n_rows is not None and not (whole and n_rows % 1 == 0 and n_rows >= max(1, len(scores))):
        raise ConfigurationError(
            f"n_rows={n_rows!r}, but {len(scores):,} rows were sampled of them.",
            "n_rows counts all rows with a text, the sample included; None is a stream.",
        )


def _share(name: str, value: float) -> Fraction:
    """Return a share as the decimal that was written, so that 29% of 100 rows are 29 and not 28."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 < value < 1:
        raise ConfigurationError(f"{name}={value!r} must be a number between 0 and 1, both excluded.")
    return Fraction(repr(float(value)))
