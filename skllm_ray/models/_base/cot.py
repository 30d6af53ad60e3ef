"""Classifiers that explain themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.multilabel import MultiLabelClassifier
from skllm_ray.models._base.reading import Explained, Reading
from skllm_ray.prompts.templates import COT_CLF_PROMPT_TEMPLATE, COT_MLCLF_PROMPT_TEMPLATE
from skllm_ray.tasks.cot import CoTTask, MultiLabelCoTTask


class CoTClassifier(LLMClassifier):
    """Base of the classifiers that give a label and an explanation."""

    _can_score: ClassVar[bool] = False
    _gives_scores: ClassVar[bool] = False
    _explains: ClassVar[bool] = True

    def predict(
        self,
        X: Any,
        num_workers: int | None = None,
        *,
        on_error: OnError | None = None,
        delivery: str = "direct",
    ) -> NDArray[Any]:
        """Return the label of every text and the explanation of it.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        num_workers : int or None, default=None
            The most requests that this call may have in flight, for API backends.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's.
        delivery : {"direct", "batch"}, default="direct"
            "batch" sends provider batches, which cost half and take up to a day; see `predict_details`.

        Returns
        -------
        ndarray of object of shape (n_samples, 2)
            Each row's label and explanation; the explanation is ``""`` where the model gave none.
        """
        return super().predict(X, num_workers, on_error=on_error, delivery=delivery)

    def _labels_in(self, predictions: NDArray[Any]) -> Sequence[Any]:
        return list(predictions[:, 0].tolist())

    def _task(self) -> CoTTask:
        return CoTTask(self._names(), self.prompt_template or COT_CLF_PROMPT_TEMPLATE, self._descriptions())

    def _reading(self) -> Reading:
        return Explained.of(super()._reading())

    def _array(self, values: Sequence[Any]) -> NDArray[Any]:
        return _rectangle([value or [None, None] for value in values])


class MultiLabelCoTClassifier(MultiLabelClassifier):
    """Base of the classifiers that give any number of labels and an explanation."""

    _gives_scores: ClassVar[bool] = False
    _explains: ClassVar[bool] = True

    def predict(
        self,
        X: Any,
        num_workers: int | None = None,
        *,
        on_error: OnError | None = None,
        delivery: str = "direct",
    ) -> NDArray[Any]:
        """Return the labels of every text and the explanation of them.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        num_workers : int or None, default=None
            The most requests that this call may have in flight, for API backends.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's.
        delivery : {"direct", "batch"}, default="direct"
            "batch" sends provider batches, which cost half and take up to a day; see `predict_details`.

        Returns
        -------
        ndarray of object of shape (n_samples, max_labels + 1)
            Each row's labels, padded with ``""``, and in the last column the explanation.
        """
        found: NDArray[Any] = self._results(X, on_error, num_workers, delivery=delivery)
        return found

    def _label_sets(self, found: NDArray[Any]) -> list[set[str] | None]:
        return super()._label_sets(found[:, :-1])

    def _task(self) -> MultiLabelCoTTask:
        template = self.prompt_template or COT_MLCLF_PROMPT_TEMPLATE
        return MultiLabelCoTTask(self._names(), self.max_labels, template, self._descriptions())

    def _reading(self) -> Reading:
        return Explained.of(super()._reading())

    def _array(self, values: Sequence[Any]) -> NDArray[Any]:
        pairs = [value or [None, None] for value in values]
        return _rectangle([[*self._pad(labels), why] for labels, why in pairs])


def _rectangle(rows: Sequence[Sequence[Any]]) -> NDArray[Any]:
    found = np.empty((len(rows), len(rows[0])), dtype=object)
    for position, row in enumerate(rows):
        found[position] = row
    return found
