"""How a cascade asks: both models about a sample, the fast one about all rows, the strong one where that is unsure.

Nothing here knows estimators' parameters or what users get; :mod:`skllm_ray.cascade` has the statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import joblib
import numpy as np
from numpy.typing import NDArray

from skllm_ray.cascade import (
    AgreementScore,
    Certificate,
    RowsDigest,
    certify,
    counted,
    draw_sample,
    is_audited,
    learning_half,
    random_keys,
    sample_size,
    smallest_sample,
    text_keys,
)
from skllm_ray.errors import ConfigurationError, InputError, JobFailedError, NotSupportedError, warn
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.labelling import Labelling, failed_rows, innermost, label_rows

_MOST_CALIBRATING: Final = 10_000
_FEW_KEPT: Final = 20
_NONE: Final = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Terms:
    """What is to be promised, and how the sample is drawn."""

    max_disagreement: float
    confidence: float
    n_samples: int | None
    learns_score: bool
    seed: int
    n_repeats: int = 0
    """Rows of the sample that the strong one is asked about twice."""

    def sample(self, n_rows: int, *, stream: bool = False) -> NDArray[np.int64]:
        """Return the sampled positions; raises as :meth:`n_sampled` does."""
        return draw_sample(n_rows, self.n_sampled(n_rows, stream=stream), self.seed)

    def n_sampled(self, n_rows: int, *, stream: bool = False) -> int:
        """Return how many rows are sampled; raise where so few cannot carry the promise, before any is asked about.

        Raises
        ------
        ConfigurationError
            If ``n_samples`` is too small.
        InputError
            If a stream's rows are too few.
        """
        usual = min(n_rows, _MOST_CALIBRATING) if stream else sample_size(n_rows)
        n_sampled = usual if self.n_samples is None else min(self.n_samples, n_rows)
        n_learning = n_sampled // 2 if self.learns_score else 0
        population = None if stream else n_rows - n_learning
        needed = smallest_sample(population, max_disagreement=self.max_disagreement, confidence=self.confidence)
        if n_sampled - n_learning < needed:
            halves = " in the half that certifies" if self.learns_score else ""
            told = (
                f"n_samples={self.n_samples}: {n_sampled:,} sampled rows of {n_rows:,} are too few. At most "
                f"{100 * self.max_disagreement:g}% of disagreement (max_disagreement) at a confidence of "
                f"{100 * self.confidence:g}% takes at least {needed:,}{halves}."
            )
            if stream and n_sampled == n_rows:
                raise InputError(told.partition(": ")[2], "Pass more rows to calibrate, or promise less.")
            raise ConfigurationError(told, "Pass a larger n_samples, or promise less.")
        return n_sampled

    def learning(self, sample: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the sampled rows are there to learn the score from, and certify nothing."""
        return learning_half(self.seed, sample) if self.learns_score else np.zeros(len(sample), bool)


