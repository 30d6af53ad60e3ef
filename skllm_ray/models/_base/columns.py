"""The values of a one-dimensional collection, whatever library it is from. No library is imported for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skllm_ray.errors import InputError

Column = tuple[Sequence[Any], "pd.Index[Any] | None"]
"""A column's values and its index, if it has one."""


@runtime_checkable
class _ArrayLike(Protocol):
    """What numpy makes an array of: pandas' arrays and indexes, and many other libraries' columns."""

    def __array__(self) -> Any: ...


def column(X: Any, name: str) -> Column:
    """Return the values of a one-dimensional collection and its index, if it has one.

    Raises
    ------
    TypeError
        If `X` is no such collection.
    InputError
        If it has several columns or dimensions.
    """
    if isinstance(X, (str, bytes)):
        raise TypeError(f"{name} must be a collection of texts; got a single {type(X).__name__}. Write [{name}].")
    if isinstance(X, pd.Series):
        return X.tolist(), X.index
    if isinstance(X, pd.DataFrame):
        _one_column(X.shape[1], name)
        return X.iloc[:, 0].tolist(), X.index
    if isinstance(X, np.ndarray):
        if X.ndim == 2:
            _one_column(X.shape[1], name)
            X = X[:, 0]
        if X.ndim != 1:
            raise InputError(f"{name} must have one dimension; it has {X.ndim}.")
        return X.tolist(), None
    if isinstance(X, (list, tuple)):
        return X, None
    return _foreign(X, name)


def as_wide_as(X: Any, found: NDArray[Any]) -> NDArray[Any]:
    """Return a transformer's result as a column where `X` has two dimensions: ``ColumnTransformer`` wants that."""
    is_table = X.ndim == 2 if isinstance(X, np.ndarray) else type(X).__name__ in {"DataFrame", "Table", "RecordBatch"}
    return found.reshape(-1, 1) if is_table and found.ndim == 1 else found


def check_new_columns(known: Sequence[str] | None, text_column: str, new: Iterable[str]) -> None:
    """Raise ``InputError`` unless a Dataset has the text column, and none of the new ones; `known` may be None."""
    if known is not None and text_column not in known:
        raise InputError(f"ds has no column {text_column!r}; text_column names it.", f"Columns: {', '.join(known)}.")
    both = sorted(set(known or ()) & set(new))
    if both:
        raise InputError(f"ds has a column {both[0]!r} already.", "Pass output_prefix='…' to rename the new ones.")


def _foreign(X: Any, name: str) -> Column:
    """Return the column of another library's object, told by the name of its type."""
    library, kind = type(X).__module__.partition(".")[0], type(X).__name__
    if library == "ray":
        raise TypeError(
            f"{name} is a Ray Dataset, which predict does not take because its result would be held in this process. "
            "Use predict_dataset (transform_dataset on transformers): clf.predict_dataset(ds, text_column='text')."
        )
    if library == "pyarrow" and kind.endswith("Array"):
        return list(X.to_pylist()), None
    read = _READERS.get((library, kind))
    if read is not None:
        return read(X, name)
    if isinstance(X, Sequence):  # such as a Hugging Face column
        return list(X), None
    if isinstance(X, _ArrayLike):
        return column(np.asarray(X), name)
    hint = f" Write list({name})." if isinstance(X, Iterable) and not isinstance(X, dict) else ""
    raise TypeError(
        f"{name} must be a list, a numpy array, a pandas Series, a one-column DataFrame, or a column of texts of "
        f"pyarrow, polars, narwhals, dask or Hugging Face datasets; got {kind}.{hint}"
    )


def _arrow_table(X: Any, name: str) -> Column:
    _one_column(X.num_columns, name)
    return list(X.column(0).to_pylist()), None


def _series(X: Any, name: str) -> Column:  # noqa: ARG001  they all take the same
    return list(X.to_list()), None


def _frame(X: Any, name: str) -> Column:
    _one_column(len(X.columns), name)
    return _series(X.get_column(X.columns[0]), name)


def _hugging_face(X: Any, name: str) -> Column:
    _one_column(len(X.column_names), name)
    return list(X[X.column_names[0]]), None


def _dask(X: Any, name: str) -> Column:
    return column(X.compute(), name)


def _lazy(X: Any, name: str) -> Column:
    library = type(X).__module__.partition(".")[0]
    raise TypeError(
        f"{name} is a {library} LazyFrame, whose rows are not there yet. Collect the column with the texts: "
        f"{name}.select('text').collect()."
    )


def _no_column(X: Any, name: str) -> Column:
    raise TypeError(f"{name} is a {type(X).__name__} of Hugging Face datasets. Take a split's column: ds['text'].")


_READERS: Final[dict[tuple[str, str], Callable[[Any, str], Column]]] = {
    **{("pyarrow", kind): _arrow_table for kind in ("Table", "RecordBatch")},
    **{("polars", kind): read for kind, read in (("Series", _series), ("DataFrame", _frame), ("LazyFrame", _lazy))},
    **{("narwhals", kind): read for kind, read in (("Series", _series), ("DataFrame", _frame), ("LazyFrame", _lazy))},
    **{
        (library, kind): _dask
        for library in ("dask", "dask_expr")
        for kind in ("Series", "DataFrame", "Index", "Array")
    },
    ("datasets", "Dataset"): _hugging_face,
    **{("datasets", kind): _no_column for kind in ("DatasetDict", "IterableDataset", "IterableDatasetDict")},
}
"""How a type of a library is read, by the library's and the type's name."""


def _one_column(n_columns: int, name: str) -> None:
    if n_columns != 1:
        raise InputError(f"{name} has {n_columns} columns.", f"Pick the one with the texts: {name}['text'].")
