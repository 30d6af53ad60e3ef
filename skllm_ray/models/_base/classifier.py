"""What all classifiers share: labels from ``fit``, labels and probabilities out."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skllm_ray.errors import ConfigurationError, InputError, NotSupportedError
from skllm_ray.execution.plan import Plan
from skllm_ray.llm.base import BackendSpec
from skllm_ray.models._base import results, scoring
from skllm_ray.models._base.columns import column
from skllm_ray.models._base.constraints import TEXTS, Constraints, OneOf, Text, Whole
from skllm_ray.models._base.estimator import LLMEstimator, OnError, wrap_secret
from skllm_ray.models._base.inputs import as_labels, as_texts, check_length
from skllm_ray.models._base.label_check import LabelReport
from skllm_ray.models._base.label_checker import check_labels, warn_one_label
from skllm_ray.models._base.label_names import LabelNames, check_label_names, names_of
from skllm_ray.models._base.label_priors import prior_from, prior_texts
from skllm_ray.models._base.reading import ColumnTypes, Draw, LabelReading, Reading
from skllm_ray.models._base.sklearn_bases import ClassifierMixin
from skllm_ray.tasks.base import Row, Task
from skllm_ray.tasks.prior import LabelPrior

_estimating: WeakKeyDictionary[LLMClassifier, threading.RLock] = WeakKeyDictionary()
"""Held while an estimator's prior is asked for; those of others may be asked for meanwhile."""
_looking = threading.Lock()

__all__ = ["LLMClassifier", "OnError", "wrap_secret"]


