"""Kept labels that the strong model is asked about all the same, by chance, for as long as labels are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from skllm_ray.cascade.certificate import clopper_pearson

_COUNTS: Final = ("n_rows", "n_kept", "n_audited", "n_disagreed")


@dataclass(frozen=True, slots=True)
class Audit:
    """What became of kept labels that the strong model was asked about all the same, by chance.

    A certificate is about the rows that it was made for, or about rows like its sample. An audit goes on for as long as
    labels are kept, and tells when they no longer support the promise.

    Examples
    --------
    >>> audit = Audit(n_rows=100_000, n_kept=60_000, n_audited=600, n_disagreed=12, max_disagreement=0.05,
    ...               confidence=0.95)
    >>> print(audit)
    Of 600 audited labels, 12 differed from the strong model's: 2% of the kept ones, and with a confidence of 95%
    between 1% and 3.5%. That is 0.62% to 2.1% of all rows, where 5% were promised.
    >>> audit.alarm
    False
    """

    n_rows: int
    """Rows so far."""
    n_kept: int
    """Rows with a fast label, those audited among them."""
    n_audited: int
    """Of these, those about which the strong model was asked."""
    n_disagreed: int
    """Of these, those whose labels differ; a failed strong answer is none."""
    max_disagreement: float
    """The largest share of all rows that was promised."""
    confidence: float
    """That of the interval."""

    @property
    def interval(self) -> tuple[float, float]:
        """The share of kept labels that differ, with the confidence (Clopper and Pearson, 1934)."""
        return clopper_pearson(self.n_disagreed, self.n_audited, self.confidence)

    @property
    def of_all(self) -> tuple[float, float]:
        """The same as a share of all rows: those that are not kept have the strong label."""
        kept = self.n_kept / self.n_rows if self.n_rows else 0.0
        low, high = self.interval
        return low * kept, high * kept

    @property
    def alarm(self) -> bool:
        """Whether more labels differ than was promised, as far as the interval tells."""
        return self.of_all[0] > self.max_disagreement

    def __add__(self, other: Audit) -> Audit:
        """Return both audits as one."""
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        return replace(self, **counts)

    def __str__(self) -> str:
        if not self.n_audited:
            return "No kept label was audited yet."
        rate, (low, high), (least, most) = self.n_disagreed / self.n_audited, self.interval, self.of_all
        end = ". More differ than was promised: certify anew." if self.alarm else "."
        return (
            f"Of {self.n_audited:,} audited labels, {self.n_disagreed:,} differed from the strong model's: "
            f"{_percent(rate)} of the kept ones, and with a confidence of {100 * self.confidence:g}% between "
            f"{_percent(low)} and {_percent(high)}. That is {_percent(least)} to {_percent(most)} of all rows, where "
            f"{_percent(self.max_disagreement)} were promised{end}"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"
