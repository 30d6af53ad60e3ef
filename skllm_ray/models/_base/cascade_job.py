"""What a batch job needs of a cascade: two steps of one plan, and the columns that tell how a label came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError, NotSupportedError
from skllm_ray.execution.plan import Plan, Promised, label_probability
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.cot import CoTClassifier, MultiLabelCoTClassifier
from skllm_ray.models._base.estimator import OnError, Process
from skllm_ray.models._base.labelling import innermost
from skllm_ray.models._base.student_backend import student_step
from skllm_ray.tasks.base import Row, Task


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
        """Return both steps; the second takes all rows until there is a certificate."""
        first, second = self._first(), self.strong._checked_plan()
        if len(first) > 1 or len(second) > 1:
            raise NotSupportedError(
                "A batch cascade takes models of one step.", "Zero-shot and few-shot classifiers are; dynamic are not."
            )
        return (replace(first[0], stage="fast"), replace(second[0], takes=(self._promise,), stage="strong"))

    def secrets(self) -> dict[str, Secret]:
        """Return both models' credentials."""
        own = self.fast._secrets() if isinstance(self.fast, LLMClassifier) else {}
        return {**own, **self.strong._secrets()}

    def output_types(self) -> dict[str, pa.DataType | None]:
        """Return the strong one's columns, and those that tell how a label came about."""
        label = self.strong._column_types()["prediction"]
        return {**self.strong._output_types(), "stage": pa.string(), "score": pa.float64(), "fast_label": label}

    def columns_of(
        self, values: list[Any], process: Process, mode: OnError
    ) -> tuple[list[Sequence[Any]], list[Row[Any]]]:
        """Return the output columns' values for a block of a text column, and its rows."""
        columns, rows = self.strong._columns_of(values, process, mode)
        first = [row if row.stage == "fast" else row.replaced for row in rows]
        known = [one for one in first if one is not None]
        scores = iter(label_probability(known).tolist())
        read = self.strong._reader()  # both have the labels under the same names
        labels = [read(one.value) if one is not None and one.value is not None else None for one in first]
        more = [[row.stage or None for row in rows], [None if one is None else next(scores) for one in first]]
        return [*columns, *more, *self.strong._columns(labels, rows)], rows

    def _first(self) -> Plan:
        if isinstance(self.fast, LLMClassifier):
            return self.fast._checked_plan(log_probs=True)
        names = dict(zip(self.strong.classes_.tolist(), self.strong._names(), strict=True))
        return (student_step(self.fast, [names[label] for label in np.asarray(self.fast.classes_).tolist()]),)


def _model(classifier: Any, name: str) -> LLMClassifier:
    model, _ = innermost(classifier)
    if not isinstance(model, LLMClassifier) or isinstance(model, (CoTClassifier, MultiLabelCoTClassifier)):
        raise NotSupportedError(
            f"{name}={type(model).__name__}: a batch cascade takes language models that answer with a label alone.",
            "Other classifiers go with CascadeClassifier.predict and predict_dataset.",
        )
    return model
