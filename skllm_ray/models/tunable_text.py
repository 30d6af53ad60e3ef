"""Texts as the answers that a model is tuned to give."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skllm_ray.errors import ConfigurationError, InputError, JobFailedError, PartialResultError
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.registry import secrets_of
from skllm_ray.models import results
from skllm_ray.models.classifier import _capped, wrap_secret
from skllm_ray.models.texts import as_texts, refuse_missing
from skllm_ray.models.tunable import Tunable, whole_texts
from skllm_ray.tasks.base import Row
from skllm_ray.tasks.tuned import TunedTextTask


class TunableText2Text(TransformerMixin, Tunable):  # type: ignore[misc]
    """Base of the estimators that learn to turn one text into another."""

    on_error: str

    def _spec(self) -> BackendSpec:
        raise NotImplementedError

    def predict(self, X: Any, num_workers: int | None = None, *, on_error: str | None = None) -> NDArray[Any]:
        """Return the tuned model's text for every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        num_workers : int or None, default=None
            The most requests that this call may have in flight.
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's.

        Returns
        -------
        ndarray of object of shape (n_samples,)
            In the order of `X`; None for rows that failed, with "coerce".

        Raises
        ------
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        check_is_fitted(self)
        mode = self._mode(on_error)
        texts = as_texts(X)
        if mode == "raise":
            refuse_missing(texts)
        spec = _capped(self._spec(), num_workers)
        spec.check()
        from skllm_ray.execution.runner import run

        found = run([str(texts.values[i]) for i in texts.present], self._task(), spec, secrets_of(self.key))
        rows: list[Row[Any]] = [results.missing_row()] * len(texts.values)
        for position, row in zip(texts.present, found, strict=True):
            rows[position] = row
        failed = [row for row in found if row.error is not None]
        fatal = next((row.error for row in failed if row.error is not None and row.error.fatal), None)
        if fatal is not None and len(failed) == len(found):
            raise JobFailedError(f"{self.tuned_model_} refused every row ({fatal.kind}): {fatal.message}")
        values = [row.value for row in rows]
        if failed and mode == "raise":
            table = results.details(values, rows, texts.index)
            raise PartialResultError(
                f"{len(failed)} of {len(rows)} rows failed: {results.describe_failures(rows)}.",
                "The finished rows are in this error's .details; on_error='coerce' returns None for the others.",
                table,
            )
        return np.asarray(values, dtype=object)

    def transform(self, X: Any) -> NDArray[Any]:
        """Return what :meth:`predict` returns."""
        return self.predict(X)

    def set_params(self, **params: Any) -> Self:
        """Set parameters, as in scikit-learn; a key is wrapped so that it shows itself nowhere."""
        super().set_params(**{k: wrap_secret(v) if k == "key" else v for k, v in params.items()})
        return self

    def _task(self) -> TunedTextTask:
        return TunedTextTask()

    def _learn(self, X: Any, y: Any) -> None:
        self._mode(None)
        self._spec()
        n_texts, n_answers = len(whole_texts(X).values), len(whole_texts(y, "y").values)
        if n_texts != n_answers:
            raise InputError(f"X has {n_texts} texts but y has {n_answers}.", "Pass one answer per text.")

    def _answers(self, X: Any, y: Any) -> list[str]:  # noqa: ARG002  the base's signature
        return [str(text) for text in whole_texts(y, "y").values]

    def _mode(self, on_error: str | None) -> str:
        mode = self.on_error if on_error is None else on_error
        if mode not in {"raise", "coerce"}:
            raise ConfigurationError(f"on_error must be 'raise' or 'coerce'; got {mode!r}.")
        return mode
