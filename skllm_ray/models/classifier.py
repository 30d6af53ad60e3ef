"""What all classifiers share: the path from ``predict(X)`` to the runner and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from skllm_ray.config import RateLimit, Secret
from skllm_ray.errors import ConfigurationError, InputError, JobFailedError, NotSupportedError, PartialResultError
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.registry import resolve, secrets_of
from skllm_ray.models import results
from skllm_ray.models.texts import Texts, as_labels, as_texts, refuse_missing
from skllm_ray.prompts import check_template
from skllm_ray.tasks.base import ChatRequest, Row, Task

OnError = Literal["raise", "default", "coerce"]
"""What becomes of rows that fail: an exception after all rows were tried, the default label, or None."""


class LLMClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Base of the classifiers. A subclass names its task, its labels' form and its prompt's placeholders."""

    _family: ClassVar[str] = "gpt"
    _placeholders: ClassVar[tuple[str, ...]] = ("x", "labels")

    model: str
    default_label: str
    prompt_template: str | None
    on_error: OnError
    label_descriptions: Mapping[Any, str] | None
    random_state: int | None
    request_options: Mapping[str, Any] | None
    key: str | None = None
    org: str | None = None
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
            If `y` has no labels, blank or repeated ones, fewer than two, or numbers without ``label_descriptions``.
        ConfigurationError
            If a constructor parameter cannot work.
        """
        self._check_parameters()
        described = self.label_descriptions is not None
        labels = as_labels(y, None if X is None else len(as_texts(X).values), described)
        classes, counts = np.unique(labels, return_counts=True)
        self.classes_ = classes
        self.class_probabilities_ = counts / counts.sum()
        self._check_descriptions()
        return self

    def predict(self, X: Any, num_workers: int | None = None, *, on_error: OnError | None = None) -> NDArray[Any]:
        """Return the label of every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts: a list, numpy array, pandas Series, one-column DataFrame, pyarrow or polars column.
        num_workers : int or None, default=None
            The most requests that this call may have in flight, for API backends; None leaves it to the limits.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's.

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
        texts, rows, mode = self._run(X, on_error, num_workers, best_only=True)
        results.warn_invalid(rows, self.default_label)
        predictions = self._predictions(texts, rows, mode)
        if all(any(value == known for known in self.classes_) for value in set(predictions)):
            return np.asarray(predictions, dtype=self.classes_.dtype)
        return np.asarray(predictions, dtype=object)

    def predict_proba(self, X: Any, *, on_error: OnError | None = None) -> NDArray[np.float64]:
        """Return the probability of every label for every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        on_error : {"raise", "default", "coerce"} or None, default=None
            Overrides the constructor's; a failed row is NaN with "coerce", the class frequencies with "default".

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``; each row sums to 1.

        Raises
        ------
        NotSupportedError
            If the backend gives no probabilities.
        """
        check_is_fitted(self)
        if not self._spec().gives_probabilities:  # asked before any row is paid for
            raise NotSupportedError(
                f"model={self.model!r} gives no probabilities.", "GGUF models do: model='gguf::…'. Use predict instead."
            )
        _, rows, mode = self._run(X, on_error, log_probs=True)
        failed = self.class_probabilities_ if mode == "default" else np.full(len(self.classes_), np.nan)
        return np.stack([failed if row.reply.log_probs is None else np.exp(row.reply.log_probs) for row in rows])

    def predict_details(self, X: Any, *, include_io: bool = False, on_error: OnError | None = None) -> pd.DataFrame:
        """Return one line per text: prediction, probability, errors, tokens, cost.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        include_io : bool, default=False
            Whether to add the columns ``prompt`` and ``raw_reply``.
        on_error : {"default", "coerce"} or None, default=None
            What ``prediction`` holds for failed rows: the default label, or None. The table is always whole: with
            "raise", failed rows are shown as with "coerce".

        Returns
        -------
        pandas.DataFrame of shape (n_samples, 10 or 12)
            With the index of `X` and always the same columns.
        """
        mode = self._mode(on_error)
        texts, rows, mode = self._run(X, "coerce" if mode == "raise" else mode)
        requests = self._requests(texts) if include_io else None
        return results.details(self._predictions(texts, rows, mode), rows, texts.index, requests)

    def render_prompt(self, X: Any) -> list[str | None]:
        """Return the exact prompts, without sending or starting anything; None where the text is missing."""
        check_is_fitted(self)
        return [results._prompt(request) for request in self._requests(as_texts(X))]

    def set_params(self, **params: Any) -> Self:
        """Set parameters, as in scikit-learn; a key is wrapped so that it shows itself nowhere."""
        super().set_params(**{k: wrap_secret(v) if k == "key" else v for k, v in params.items()})
        return self

    # --- inside ---------------------------------------------------------------------------------------------------

    def _run(
        self,
        X: Any,
        on_error: OnError | None,
        num_workers: int | None = None,
        *,
        best_only: bool = False,
        log_probs: bool = False,
    ) -> tuple[Texts, list[Row[Any]], OnError]:
        check_is_fitted(self)
        mode = self._mode(on_error)
        texts = as_texts(X)
        if mode == "raise":
            refuse_missing(texts)
        spec = _capped(self._spec(), num_workers)
        if log_probs and hasattr(spec, "log_probs"):  # API models give them on request
            spec = replace(spec, log_probs=True)  # type: ignore[type-var]
        spec.check()
        if best_only and hasattr(spec, "best_only"):  # a local model may then spare itself the other labels
            spec = replace(spec, best_only=True)  # type: ignore[type-var]
        from skllm_ray.execution.runner import run

        found = run([str(texts.values[i]) for i in texts.present], self._task(), spec, secrets_of(self.key))
        rows: list[Row[Any]] = [results.missing_row()] * len(texts.values)
        for position, row in zip(texts.present, found, strict=True):
            rows[position] = row
        self._raise_failures(texts, rows, mode)
        return texts, rows, mode

    def _raise_failures(self, texts: Texts, rows: Sequence[Row[Any]], mode: OnError) -> None:
        """Raise for failures that every row shares, and, with "raise", for those of single rows."""
        failed = [row for row in rows if row.error is not None and row.error.kind != "missing_text"]
        if not failed:
            return
        fatal = next((row.error for row in failed if row.error is not None and row.error.fatal), None)
        if fatal is not None and len(failed) == len(texts.present):
            raise JobFailedError(f"{self.model} refused every row ({fatal.kind}): {fatal.message}")
        if mode == "raise":
            table = results.details(self._predictions(texts, rows, "coerce"), rows, texts.index)
            raise PartialResultError(
                f"{len(failed)} of {len(rows)} rows failed: {results.describe_failures(rows)}.",
                "The finished rows are in this error's .details; on_error='default' or 'coerce' returns instead.",
                table,
            )

    def _predictions(self, texts: Texts, rows: Sequence[Row[Any]], mode: OnError) -> list[Any]:
        by_name = dict(zip(self._names(), self.classes_, strict=True))
        return [
            by_name[row.value] if row.value is not None else self._fallback(text, row, mode)
            for text, row in zip(texts.values, rows, strict=True)
        ]

    def _fallback(self, text: str | None, row: Row[Any], mode: OnError) -> Any:
        """Return what stands for a row without a valid answer."""
        if row.error is not None and mode == "coerce":
            return None
        if self.default_label == "Random":
            return results.draw(text or "", self.classes_, self.class_probabilities_, self.random_state)
        return self.default_label

    def _requests(self, texts: Texts) -> list[ChatRequest | None]:
        rendered = iter(self._task().render([text for text in texts.values if text is not None]))
        return [None if text is None else next(rendered) for text in texts.values]

    def _names(self) -> tuple[str, ...]:
        """Return the labels as the prompt names them."""
        return tuple(str(label) for label in self.classes_)

    def _descriptions(self) -> dict[str, str]:
        given = self.label_descriptions or {}
        return {str(label): text for label, text in given.items()}

    def _spec(self) -> BackendSpec:
        return resolve(self.model, self.key, self.org, self.request_options, self._family)

    def _mode(self, on_error: OnError | None) -> OnError:
        mode = self.on_error if on_error is None else on_error
        if mode not in get_args(OnError):
            raise ConfigurationError(f"on_error must be 'raise', 'default' or 'coerce'; got {mode!r}.")
        return mode

    def _check_parameters(self) -> None:
        self._mode(None)
        self._spec()
        if not isinstance(self.default_label, str) or not self.default_label:
            raise ConfigurationError(
                f"default_label must be a non-empty str; got {self.default_label!r}.", "Use 'Random' or a label."
            )
        if self.prompt_template is not None:
            if not isinstance(self.prompt_template, str):
                raise ConfigurationError(f"prompt_template must be a str; got {type(self.prompt_template).__name__}.")
            try:
                check_template(self.prompt_template, self._placeholders)
            except ValueError as error:
                raise ConfigurationError(str(error)) from None

    def _check_descriptions(self) -> None:
        unknown = sorted(set(self._descriptions()) - set(self._names()))
        if unknown:
            raise InputError(
                f"label_descriptions describes {unknown[0]!r}, which is not in y.",
                f"Labels: {', '.join(self._names())}.",
            )


def wrap_secret(key: str | None) -> str | None:
    """Return `key` so that it shows itself nowhere; the same object if it is wrapped already."""
    return None if key is None else Secret(key)


def _capped(spec: BackendSpec, num_workers: int | None) -> BackendSpec:
    if num_workers is None or spec.placement.stateful:
        return spec
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 1:
        raise ConfigurationError(f"num_workers must be an int of at least 1; got {num_workers!r}.")
    limit = replace(spec.limit or RateLimit(), max_concurrency=num_workers)
    return replace(spec, limit=limit)  # type: ignore[type-var]
