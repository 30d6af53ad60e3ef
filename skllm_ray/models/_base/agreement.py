"""How sure a cascade may be of a fast label: its probability, or what was learned from rows that both models saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skllm_ray.models._base.labelling import Labelling

SCORES: Final = ("probability", "learned")
"""What a fast label may be scored by."""


@dataclass(frozen=True)
class AgreementScore:
    """A score of fast labels; without a model it is the label's probability."""

    model: Pipeline | None = None

    @classmethod
    def learned(cls, fast: Labelling, agree: NDArray[np.bool_]) -> Self:
        """Return what tells agreement best, learned from rows about which both models were asked.

        Where these rows agree or differ without exception there is nothing to learn, and the probability stays.
        """
        scored = fast.scores > -np.inf
        if len(np.unique(agree[scored])) < 2:
            return cls()
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        return cls(model.fit(fast.features[scored], agree[scored]))

    def of(self, fast: Labelling) -> NDArray[np.float64]:
        """Return the rows' scores; -inf where there is no fast label."""
        if self.model is None:
            return fast.scores
        scores = np.full(len(fast.scores), -np.inf)
        scored = fast.scores > -np.inf
        if scored.any():
            told: Any = self.model.decision_function(fast.features[scored])
            scores[scored] = told
        return scores
