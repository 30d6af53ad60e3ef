"""How sure a cascade may be of a fast label: its probability, or what rows that both models labelled teach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

SCORES: Final = ("probability", "learned")
"""What a fast label may be scored by."""
_LEAST: Final = 1e-12


@dataclass(frozen=True, slots=True)
class AgreementScore:
    """A score of fast labels; without weights it is the label's probability.

    It is a logistic regression's decision, as plain numbers: a row's score does not depend, not in the last bits
    either, on the rows that are scored with it.
    """

    weights: tuple[float, ...] = ()
    """One for each feature."""
    offset: float = 0.0

    @classmethod
    def learned(cls, scores: NDArray[np.float64], features: NDArray[np.float64], agree: NDArray[np.bool_]) -> Self:
        """Return what tells agreement best, learned from rows about which both models were asked.

        Where these rows agree or differ without exception there is nothing to learn, and the probability stays.

        Parameters
        ----------
        scores : ndarray of shape (n_rows,)
            The labels' probabilities; -inf where there is no fast label.
        features : ndarray of shape (n_rows, n_features)
            As :func:`agreement_features` makes them.
        agree : ndarray of bool, of shape (n_rows,)
            Whether both models gave the same label.
        """
        from scipy import optimize  # nobody else waits for it

        scored = scores > -np.inf
        if len(np.unique(agree[scored])) < 2:
            return cls()
        known, sign = features[scored], np.where(agree[scored], 1.0, -1.0)
        mean, scale = known.mean(axis=0), known.std(axis=0)
        scale[scale == 0] = 1.0
        scaled = (known - mean) / scale
        start = np.zeros(features.shape[1] + 1)
        *found, offset = optimize.minimize(_penalised_loss, start, (scaled, sign), "L-BFGS-B", jac=True).x
        weights = np.asarray(found) / scale
        return cls(tuple(weights.tolist()), float(offset - (weights * mean).sum()))

    def of(self, scores: ArrayLike, features: ArrayLike) -> NDArray[np.float64]:
        """Return the rows' scores from their probabilities and features; -inf where there is no fast label."""
        given = np.asarray(scores, np.float64)
        if not self.weights:
            return given
        told = (np.ascontiguousarray(features, np.float64) * np.asarray(self.weights)).sum(axis=1) + self.offset
        return np.where(given > -np.inf, told, -np.inf)


def _penalised_loss(
    weights: NDArray[np.float64], features: NDArray[np.float64], sign: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return a logistic regression's loss with a ridge penalty, and its gradient; the offset is the last weight."""
    from scipy.special import expit

    margin = sign * (features @ weights[:-1] + weights[-1])
    slope = -sign * expit(-margin)
    loss = np.logaddexp(0, -margin).sum() + weights[:-1] @ weights[:-1] / 2
    return float(loss), np.append(features.T @ slope + weights[:-1], slope.sum())


def agreement_features(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a score can be learned from: how sure the likeliest label is, by how much, and which one it is.

    Parameters
    ----------
    probabilities : ndarray of shape (n_rows, n_labels)
        NaN counts as 0.

    Returns
    -------
    ndarray of shape (n_rows, 3 + n_labels)
    """
    p = np.nan_to_num(probabilities, nan=0.0)
    falling = -np.sort(-p, axis=1)
    first = np.clip(falling[:, 0], _LEAST, 1 - _LEAST)
    second = np.clip(falling[:, 1], _LEAST, 1.0) if p.shape[1] > 1 else 1 - first
    entropy = -(p * np.log(np.clip(p, _LEAST, 1))).sum(axis=1)
    numbers = np.column_stack([np.log(first / (1 - first)), np.log(first / second), entropy])
    return np.hstack([numbers, np.eye(p.shape[1])[p.argmax(axis=1)]])
