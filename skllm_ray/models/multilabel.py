"""What the multi-label classifiers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skllm_ray.errors import NotSupportedError
from skllm_ray.models.base import OnError, refuse_sample_weight
from skllm_ray.models.classifier import LLMClassifier
from skllm_ray.models.constraints import Constraints, Whole
from skllm_ray.models.texts import as_label_lists, as_texts
from skllm_ray.tasks.base import Row

_MOST_LABELS: Final = 1000
"""Every row of a result has so many columns."""


class MultiLabelClassifier(LLMClassifier):
    """Base of the classifiers that give a text any number of labels."""

    _placeholders: ClassVar[tuple[str, ...]] = ("x", "labels", "max_cats")

    _parameter_constraints: ClassVar[Constraints] = {"max_labels": [Whole(1, _MOST_LABELS)]}

    max_labels: int
    indicators_: list[str] | None
    """The columns of `y`, where it was a DataFrame."""

    def fit(self, X: Any, y: Any, sample_weight: None = None) -> Self:
        """Learn the candidate labels. Nothing is sent and nothing is started.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,) or None
            Ignored but for its length.
        y : list of lists of str, or DataFrame of shape (n_samples, n_classes)
            The labels of each text, or, with ``X=None``, ``[candidate_labels]``. A DataFrame has a column for each
            label and holds 0 and 1; it is the form that scikit-learn's tools take, and `predict` then returns it too.
        sample_weight : None
            Refused.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If `y` is not a list of lists, or holds no labels or blank ones.
        ConfigurationError
            If a constructor parameter cannot work.
        """
        refuse_sample_weight(sample_weight)
        self._check_parameters()
        lists = as_label_lists(y, None if X is None else len(as_texts(X).values))
        counts = Counter(label for labels in lists for label in labels)
        counts.update(dict.fromkeys(map(str, y.columns), 0) if isinstance(y, pd.DataFrame) else {})
        self.classes_ = np.asarray(sorted(counts))
        frequencies = np.asarray([counts[label] for label in self.classes_], np.float64)
        self.class_probabilities_ = frequencies / frequencies.sum()
        self.indicators_ = list(map(str, y.columns)) if isinstance(y, pd.DataFrame) else None
        self._check_descriptions()
        return self

    def predict(self, X: Any, num_workers: int | None = None, *, on_error: OnError | None = None) -> Any:
        """Return the labels of every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        num_workers : int or None, default=None
            The most requests that this call may have in flight, for API backends.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's; with "coerce" a failed row is all None.

        Returns
        -------
        ndarray of str of shape (n_samples, max_labels)
            Each row's labels, padded with ``""``; or, after a `fit` with a DataFrame, a DataFrame of 0 and 1 with the
            same columns and the index of `X`, where a failed row is all NaN with "coerce".
        """
        found = self._results(X, on_error, num_workers)
        if self.indicators_ is None:
            return found
        rows = [[np.nan if row[0] is None else int(label in row) for label in self.indicators_] for row in found]
        return pd.DataFrame(rows, index=as_texts(X).index, columns=self.indicators_)

    def predict_proba(self, X: Any, *, on_error: OnError | None = None) -> NDArray[np.float64]:
        """Not offered in this release: an answer with several labels has no probability per label."""
        del X, on_error
        check_is_fitted(self)
        raise NotSupportedError(f"{type(self).__name__} gives no probabilities in this release.", "Use predict.")

    def _reader(self) -> Callable[[Any], Any]:
        return list

    def _default(self, text: str | None) -> list[str]:
        return [super()._default(text)]

    def _array(self, values: Sequence[Any]) -> NDArray[Any]:
        return np.asarray([self._pad(labels) for labels in values], dtype=object)

    def _column_types(self) -> dict[str, pa.DataType | None]:
        return {"prediction": pa.list_(pa.string())}

    def _columns(self, values: Sequence[Any], rows: Sequence[Row[Any]]) -> list[Sequence[Any]]:
        del rows
        return [values]

    def _pad(self, labels: list[str] | None) -> list[str | None]:
        if labels is None:
            return [None] * self.max_labels
        return [*labels, *[""] * (self.max_labels - len(labels))]
