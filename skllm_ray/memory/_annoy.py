"""The index of Annoy: approximate, and small and fast for millions of vectors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import MissingExtraError


class AnnoyMemoryIndex:
    """An index on Annoy; ``pip install 'skllm-ray[annoy]'``.

    Parameters
    ----------
    dim : int, default=-1
        The vectors' length; -1 takes that of the first.
    metric : {"angular", "euclidean", "manhattan", "hamming", "dot"}, default="euclidean"
        The distance.
    n_trees : int, default=-1
        More are more exact and take more memory; -1 lets Annoy choose.
    seed : int, default=0
        Seeds the trees.

    Raises
    ------
    MissingExtraError
        If Annoy is not installed.
    """

    def __init__(self, dim: int = -1, metric: str = "euclidean", n_trees: int = -1, seed: int = 0) -> None:
        try:
            from annoy import AnnoyIndex  # noqa: F401
        except ImportError:
            raise MissingExtraError.for_extra("annoy", "annoy") from None
        self.dim = dim
        self.metric = metric
        self.n_trees = n_trees
        self.seed = seed
        self.built = False
        self._n = 0
        self._index: Any = None

    def add(self, vector: NDArray[np.float32]) -> None:
        """Add a vector."""
        if self.built:
            raise RuntimeError("The index is built: no more vectors can be added.")
        if self._index is None:
            self.dim = len(vector) if self.dim < 1 else self.dim
            self._index = self._new()
            self._index.set_seed(self.seed)
        if len(vector) != self.dim:
            raise ValueError(f"The index takes vectors of length {self.dim}; got one of length {len(vector)}.")
        self._index.add_item(self._n, vector)
        self._n += 1

    def build(self) -> None:
        """Make the index ready."""
        if self._index is None:
            raise RuntimeError("The index holds no vectors.")
        self._index.build(self.n_trees)
        self.built = True

    def retrieve(self, vectors: NDArray[np.float32], k: int) -> list[list[int]]:
        """Return the positions of the `k` nearest, nearest first, for each vector; all, where it holds fewer."""
        if not self.built:
            raise RuntimeError("The index is not built yet: call build() first.")
        return [self._index.get_nns_by_vector(vector, min(k, self._n)) for vector in vectors]

    def _new(self) -> Any:
        from annoy import AnnoyIndex

        return AnnoyIndex(self.dim, self.metric)  # type: ignore[arg-type,unused-ignore]

    def __getstate__(self) -> dict[str, Any]:
        if not self.built:
            return {**self.__dict__, "_index": None, "_n": 0}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            self._index.save(str(path))
            return {**self.__dict__, "_index": path.read_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.built:
            index = self._new()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "index"
                path.write_bytes(self._index)
                index.load(str(path), prefault=True)  # the mapping outlives the file's name
            self._index = index
