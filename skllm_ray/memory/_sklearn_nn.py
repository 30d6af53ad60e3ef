"""The index of scikit-learn's nearest neighbours: exact, and enough for many thousands of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class SklearnMemoryIndex:
    """An index on ``sklearn.neighbors.NearestNeighbors``.

    Parameters
    ----------
    dim : int, default=-1
        The vectors' length; -1 takes that of the first.
    metric : str, default="euclidean"
        Any metric of ``NearestNeighbors``.
    **kwargs
        Further parameters of ``NearestNeighbors``.

    Examples
    --------
    >>> index = SklearnMemoryIndex()
    >>> for vector in ([0.0, 0.0], [1.0, 1.0]):
    ...     index.add(np.asarray(vector, np.float32))
    >>> index.build()
    >>> index.retrieve(np.asarray([[0.9, 0.8]], np.float32), k=1)
    [[1]]
    """

    def __init__(self, dim: int = -1, metric: str = "euclidean", **kwargs: Any) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.dim = dim
        self.metric = metric
        self.built = False
        self._index = NearestNeighbors(metric=metric, **kwargs)
        self._vectors: list[NDArray[np.float32]] = []

    def add(self, vector: NDArray[np.float32]) -> None:
        """Add a vector."""
        if self.built:
            raise RuntimeError("The index is built: no more vectors can be added.")
        vector = np.asarray(vector, np.float32)
        if self.dim > 0 and vector.shape != (self.dim,):
            raise ValueError(f"The index takes vectors of length {self.dim}; got one of shape {vector.shape}.")
        self._vectors.append(vector)

    def build(self) -> None:
        """Make the index ready."""
        self._index.fit(np.stack(self._vectors))
        self._vectors = []
        self.built = True

    def retrieve(self, vectors: NDArray[np.float32], k: int) -> list[list[int]]:
        """Return the positions of the `k` nearest, nearest first, for each vector; all, where it holds fewer."""
        if not self.built:
            raise RuntimeError("The index is not built yet: call build() first.")
        k = min(k, self._index.n_samples_fit_)
        return [list(map(int, row)) for row in self._index.kneighbors(vectors, k, return_distance=False)]
