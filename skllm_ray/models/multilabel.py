"""What the multi-label classifiers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import ConfigurationError, NotSupportedError
from skllm_ray.models import results
from skllm_ray.models.classifier import LLMClassifier, OnError
from skllm_ray.models.texts import Texts, as_label_lists, as_texts
from skllm_ray.tasks.base import Row


class MultiLabelClassifier(LLMClassifier):
    """Base of the classifiers that give a text any number of labels."""

    _placeholders: ClassVar[tuple[str, ...]] = ("x", "labels", "max_cats")

    max_labels: int

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the candidate labels. Nothing is sent and nothing is started.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,) or None
            Ignored but for its length.
        y : list of lists of str
            The labels of each text, or, with ``X=None``, ``[candidate_labels]``.

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
        self._check_parameters()
        lists = as_label_lists(y, None if X is None else len(as_texts(X).values))
        counts = Counter(label for labels in lists for label in labels)
        self.classes_ = np.asarray(sorted(counts))
        frequencies = np.asarray([counts[label] for label in self.classes_], np.float64)
        self.class_probabilities_ = frequencies / frequencies.sum()
        self._check_descriptions()
        return self

    def predict(self, X: Any, num_workers: int | None = None, *, on_error: OnError | None = None) -> NDArray[Any]:
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
            Each row's labels, padded with ``""``.
        """
        texts, rows, mode = self._run(X, on_error, num_workers)
        results.warn_invalid(rows, self.default_label)
        padded = [self._pad(labels) for labels in self._predictions(texts, rows, mode)]
        return np.asarray(padded, dtype=object)

    def predict_proba(self, X: Any, *, on_error: OnError | None = None) -> NDArray[np.float64]:
        """Not offered in this release: an answer with several labels has no probability per label."""
        del X, on_error
        raise NotSupportedError(f"{type(self).__name__} gives no probabilities in this release.", "Use predict.")

    def _predictions(self, texts: Texts, rows: Sequence[Row[Any]], mode: OnError) -> list[Any]:
        return [
            list(row.value) if row.value is not None else self._fallback(text, row, mode)
            for text, row in zip(texts.values, rows, strict=True)
        ]

    def _fallback(self, text: str | None, row: Row[Any], mode: OnError) -> Any:
        label = super()._fallback(text, row, mode)
        return None if label is None else [label]

    def _pad(self, labels: list[str] | None) -> list[str | None]:
        if labels is None:
            return [None] * self.max_labels
        return [*labels, *[""] * (self.max_labels - len(labels))]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if isinstance(self.max_labels, bool) or not isinstance(self.max_labels, int) or self.max_labels < 1:
            raise ConfigurationError(f"max_labels must be an int of at least 1; got {self.max_labels!r}.")