class LLMClassifier(ClassifierMixin, LLMEstimator):
    """Base of the classifiers. A subclass names its task, its labels' form and its prompt's placeholders."""

    _placeholders: ClassVar[tuple[str, ...]] = ("x", "labels")

    _parameter_constraints: ClassVar[Constraints] = {
        "default_label": [Text()],
        "label_descriptions": [TEXTS, None],
        "random_state": [Whole(0, 2**32 - 1), None],
        "label_prior": [OneOf("uniform"), None],
    }

    default_label: str
    prompt_template: str | None
    label_descriptions: Mapping[Any, str] | None
    random_state: int | None
    label_names: LabelNames = None
    label_prior: str | None = None
    prior_texts_: tuple[str, ...]
    """The texts that the labels' prior is estimated from, where there is a `label_prior`."""
    label_prior_: NDArray[np.float64]
    """The prior that is taken out: the labels' probabilities; there after the first call."""
    classes_: NDArray[Any]
    class_probabilities_: NDArray[np.float64]

    @abstractmethod
    def _task(self) -> Task[Any]:
        """Return the task of the fitted estimator."""

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the candidate labels. Nothing is sent and nothing is started.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,) or None
            Ignored but for its length; None if `y` lists the candidate labels.
        y : array-like of shape (n_samples,) or (n_classes,)
            One label per text, or each candidate label once.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If `y` has no labels, blank or repeated ones, fewer than two, or numbers without ``label_names`` and
            ``label_descriptions``.
        ConfigurationError
            If a constructor parameter cannot work.
        """
        self._check_parameters()
        described = self.label_descriptions is not None or self.label_names is not None
        labels = as_labels(y, None if X is None else len(as_texts(X).values), described)
        classes, counts = np.unique(labels, return_counts=True)
        names_of(classes.tolist(), self.label_names)
        self.classes_ = classes
        self.class_probabilities_ = counts / counts.sum()
        self._check_descriptions()
        self._forget_prior(X)
        return self

    def predict(
        self,
        X: Any,
        num_workers: int | None = None,
        *,
        on_error: OnError | None = None,
        delivery: str = "direct",
    ) -> NDArray[Any]:
        """Return the label of every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts: a list, numpy array, pandas Series, one-column DataFrame, or another library's column.
        num_workers : int or None, default=None
            The most requests that this call may have in flight, for API backends; None leaves it to the limits.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's.
        delivery : {"direct", "batch"}, default="direct"
            "batch" sends provider batches, which cost half and take up to a day; see `predict_details`.

        Returns
        -------
        ndarray of shape (n_samples,)
            In the order of `X`, of the dtype of ``classes_`` (object where a row has no label of them).

        Raises
        ------
        InputError
            If a text is missing and ``on_error="raise"``.
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        best_only = not self._compares_labels
        found: NDArray[Any] = self._results(X, on_error, num_workers, best_only=best_only, delivery=delivery)
        warn_one_label(X, self._labels_in(found), len(self.classes_))
        return found

    def predict_proba(self, X: Any, *, on_error: OnError | None = None) -> NDArray[np.float64]:
        """Return the probability of every label for every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's; a failed row is NaN with "coerce", the class frequencies with "default". An
            answer that names no label, and takes ``default_label`` in `predict`, has the class frequencies.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``; each row sums to 1.

        Raises
        ------
        NotSupportedError
            If the backend gives no probabilities.
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        check_is_fitted(self)
        if not self._can_score or not self._spec().capabilities.gives_log_probs:  # asked before any row is paid for
            raise NotSupportedError(
                f"model={self.model!r} gives no probabilities.",
                "GGUF models do: model='gguf::…', and so do many servers behind a custom URL. Use predict instead.",
            )
        _, rows, mode = self._run(X, on_error, log_probs=True)
        results.warn_failed(self.model, rows, mode)
        results.warn_invalid(rows, "named none of the labels", "the class frequencies")
        results.warn_low_mass(self.model, rows)
        failed = self.class_probabilities_ if mode == "default" else np.full(len(self.classes_), np.nan)
        return np.stack([self._probabilities(row, failed) for row in rows])

    def predict_dataset(
        self,
        ds: Any,
        text_column: str = "text",
        *,
        output_prefix: str = "",
        details: bool = False,
        on_error: OnError | None = None,
    ) -> Any:
        """Return a lazy Ray Dataset with the columns of `ds` and the predictions, for data of any size.

        Rows are asked for while the result is consumed, each time it is consumed: use ``.materialize()``, write it
        out, or turn the reply cache on.

        Parameters
        ----------
        ds : ray.data.Dataset
            Its rows may be of any number; none are held in this process.
        text_column : str, default="text"
            The column with the texts.
        output_prefix : str, default=""
            Put before the names of the new columns.
        details : bool, default=False
            Whether to add the columns of ``predict_details`` too.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's. "raise" ends the whole execution at the first block with a failed row, so that
            for long runs "coerce" with ``details=True`` is the better choice.

        Returns
        -------
        ray.data.Dataset
            The columns of `ds` and ``prediction``.

        Raises
        ------
        TypeError
            If `ds` is not a Ray Dataset.
        InputError
            If it has no such column, or has a column of a new one's name.
        """
        return self._map_dataset(ds, text_column, output_prefix, details, on_error)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of the labels.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        y : array-like of shape (n_samples,)
            The true labels.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            How much each row counts.

        Returns
        -------
        float
            Between 0 and 1; a row that failed, and is None with "coerce", counts as wrong.
        """
        check_is_fitted(self)
        truth = column(y, "y")[0]
        check_length(X, truth)
        scoring.check_truth(truth, sample_weight, self.classes_)
        return scoring.accuracy(self._labels_in(self.predict(X)), truth, sample_weight)

    def check_labels(self, X: Any = None, y: Any = None, *, n_samples: int = 200) -> LabelReport:
        """Return what speaks against the labels: alike, undescribed, overlapping, unused, beyond the model's context.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,) or None, default=None
            Texts; the model is asked about `n_samples` of them. None asks nothing.
        y : array-like or None, default=None
            True labels of these texts, or of any: those that are no candidates are told of.
        n_samples : int, default=200
            How many of the texts the model is asked about; 0 asks nothing.

        Returns
        -------
        LabelReport
            Prints as text; ``to_frame()`` is a table, and ``ok`` says whether nothing was found that cannot work.

        Examples
        --------
        >>> from skllm_ray.classification import ZeroShotGPTClassifier
        >>> clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["payment fee", "payments fee", "other"])
        >>> print(clf.check_labels(y=["other", "refund"]))
        warning: 'payment fee' and 'payments fee' look alike. Rename one, or say in label_descriptions how they differ.
        warning: 1 of 2 true labels are no candidates, and cannot be found: 'refund' (1). Add them to the labels, or ...
        note: No label has a description (label_descriptions): a line on each tells what the name does not.
        """
        check_is_fitted(self)
        return check_labels(self, X, y, n_samples)

    # --- inside ---------------------------------------------------------------------------------------------------

    _explains: ClassVar[bool] = False
    """Whether an answer is a label and an explanation."""

    @property
    def _compares_labels(self) -> bool:  # type: ignore[override]  # a field there
        return self.label_prior is not None

    def _checked_spec(self) -> BackendSpec:
        spec = super()._checked_spec()
        return spec if self.label_prior is None else spec.asked_for("log_probs")

    def _forget_prior(self, X: Any) -> None:
        """Choose the texts for the labels' prior, which is estimated at the first call."""
        for name in ("label_prior_", "prior_texts_"):
            self.__dict__.pop(name, None)
        if self.label_prior is not None:
            self.prior_texts_ = prior_texts(X, self.random_state)

    def _prior(self) -> LabelPrior | None:
        if self.label_prior is None:
            return None
        known = vars(self).get("label_prior_")
        return LabelPrior(self.prior_texts_, None if known is None else tuple(known.tolist()))

    def _ready(self, plan: Plan) -> Plan:
        if self.label_prior is None:
            return plan
        from skllm_ray.execution.runner import run

        with _looking:
            lock = _estimating.setdefault(self, threading.RLock())
        with lock:  # several threads must not pay for it twice
            if "label_prior_" not in vars(self):
                rows = run(self.prior_texts_, plan, self._secrets(), show_progress=False)
                self.label_prior_ = prior_from(rows)
        return (*plan[:-1], replace(plan[-1], task=self._task()))

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.label_prior is None:
            return
        if not self._can_score:
            raise ConfigurationError(
                f"label_prior={self.label_prior!r}: {type(self).__name__} gives no probability for each label, so that "
                "there is no prior to take out.",
                "Use a zero-shot or few-shot classifier with one label per text, or leave label_prior out.",
            )
        if not self._spec().capabilities.gives_log_probs:
            raise ConfigurationError(
                f"label_prior={self.label_prior!r}: model={self.model!r} gives no probabilities.",
                "GGUF models do: model='gguf::…', and so do many servers behind a custom URL.",
            )

    def _labels_in(self, predictions: NDArray[Any]) -> Sequence[Any]:
        """Return the labels in what `predict` returned."""
        return list(predictions.tolist())

    _can_score: ClassVar[bool] = True
    """Whether the task asks for a label alone, so that its probability can be told."""

    _gives_scores: ClassVar[bool] = True
    """Whether the answer that it gives has a probability."""

    def _probabilities(self, row: Row[Any], failed: NDArray[np.float64]) -> NDArray[np.float64]:
        if row.error is not None:
            return failed
        if not row.valid or row.reply.log_probs is None:
            return self.class_probabilities_
        return np.exp(row.reply.log_probs)

    def _reading(self) -> Reading:
        drawn = None
        if self.default_label == "Random":
            drawn = Draw(self.classes_, self.class_probabilities_, self.random_state)
        return LabelReading(self.model, self._label_types(), self._by_name(), self._fixed_default(), drawn)

    def _by_name(self) -> dict[str, Any]:
        """Return the classes by the names under which the model is asked about them."""
        return dict(zip(self._names(), self.classes_.tolist(), strict=True))

    def _fixed_default(self) -> Any:
        if self.label_names is not None and self.default_label in self._names():
            return self._by_name()[self.default_label]
        return self.default_label

    def _array(self, values: Sequence[Any]) -> NDArray[Any]:
        if all(any(value == known for known in self.classes_) for value in set(values)):
            return np.asarray(values, dtype=self.classes_.dtype)
        return np.asarray(values, dtype=object)

    def _label_types(self) -> ColumnTypes:
        foreign = self.default_label != "Random" and isinstance(self._fixed_default(), str)
        of_text = self.classes_.dtype.kind in "UO" or foreign
        return {"prediction": pa.string() if of_text else pa.from_numpy_dtype(self.classes_.dtype)}

    def _warn_invalid(self, rows: Sequence[Row[Any]]) -> None:
        results.warn_invalid(rows, "named none of the labels", self.default_label)

    def _names(self) -> tuple[str, ...]:
        """Return the labels as the prompt names them."""
        return names_of(self.classes_.tolist(), self.label_names)

    def _names_for(self, y: Any) -> list[str]:
        """Return the names of some of the classes."""
        by_label = {str(label): name for label, name in zip(self.classes_, self._names(), strict=True)}
        return [by_label[str(label)] for label in column(y, "y")[0]]

    def _descriptions(self) -> dict[str, str]:
        by_label = {str(label): name for label, name in zip(self.classes_, self._names(), strict=True)}
        given = {str(label): text for label, text in (self.label_descriptions or {}).items()}
        return {by_label.get(label, label): text for label, text in given.items()}

    def _validate_params(self) -> None:
        super()._validate_params()
        check_label_names(self.label_names)

    def _check_descriptions(self) -> None:
        unknown = sorted(set(self._descriptions()) - set(self._names()))
        if unknown:
            raise InputError(
                f"label_descriptions describes {unknown[0]!r}, which is not in y.",
                f"Labels: {', '.join(self._names())}.",
            )
