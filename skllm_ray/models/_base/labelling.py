"""What any classifier says about some rows, in one form: a language model's, a pipeline's, scikit-learn's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from skllm_ray.cascade import agreement_features
from skllm_ray.errors import JobFailedError, NotSupportedError, PartialResultError
from skllm_ray.models._base import results
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.inputs import Texts, as_texts
from skllm_ray.models._base.multilabel import MultiLabelClassifier
from skllm_ray.tasks.base import Reply, Row, RowError

SUMS: Final = ("attempts", "prompt_tokens", "completion_tokens", "cost_usd")
"""Columns in which a row that was asked about several times has the sum."""


@dataclass(frozen=True)
class Rows:
    """The rows of a call: texts, or a table that is no column of texts."""

    X: Any
    index: pd.Index[Any]
    present: NDArray[np.int64]
    """The positions of the rows that are there; a missing text is not."""

    @classmethod
    def of(cls, X: Any) -> Rows:
        """Return the rows of `X`."""
        if issparse(X) or (isinstance(X, (np.ndarray, pd.DataFrame)) and _is_table(X)):
            index = X.index if isinstance(X, pd.DataFrame) else pd.RangeIndex(X.shape[0])
            return cls(X.tocsr() if issparse(X) else X, index, np.arange(X.shape[0]))
        texts: Texts = as_texts(X)
        return cls(texts.values, texts.index, np.asarray(texts.present, np.int64))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def missing(self) -> NDArray[np.int64]:
        """The positions of the rows that are not there."""
        return np.setdiff1d(np.arange(len(self)), self.present)

    @property
    def texts(self) -> list[Any] | None:
        """The texts, one for each row; None for a table."""
        return self.X if isinstance(self.X, list) else None

    def take(self, positions: NDArray[np.int64]) -> Any:
        """Return some of the rows, as a classifier takes them."""
        if isinstance(self.X, list):
            return [self.X[position] for position in positions]
        return self.X.iloc[positions] if isinstance(self.X, pd.DataFrame) else self.X[positions]


@dataclass(frozen=True)
class Labelling:
    """What a classifier said about some rows."""

    labels: NDArray[np.object_]
    """One label for each row, or a sorted tuple of labels; None where the classifier failed."""
    answered: NDArray[np.bool_]
    """Whether that is the classifier's own answer, and not what stands for an invalid one."""
    scores: NDArray[np.float64]
    """The label's probability; -inf where there is none."""
    features: NDArray[np.float64]
    """What may tell whether another classifier would agree, of shape (n_rows, n_features)."""
    details: pd.DataFrame
    """The rows in the form of ``predict_details``."""

    def agrees(self, other: Labelling) -> NDArray[np.bool_]:
        """Return where both gave the same label, and both gave one."""
        same = [one == two for one, two in zip(self.labels, other.labels, strict=True)]
        return np.asarray(same, bool) & self.answered & other.answered

    def take(self, positions: NDArray[Any]) -> Labelling:
        """Return some of the rows."""
        answered, scores, features = self.answered[positions], self.scores[positions], self.features[positions]
        return Labelling(self.labels[positions], answered, scores, features, self.details.iloc[positions])

    def with_costs(self, positions: NDArray[Any], second: Labelling) -> Labelling:
        """Return the rows with what it cost to ask about some of them a second time."""
        details = self.details.copy()
        for name in SUMS:
            values = details[name].to_numpy(copy=True)
            values[positions] = values[positions] + second.details[name].to_numpy()
            details[name] = values
        return replace(self, details=details)

    @classmethod
    def joined(cls, parts: Sequence[tuple[NDArray[np.int64], Labelling]]) -> Labelling:
        """Return what was said in several calls, each about the rows at its positions, in the order of the rows."""
        order = np.argsort(np.concatenate([positions for positions, _ in parts]), kind="stable")
        found = [part for _, part in parts]
        return cls(
            np.concatenate([part.labels for part in found])[order],
            np.concatenate([part.answered for part in found])[order],
            np.concatenate([part.scores for part in found])[order],
            np.concatenate([part.features for part in found])[order],
            pd.concat([part.details for part in found], ignore_index=True).iloc[order],
        )


def label_rows(classifier: Any, X: Any, *, scored: bool) -> Labelling:
    """Return what a fitted classifier says about rows that are all there.

    A row that fails is part of the result, as are the answers that were paid for before one failed.

    Parameters
    ----------
    classifier : estimator
        Any classifier.
    X : list of str or table
        The rows.
    scored : bool
        Whether the labels' probabilities are wanted.
    """
    classifier, X = innermost(classifier, X)
    if isinstance(classifier, LLMClassifier):
        _, rows, _ = classifier._run(X, "coerce", log_probs=scored)
        return of_model(classifier, as_texts(X), rows, scored=scored)
    try:
        found = _of_probabilities(classifier, X) if scored else _of_predictions(classifier, classifier.predict(X))
    except PartialResultError as error:  # of a language model within it
        return _of_details(classifier, error, scored=scored)
    n_rows = len(X) if isinstance(X, list) else X.shape[0]
    if len(found.labels) != n_rows:
        told = f"{type(classifier).__name__} gave {len(found.labels):,} answers for {n_rows:,} rows."
        raise JobFailedError(told, "A classifier must give one for each row, in their order.")
    return found


