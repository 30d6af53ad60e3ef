"""What the vectorizers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from skllm_ray.errors import InputError, NotSupportedError
from skllm_ray.llm.base import BackendSpec
from skllm_ray.models._base.constraints import Constraints, Whole
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.reading import Reading, VectorReading
from skllm_ray.models._base.transformer import TextTransformer
from skllm_ray.tasks.embedding import EmbeddingTask


class LLMVectorizer(TextTransformer):
    """Base of the vectorizers: texts to the vectors of an embedding model."""

    _parameter_constraints: ClassVar[Constraints] = {"batch_size": [Whole(1)]}

    batch_size: int
    n_features_out_: int

    def transform(self, X: Any, *, on_error: OnError | None = None) -> NDArray[np.float64]:
        """Return the vector of every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's.

        Returns
        -------
        ndarray of float of shape (n_samples, n_features)
            In the order of `X`; rows that failed are NaN with "coerce".

        Raises
        ------
        InputError
            If a text is missing and ``on_error="raise"``.
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        found: NDArray[np.float64] = self._results(X, on_error)
        return found

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:  # noqa: ARG002
        """Return the columns' names, such as ``gptvectorizer0``; the model tells their number when it is first used.

        Parameters
        ----------
        input_features : None
            Ignored.

        Raises
        ------
        NotFittedError
            Before the first ``transform``.
        """
        if not self._width:
            raise NotFittedError("The number of features is known after the first transform.")
        name = type(self).__name__.lower()
        return np.asarray([f"{name}{position}" for position in range(self._width)], dtype=object)

    @property
    def _width(self) -> int:
        """The number of features; 0 before the first vector."""
        return getattr(self, "n_features_out_", 0)  # a fitted attribute: absent before, as scikit-learn wants it

    def _task(self) -> EmbeddingTask:
        return EmbeddingTask()

    def _resolve(self) -> BackendSpec:
        spec = super()._resolve()
        if not spec.capabilities.embeds:
            raise NotSupportedError(f"model={self.model!r} is of a provider that has no models which embed.")
        return spec.asked_for("vectors")

    def _reading(self) -> Reading:
        return VectorReading(self.model, {"embedding": pa.list_(pa.float32())})

    def _array(self, values: Sequence[Any]) -> NDArray[np.float64]:
        width = next((len(value) for value in values if value is not None), self._width)
        if not width:
            raise InputError("No text could be embedded, so that the number of features is not known.")
        self.n_features_out_ = width
        nothing = np.full(width, np.nan)
        return np.stack([nothing if value is None else np.asarray(value, np.float64) for value in values])

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Check the parameters. Nothing is sent and nothing is started.

        Parameters
        ----------
        X, y : ignored

        Returns
        -------
        self
        """
        return super().fit(X, y)
