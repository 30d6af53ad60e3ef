"""What a memory index is: it takes vectors, is built, and then finds the nearest.

To add one, write a class with these three methods and pass ``IndexConstructor(YourIndex, …)`` to an estimator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class MemoryIndex(Protocol):
    """An index of vectors. It must pickle, because it travels to the workers."""

    def add(self, vector: NDArray[np.float32]) -> None:
        """Add a vector, of shape (n_dims,); its position is the number of those before it."""
        ...

    def build(self) -> None:
        """Make the index ready; nothing is added after that."""
        ...

    def retrieve(self, vectors: NDArray[np.float32], k: int) -> Sequence[Sequence[int]]:
        """Return the positions of the `k` nearest, nearest first, for each of `vectors` of shape (n, n_dims)."""
        ...


class IndexConstructor:
    """Makes an index for each class of an estimator.

    Parameters
    ----------
    index : type
        The index's class.
    **kwargs
        Its parameters.

    Examples
    --------
    >>> from skllm_ray.memory import SklearnMemoryIndex
    >>> index = IndexConstructor(SklearnMemoryIndex, metric="cosine")()
    >>> index.metric
    'cosine'
    """

    def __init__(self, index: type[MemoryIndex], **kwargs: Any) -> None:
        self.index = index
        self.kwargs = kwargs

    def __call__(self) -> MemoryIndex:
        """Return a new, empty index."""
        return self.index(**self.kwargs)

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self.kwargs.items())
        return f"IndexConstructor({self.index.__name__}{arguments})"