@dataclass(frozen=True)
class Decision:
    """Which fast labels are kept."""

    certificate: Certificate
    score: AgreementScore

    def keeps(self, fast: Labelling, ties: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which rows keep the fast label."""
        return self.certificate.keeps(self.scores(fast), ties)

    def scores(self, fast: Labelling) -> NDArray[np.float64]:
        """Return by what the fast labels are kept."""
        return self.score.of(fast.scores, fast.features)

    @classmethod
    def of(
        cls, fast: Labelling, strong: Labelling, ties: NDArray[np.uint64], learning: NDArray[np.bool_],
        terms: Terms, population: tuple[int | None, str],
    ) -> Decision:  # fmt: skip
        """Return the decision that a sample carries; of the population, the rows' number and what names them."""
        agree, (n_rows, named) = fast.agrees(strong), population
        score, certifying = AgreementScore(), np.flatnonzero(~learning)
        if learning.any():
            score = AgreementScore.learned(fast.scores[learning], fast.features[learning], agree[learning])
        certificate = certify(
            score.of(fast.scores[certifying], fast.features[certifying]),
            agree[certifying],
            None if n_rows is None else n_rows - int(learning.sum()),
            max_disagreement=terms.max_disagreement,
            confidence=terms.confidence,
            tie_breakers=ties[certifying],
        )
        return cls(counted(certificate, named, joblib.hash([ties, fast.scores, agree])), score)


@dataclass(frozen=True)
class Stages:
    """What both models said: about which rows, by their positions."""

    fast: Labelling
    """Of all rows, in their order."""
    strong: Labelling
    """Of the rows at `asked`."""
    asked: NDArray[np.int64]
    sample: NDArray[np.int64]
    audited: NDArray[np.int64]
    """Rows whose fast label would have been kept, and about which the strong classifier was asked all the same."""

    @classmethod
    def empty(cls) -> Stages:
        """Return what is said of no row."""
        nothing = failed_rows(0, "")
        return cls(nothing, nothing, _NONE, _NONE, _NONE)


class Asked:
    """The rows of a call, which a pair of classifiers is asked about a part at a time.

    Parameters
    ----------
    fast, strong : estimator
        The fitted classifiers.
    rows : Rows
        All rows of the call.
    chosen : ndarray of int
        The positions of those that count.
    """

    def __init__(self, fast: Any, strong: Any, rows: Any, chosen: NDArray[np.int64]) -> None:
        self._fast, self._strong, self._rows, self._chosen = fast, strong, rows, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def fast(self, at: NDArray[np.int64]) -> Labelling:
        """Ask the fast one."""
        return label_rows(self._fast, self._rows.take(self._chosen[at]), scored=True)

    def strong(self, at: NDArray[np.int64]) -> Labelling:
        """Ask the strong one."""
        return label_rows(self._strong, self._rows.take(self._chosen[at]), scored=False)

    def named(self) -> str:
        """Return what names the rows that count, whatever their order."""
        rows = self._rows.take(self._chosen)
        return RowsDigest(rows).hexdigest() if self._rows.texts is not None else str(joblib.hash(rows))

    def decided(
        self, sample: NDArray[np.int64], ties: NDArray[np.uint64], terms: Terms, population: tuple[int | None, str]
    ) -> tuple[Labelling, Labelling, Decision]:
        """Ask both about the sample, and return what they say, and the decision that it carries."""
        fast, strong = self.sampled(sample)
        decision = Decision.of(fast, strong, ties, terms.learning(sample), terms, population)
        if not terms.n_repeats or not isinstance(innermost(self._strong)[0], LLMClassifier):
            return fast, strong, decision
        order = np.argsort(random_keys(terms.seed, "repeat", sample))
        again = order[strong.answered[order]][: terms.n_repeats]
        second = _escalated(self, sample[again])
        if second is None:
            return fast, strong, decision
        known = second.answered & (second.details["attempts"] > 0).to_numpy()  # a cache has nothing new to tell
        same = second.agrees(strong.take(again))[known]
        told = replace(decision.certificate, n_repeated=int(known.sum()), n_changed=int((~same).sum()))
        return fast, strong.with_costs(again, second), replace(decision, certificate=told)

    def keys(self, seed: int, purpose: str = "ties") -> NDArray[np.uint64]:
        """Return what orders equal scores wherever a row stands: a hash of its text."""
        if self._rows.texts is None:
            return random_keys(seed, purpose, self._chosen)
        return text_keys(seed, purpose, self._rows.take(self._chosen))

    def sampled(self, sample: NDArray[np.int64]) -> tuple[Labelling, Labelling]:
        """Ask both about the sample; raise where it shows that either answers nothing, before the others are asked."""
        fast = self.fast(sample)
        if not (fast.scores > -np.inf).any():
            raise JobFailedError(
                f"The fast classifier gave no label with a probability for any of {len(sample):,} sampled rows"
                f"{_first_error(fast)}.",
                "Nothing was asked of the strong one.",
            )
        strong = self.strong(sample)
        failed = int((~strong.answered).sum())
        if failed == len(sample):
            raise JobFailedError(
                f"The strong classifier failed for all {len(sample):,} sampled rows{_first_error(strong)}.",
                "No other row was asked of it.",
            )
        if failed:
            warn(
                f"The strong classifier gave no valid answer for {failed:,} of {len(sample):,} sampled rows"
                f"{_first_error(strong)}. They count as disagreements, so that fewer fast labels are kept."
            )
        return fast, strong


def ask_finite(rows: Asked, terms: Terms) -> tuple[Stages, Decision]:
    """Certify these rows, and ask the strong classifier about those whose fast label is not kept."""
    n_rows = len(rows)
    sample = terms.sample(n_rows)
    if len(sample) == n_rows:
        warn(
            f"All {n_rows:,} rows were sampled, so that the strong classifier labels every one: a cascade saves "
            "nothing on so few rows. calibrate(X) certifies for many small calls."
        )
    ties = random_keys(terms.seed, "ties", np.arange(n_rows))
    fast, strong, decision = rows.decided(sample, ties[sample], terms, (n_rows, rows.named()))
    rest = np.setdiff1d(np.arange(n_rows), sample)
    if not len(rest):
        return Stages(fast, strong, sample, sample, _NONE), decision
    others = rows.fast(rest)
    unsure = np.flatnonzero(~decision.keeps(others, ties[rest]))
    _warn_of_few(len(rest) - len(unsure), n_rows)
    fast = Labelling.joined([(sample, fast), (rest, others)])
    escalated = _escalated(rows, rest[unsure])
    if escalated is None:
        return Stages(fast, strong, sample, sample, _NONE), decision
    asked = np.concatenate([sample, rest[unsure]])
    strong = Labelling.joined([(sample, strong), (rest[unsure], escalated)])
    return Stages(fast, strong, np.sort(asked), sample, _NONE), decision


def ask_stream(rows: Asked, decision: Decision, seed: int, audit_share: float) -> Stages:
    """Ask with a threshold that was certified before; nothing is sampled, and a share of what is kept is audited."""
    fast = rows.fast(np.arange(len(rows)))
    kept = decision.keeps(fast, rows.keys(seed))
    audited = kept & is_audited(rows.keys(seed, "audit"), audit_share)
    asked = np.flatnonzero(~kept | audited)
    escalated = _escalated(rows, asked)
    strong = fast.take(_NONE) if escalated is None else escalated
    return Stages(fast, strong, asked, _NONE, np.flatnonzero(audited))


def calibrated(rows: Asked, terms: Terms) -> Decision:
    """Return the decision that a sample of a stream carries."""
    sample = terms.sample(len(rows), stream=True)
    ties = told_apart(rows.keys(terms.seed)[sample])
    return rows.decided(sample, ties, terms, (None, f"stream {rows.named()}"))[2]


def told_apart(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the keys of sampled texts, of which equal ones have the next higher numbers, so that no two are equal.

    A later row with such a text has the lowest of them, and is kept where all of them are: rows that cannot be told
    apart are kept or not together, which only keeps fewer.
    """
    found, seen = keys.copy(), dict[int, int]()
    for at, key in enumerate(keys.tolist()):
        found[at] += np.uint64(seen.setdefault(key, 0))
        seen[key] += 1
    return found


def _escalated(rows: Asked, at: NDArray[np.int64]) -> Labelling | None:
    """Ask the strong classifier; what it refuses now are rows that failed, as other rows are paid for already."""
    if not len(at):
        return None
    try:
        return rows.strong(at)
    except (JobFailedError, NotSupportedError) as error:
        return failed_rows(len(at), str(error))


def _warn_of_few(n_kept: int, n_rows: int) -> None:
    if n_kept * _FEW_KEPT < n_rows:
        warn(
            f"{n_kept:,} of {n_rows:,} fast labels were kept, so that nearly every row was asked of the strong "
            "classifier: its labels differ from the fast one's too often, or where the fast one is sure."
        )


def _first_error(labelling: Labelling) -> str:
    errors: Sequence[Any] = labelling.details["error"].dropna().tolist()
    return f" ({errors[0]})" if errors else ""
