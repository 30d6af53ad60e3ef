"""What the multi-label classifiers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skllm_ray.errors import NotSupportedError
from skllm_ray.models._base import scoring
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.constraints import Constraints, Whole
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.inputs import as_indicators, as_label_lists, as_texts, check_length, label_lists
from skllm_ray.models._base.label_names import names_of
from skllm_ray.models._base.reading import ColumnTypes, Draw, LabelListReading, Reading

_MOST_LABELS: Final = 1000
"""Every row of a result has so many columns."""


class MultiLabelClassifier(LLMClassifier):
    """Base of the classifiers that give a text any number of labels."""

    _placeholders: ClassVar[tuple[str, ...]] = ("x", "labels", "max_cats")

    _can_score: ClassVar[bool] = False
    _parameter_constraints: ClassVar[Constraints] = {"max_labels": [Whole(1, _MOST_LABELS)]}

    max_labels: int
    indicators_: list[str] | None
    """The columns of `y`, where it was a matrix of 0 and 1."""
    indicators_are_array_: bool = False
    """Whether that was an array, and `predict` returns one."""

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the candidate labels. Nothing is sent and nothing is started.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,) or None
            Ignored but for its length.
        y : list of lists of str, DataFrame or array of shape (n_samples, n_classes), or list of str
            The labels of each text, or, with ``X=None``, the candidate labels. A DataFrame has a column for each label
            and holds 0 and 1; it is a form that scikit-learn's tools take, and `predict` then returns it too. So does
            an array, such as ``MultiLabelBinarizer`` makes; ``label_names`` names its columns.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If `y` is of no such form, or holds no labels or blank ones.
        ConfigurationError
            If a constructor parameter cannot work.
        """
        self._check_parameters()
        lists = as_label_lists(y, None if X is None else len(as_texts(X).values), self._column_names())
        counts = Counter(label for labels in lists for label in labels)
        if as_indicators(y) is not None:
            self.indicators_ = list(map(str, y.columns)) if isinstance(y, pd.DataFrame) else self._column_names()
            counts.update(dict.fromkeys(self.indicators_ or (), 0))
        else:
            self.indicators_ = None
        self.indicators_are_array_ = self.indicators_ is not None and not isinstance(y, pd.DataFrame)
        self.classes_ = np.asarray(sorted(counts))
        frequencies = np.asarray([counts[label] for label in self.classes_], np.float64)
        self.class_probabilities_ = frequencies / frequencies.sum()
        self._check_descriptions()
        return self

    def predict(
        self,
        X: Any,
        num_workers: int | None = None,
        *,
        on_error: OnError | None = None,
        delivery: str = "direct",
    ) -> Any:
        """Return the labels of every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        num_workers : int or None, default=None
            The most requests that this call may have in flight, for API backends.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's; with "coerce" a failed row is all None.
        delivery : {"direct", "batch"}, default="direct"
            "batch" sends provider batches, which cost half and take up to a day; see `predict_details`.

        Returns
        -------
        ndarray of str of shape (n_samples, max_labels)
            Each row's labels, padded with ``""``; or, after a `fit` with a DataFrame, a DataFrame of 0 and 1 with the
            same columns and the index of `X`, where a failed row is all NaN with "coerce"; after one with an array, an
            array of them.
        """
        found = self._results(X, on_error, num_workers, delivery=delivery)
        if self.indicators_ is None:
            return found
        rows = [[np.nan if row[0] is None else int(label in row) for label in self.indicators_] for row in found]
        if self.indicators_are_array_:
            return np.asarray(rows)
        return pd.DataFrame(rows, index=as_texts(X).index, columns=self.indicators_)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of the texts whose labels are exactly the true ones, in any order.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        y : list of lists of str, or DataFrame or array of shape (n_samples, n_classes)
            The true labels.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How much each row counts.

        Returns
        -------
        float
            Between 0 and 1; a row that failed, and is None with "coerce", counts as wrong.
        """
        check_is_fitted(self)
        truth = label_lists(y, self._column_names() or self.indicators_)
        check_length(X, truth)
        scoring.check_weights(sample_weight, len(truth))
        found = self._label_sets(self._results(X, None))
        right = [None if one is None else one == set(true) for one, true in zip(found, truth, strict=True)]
        return scoring.accuracy(right, [True] * len(truth), sample_weight)

    def predict_proba(self, X: Any, *, on_error: OnError | None = None) -> NDArray[np.float64]:
        """Not offered in this release: an answer with several labels has no probability per label."""
        del X, on_error
        check_is_fitted(self)
        raise NotSupportedError(f"{type(self).__name__} gives no probabilities in this release.", "Use predict.")

    def _label_sets(self, found: NDArray[Any]) -> list[set[str] | None]:
        """Return the labels of each row of what :meth:`_array` made; None for rows that failed."""
        return [None if row[0] is None else set(row) - {""} for row in found]

    def _column_names(self) -> list[str] | None:
        """Return the names of an indicator array's columns."""
        names = self.label_names
        return None if names is None else list(names_of(range(len(names)), names))

    def _names(self) -> tuple[str, ...]:
        return tuple(str(label) for label in self.classes_)

    def _reading(self) -> Reading:
        drawn = None
        if self.default_label == "Random":
            drawn = Draw(self.classes_, self.class_probabilities_, self.random_state)
        types: ColumnTypes = {"prediction": pa.list_(pa.string())}
        return LabelListReading(self.model, types, self._by_name(), self._fixed_default(), drawn)

    def _array(self, values: Sequence[Any]) -> NDArray[Any]:
        return np.asarray([self._pad(labels) for labels in values], dtype=object)

    def _pad(self, labels: list[str] | None) -> list[str | None]:
        if labels is None:
            return [None] * self.max_labels
        return [*labels, *[""] * (self.max_labels - len(labels))]
