"""A classifier's label prior: the texts that it is estimated from, and what their answers tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import JobFailedError, NotSupportedError
from skllm_ray.models._base.inputs import as_texts
from skllm_ray.tasks.base import Row, RowError
from skllm_ray.tasks.prior import CONTENT_FREE, estimate_prior

_MOST_TEXTS: Final = 200
_FEW_TEXTS: Final = 20
"""The fewest texts for a prior: one from fewer texts would describe those texts rather than the labels."""


def prior_texts(X: Any, random_state: int | None) -> tuple[str, ...]:
    """Return some of the texts that `fit` got; texts without content where it got too few."""
    texts = [] if X is None else list(dict.fromkeys(filter(None, as_texts(X).values)))
    if len(texts) < _FEW_TEXTS:
        return CONTENT_FREE
    chosen = np.random.default_rng(random_state or 0).permutation(len(texts))[:_MOST_TEXTS]
    return tuple(texts[i] for i in sorted(chosen))


def prior_from(rows: Sequence[Row[Any]]) -> NDArray[np.float64]:
    """Return the labels' prior that the answers to the texts for it tell.

    Raises
    ------
    NotSupportedError
        If the model gives no probabilities.
    JobFailedError
        If most texts failed.
    """
    found = estimate_prior(rows)
    if isinstance(found, RowError):
        refusal = NotSupportedError if found.kind == "not_supported" else JobFailedError
        raise refusal(
            f"label_prior='uniform': of the {len(rows)} texts that it is estimated from, most gave no "
            f"probabilities ({found.kind}): {found.message}",
            found.hint,
        )
    return np.asarray(found)