def of_model(model: LLMClassifier, texts: Texts, rows: Sequence[Row[Any]], *, scored: bool) -> Labelling:
    """Return what a language model's rows say."""
    values = model._reading().predictions(texts, rows, "coerce")
    labels = results.as_objects(labels_of(model, values))
    answered = np.fromiter((row.valid and row.error is None for row in rows), bool, len(rows))
    scores, features = np.full(len(rows), -np.inf), np.zeros((len(rows), 0))
    if scored:
        told = [row.reply.log_probs if fine else None for row, fine in zip(rows, answered, strict=True)]
        scores = np.asarray([-np.inf if one is None else np.exp(max(one)) for one in told])
        width = 1 if isinstance(model, MultiLabelClassifier) else len(model.classes_)
        features = agreement_features(np.exp([[-np.inf] * width if one is None else one for one in told]))
    details = results.details(labels.tolist(), rows, pd.RangeIndex(len(rows)))
    return Labelling(labels, answered, scores, features, details)


def labels_of(model: LLMClassifier, values: Sequence[Any]) -> list[Any]:
    """Return the labels alone in a language model's results: those of explanations too; of several, a tuple."""
    found = model._array(values)
    if isinstance(model, MultiLabelClassifier):
        return [None if labels is None else tuple(sorted(labels)) for labels in model._label_sets(found)]
    return list(model._labels_in(found))


def innermost(classifier: Any, X: Any = None) -> tuple[Any, Any]:
    """Return the classifier inside a frozen one or at a pipeline's end, and `X` as it comes there, if it is given."""
    while True:
        if isinstance(classifier, FrozenEstimator):
            classifier = classifier.estimator
        elif isinstance(classifier, Pipeline) and isinstance(innermost(classifier[-1])[0], LLMClassifier):
            if X is not None and len(classifier) > 1:
                X = classifier[:-1].transform(X)
            classifier = classifier[-1]
        else:
            return classifier, X


def _is_table(X: NDArray[Any] | pd.DataFrame) -> bool:
    """Return whether `X` has several columns, or one of numbers."""
    if X.ndim != 2:
        return False
    return X.shape[1] != 1 or (isinstance(X, np.ndarray) and X.dtype.kind in "biufc")


def _of_probabilities(classifier: Any, X: Any) -> Labelling:
    found = np.asarray(classifier.predict_proba(X), np.float64)
    classes = np.asarray(classifier.classes_)
    if found.ndim != 2 or found.shape[1] != len(classes):
        told = f"{type(classifier).__name__} gives probabilities of the shape {found.shape} for {len(classes)} labels."
        raise NotSupportedError(told, "Several labels for a row take language models on both sides.")
    there = np.asarray(~np.isnan(found).any(axis=1), bool)
    best = np.nan_to_num(found).argmax(axis=1)
    labels = results.as_objects(classes[best].tolist())
    labels[~there] = None
    scores = np.where(there, found[np.arange(len(found)), best], -np.inf)
    return Labelling(labels, there, scores, agreement_features(found), _plain_details(classifier, labels, scores))


def _of_predictions(classifier: Any, found: Any) -> Labelling:
    found = np.asarray(found)
    if found.ndim != 1:
        told = f"{type(classifier).__name__} predicts an array of the shape {found.shape}."
        raise NotSupportedError(told, "Several labels for a row take language models on both sides.")
    labels = results.as_objects([None if _is_none(label) else label for label in found.tolist()])
    nothing = np.full(len(labels), -np.inf)
    there = np.asarray([label is not None for label in labels])
    return Labelling(labels, there, nothing, np.zeros((len(labels), 0)), _plain_details(classifier, labels, nothing))


def _of_details(classifier: Any, error: PartialResultError, *, scored: bool) -> Labelling:
    """Return what was answered before a language model within a classifier failed for some rows."""
    details = error.details
    if details is None:
        raise error
    details = details.reset_index(drop=True)
    labels, valid = results.as_objects(details["prediction"].tolist()), details["valid"].to_numpy(bool)
    scores = np.where(valid, details["probability"].to_numpy(np.float64, na_value=np.nan), -np.inf)
    scores = np.nan_to_num(scores, nan=-np.inf)
    if not scored:
        return Labelling(labels, valid, scores, np.zeros((len(labels), 0)), details)
    classes = list(np.asarray(classifier.classes_).tolist())
    known = np.zeros((len(labels), len(classes)))
    for row in np.flatnonzero(scores > -np.inf):
        known[row, classes.index(labels[row])] = scores[row]
    return Labelling(labels, valid, scores, agreement_features(known), details)


def _plain_details(classifier: Any, labels: NDArray[np.object_], scores: NDArray[np.float64]) -> pd.DataFrame:
    """Return the details of a classifier that tells none: nothing was sent, and it cost nothing."""
    there = [label is not None for label in labels]
    values: dict[str, Any] = {
        "prediction": labels,
        "probability": np.where(np.isfinite(scores), scores, np.nan),
        "valid": np.asarray(there, bool),
        "error_kind": results.as_objects([None if fine else "invalid_answer" for fine in there]),
        "error": results.as_objects([None if fine else "The classifier gave no label." for fine in there]),
        "attempts": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost_usd": 0.0,
        "model": type(classifier).__name__,
        "label_mass": np.nan,
    }
    return pd.DataFrame({name: values[name] for name in results.DETAIL_COLUMNS}, index=pd.RangeIndex(len(labels)))


def _is_none(label: object) -> bool:
    return label is None or (isinstance(label, float) and np.isnan(label))


def failed_rows(n_rows: int, why: str) -> Labelling:
    """Return rows that a classifier was not asked about after all."""
    error = RowError("cancelled", why)
    details = results.details(
        [None] * n_rows, [Row(None, False, Reply(error=error, attempts=0))] * n_rows, pd.RangeIndex(n_rows)
    )
    nothing = np.full(n_rows, -np.inf)
    return Labelling(
        results.as_objects([None] * n_rows), np.zeros(n_rows, bool), nothing, np.zeros((n_rows, 0)), details
    )
