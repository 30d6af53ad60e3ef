"""The labels' prior: what a model says of no text in particular, and answers without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skllm_ray.tasks.base import NOT_ASKED, UNSEEN_PROBABILITY, Row, RowError

CONTENT_FREE: Final = ("N/A", "", "[MASK]")
"""Texts that say nothing, after Zhao et al. 2021."""
_UNSEEN: Final = float(np.log(UNSEEN_PROBABILITY))


@dataclass(frozen=True)
class LabelPrior:
    """The labels' prior of a task, and the texts that it is estimated from."""

    texts: tuple[str, ...]
    probabilities: tuple[float, ...] | None = field(default=None, metadata=NOT_ASKED)
    """Each label's, with a sum of 1, in the task's order; None before it is estimated."""

    def take_out(self, rows: Sequence[Row[Any]], labels: Sequence[str]) -> list[Row[Any]]:
        """Return the rows with the prior taken out of their probabilities, and the label that is then the likeliest."""
        places = [i for i, row in enumerate(rows) if row.valid and row.reply.log_probs is not None]
        if self.probabilities is None or not places:
            return list(rows)
        told = np.asarray([rows[i].reply.log_probs for i in places])
        unseen = _is_unseen(told)  # of which nothing is known but that others are likelier
        found = _normalised(np.where(unseen, -np.inf, told - np.log(self.probabilities)))
        corrected = list(rows)
        for i, log_probs in zip(places, np.where(unseen, _UNSEEN, found), strict=True):
            reply = replace(rows[i].reply, log_probs=tuple(log_probs.tolist()))
            corrected[i] = replace(rows[i], value=labels[int(log_probs.argmax())], reply=reply)
        return corrected


def estimate_prior(rows: Sequence[Row[Any]]) -> tuple[float, ...] | RowError:
    """Return each label's probability over some texts, or why there is none.

    It is the exponential of the mean log-probability, normalised. Where a server tells a few alternatives alone, a
    label among none of them has no log-probability to take a mean of: then it is the mean probability, and one text
    more counts all labels alike, so that a label that was never seen is not taken for impossible.
    """
    told = np.asarray([row.reply.log_probs for row in rows if row.reply.log_probs is not None])
    if not len(told) or 2 * len(told) < len(rows):
        failed = next((row.error for row in rows if row.error is not None), None)
        return failed or RowError("invalid_answer", "Most answers to them named none of the labels.")
    if _is_unseen(told).any():
        n_labels = told.shape[1]
        found = (np.where(_is_unseen(told), 0.0, np.exp(told)).sum(axis=0) + 1 / n_labels) / (len(told) + 1)
    else:
        found = np.exp(_normalised(told.mean(axis=0)))
    return tuple((found / found.sum()).tolist())


def _is_unseen(log_probs: NDArray[np.float64]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isclose(log_probs, _UNSEEN, rtol=0, atol=1e-12)
    return found


def _normalised(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    highest = log_probs.max(axis=-1, keepdims=True)
    shifted = log_probs - highest
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
