"""Labels as the answers that a model is tuned to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skllm_ray.errors import InputError
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.inputs import as_label_lists, as_labels
from skllm_ray.models._base.multilabel import MultiLabelClassifier
from skllm_ray.models._base.tunable import Tunable, _thaw


class TunableClassifier(Tunable, LLMClassifier):
    """Base of the tunable classifiers with one label per text. The tuned model is asked exactly as it was trained."""

    def _learn(self, X: Any, y: Any) -> None:
        LLMClassifier.fit(self, X, y)

    def _answers(self, X: Any, y: Any) -> list[str]:
        choices = self._task().choices  # type: ignore[attr-defined]
        described = self.label_descriptions is not None
        return [choices.answer([str(label)]) for label in as_labels(y, len(X), described)]

    def _fitted(self) -> dict[str, Any]:
        return {"classes": self.classes_, "probabilities": self.class_probabilities_}

    def _restore(self, fitted: Mapping[str, Any], classes: Sequence[Any] | None) -> None:
        known: dict[str, Any] = _thaw(fitted) if fitted else {}
        labels = list(classes) if classes is not None else known.get("classes")
        if not labels:
            raise InputError("The store does not have this job's labels.", "Pass them: from_job(id, classes=[…]).")
        self.classes_ = np.unique(np.asarray(labels))
        probabilities = known.get("probabilities") if classes is None else None
        n_classes = len(self.classes_)
        self.class_probabilities_ = np.asarray(probabilities or [1 / n_classes] * n_classes, np.float64)


class TunableMultiLabelClassifier(TunableClassifier, MultiLabelClassifier):
    """Base of the tunable classifiers with any number of labels per text."""

    def _learn(self, X: Any, y: Any) -> None:
        MultiLabelClassifier.fit(self, X, y)
        if len(self.classes_) < 2:
            raise InputError(
                f"y has the single label {str(self.classes_[0])!r}.", "A choice needs at least two labels."
            )

    def _answers(self, X: Any, y: Any) -> list[str]:
        choices = self._task().choices  # type: ignore[attr-defined]
        lists = as_label_lists(y, len(X))
        for position, labels in enumerate(lists):
            if len(labels) > self.max_labels:
                raise InputError(
                    f"y[{position}] has {len(labels)} labels; max_labels is {self.max_labels}.", "Raise max_labels."
                )
        return [choices.answer(list(labels)) for labels in lists]
