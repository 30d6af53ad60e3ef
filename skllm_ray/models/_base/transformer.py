"""What the transformers share: texts in, and something for each text out."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skllm_ray.models._base.columns import as_wide_as
from skllm_ray.models._base.estimator import LLMEstimator, OnError
from skllm_ray.models._base.reading import Reading
from skllm_ray.models._base.sklearn_bases import TransformerMixin


class TextTransformer(TransformerMixin, LLMEstimator):
    """Base of the transformers. A subclass names its task and its columns."""

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Check the parameters. Nothing is sent and nothing is started.

        Parameters
        ----------
        X, y : ignored

        Returns
        -------
        self

        Raises
        ------
        ConfigurationError
            If a constructor parameter cannot work.
        """
        del X, y
        self._check_parameters()
        self.fitted_ = True
        return self

    def transform(self, X: Any, *, on_error: OnError | None = None) -> NDArray[Any]:
        """Return the result for every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts: a list, numpy array, pandas Series, one-column DataFrame, or another library's column.
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's.

        Returns
        -------
        ndarray of object of shape (n_samples,), or (n_samples, 1) where `X` has two dimensions
            In the order of `X`; None for rows that failed, with "coerce", and where the answer was of no use.

        Raises
        ------
        InputError
            If a text is missing and ``on_error="raise"``.
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        found: NDArray[Any] = self._results(X, on_error, self._n_workers)
        return as_wide_as(X, found)

    def fit_transform(self, X: Any, y: Any = None) -> NDArray[Any]:
        """Do what `fit` and then `transform` do.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        y : ignored

        Returns
        -------
        ndarray
            What `transform` returns.
        """
        return self.fit(X, y).transform(X)

    def predict(self, X: Any, *, on_error: OnError | None = None) -> Any:
        """Return what ``transform`` returns."""
        return self.transform(X, on_error=on_error)

    def transform_dataset(
        self,
        ds: Any,
        text_column: str = "text",
        *,
        output_prefix: str = "",
        details: bool = False,
        on_error: OnError | None = None,
    ) -> Any:
        """Return a lazy Ray Dataset with the columns of `ds` and the results, for data of any size.

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
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's. "raise" ends the whole execution at the first block with a failed row, so that
            for long runs "coerce" with ``details=True`` is the better choice.

        Returns
        -------
        ray.data.Dataset
            The columns of `ds` and the results'.

        Raises
        ------
        TypeError
            If `ds` is not a Ray Dataset.
        InputError
            If it has no such column, or has a column of a new one's name.
        """
        return self._map_dataset(ds, text_column, output_prefix, details, on_error)

    # --- inside ---------------------------------------------------------------------------------------------------

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:  # noqa: ARG002
        """Return the columns' names.

        Parameters
        ----------
        input_features : None
            Ignored.
        """
        return np.asarray(list(self._reading().types), dtype=object)

    _n_workers: int | None = None
    """The most requests that a call may have in flight, where the estimator has such a parameter."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        """Nothing is learnt, so that nothing has to be fitted."""
        return True


class TextToText(TextTransformer):
    """Base of the transformers whose result is one text. Output column: the class's `_column`."""

    _column: str = "text_out"

    def _reading(self) -> Reading:
        return Reading(self.model, {self._column: pa.string()})
