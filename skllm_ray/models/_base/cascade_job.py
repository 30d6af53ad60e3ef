"""What a batch job needs of a cascade: two steps of one plan, and the columns that tell how a label came about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError, NotSupportedError
from skllm_ray.execution.plan import Plan, Promised
from skllm_ray.models._base.cascade_reading import CascadeReading
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.labelling import innermost
from skllm_ray.models._base.student_backend import student_step
from skllm_ray.tasks.base import Task


class CascadeOfModels:
    """A fast classifier and a strong language model as one estimator, for a batch job.

    Parameters
    ----------
    fast : classifier
        Fitted: a language model, or a classifier of scikit-learn's that takes texts.
    strong : classifier
        Fitted: a language model.
    promise : Promised
        The terms of the certificate.

    Raises
    ------
    NotSupportedError
        If they are no such classifiers.
    """

    def __init__(self, fast: Any, strong: Any, promise: Promised) -> None:
        self.strong, (self.fast, _), self._promise = _model(strong, "strong"), innermost(fast), promise
        if isinstance(self.fast, LLMClassifier) and _model(fast, "fast")._names() != self.strong._names():
            raise ConfigurationError("fast and strong must have the same labels, under the same names.")

    def task(self) -> Task[Any]:
        """Return what the strong one asks."""
        return self.strong._task()

    def plan(self) -> Plan:
        """Return both models' steps; those of the strong one take all rows until there is a certificate."""
        first, second = self._first(), self.strong._checked_plan()
        chooses = replace(second[0], takes=(self._promise,), stage="strong")  # what follows goes on from its rows
        return (*first[:-1], replace(first[-1], stage="fast"), chooses, *second[1:])

    def secrets(self) -> dict[str, Secret]:
        """Return both models' credentials."""
        own = self.fast._secrets() if isinstance(self.fast, LLMClassifier) else {}
        return {**own, **self.strong._secrets()}

    def reading(self) -> CascadeReading:
        """Return what becomes of rows."""
        return CascadeReading.of(self.strong._reading())

    def _first(self) -> Plan:
        if isinstance(self.fast, LLMClassifier):
            return self.fast._checked_plan(log_probs=True)
        names = dict(zip(self.strong.classes_.tolist(), self.strong._names(), strict=True))
        return (student_step(self.fast, [names[label] for label in np.asarray(self.fast.classes_).tolist()]),)


def _model(classifier: Any, name: str) -> LLMClassifier:
    model, _ = innermost(classifier)
    if not isinstance(model, LLMClassifier):
        raise NotSupportedError(
            f"{name}={type(model).__name__}: the strong one of a batch cascade must be a language model, since its "
            "answers are what a job journals, pays for and resumes.",
            "Other classifiers go with CascadeClassifier.predict and predict_dataset.",
        )
    return model
