"""The user's texts and labels, checked before anything is started or paid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from skllm_ray.errors import InputError

_SHOWN: Final = 5
_PLAIN: Final = frozenset({str, type(None)})


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one call."""

    values: list[str | None]
    """One per row; None where the text is missing or blank."""
    index: pd.Index[Any]
    """The input's own index, or a range."""

    @property
    def present(self) -> list[int]:
        """The positions that hold a text."""
        return [position for position, value in enumerate(self.values) if value is not None]

    @property
    def missing(self) -> list[int]:
        """The positions that hold none."""
        return [position for position, value in enumerate(self.values) if value is None]


def as_texts(X: Any, name: str = "X") -> Texts:
    """Return the texts in `X`.

    Parameters
    ----------
    X : list, tuple, numpy array, pandas Series, one-column DataFrame, pyarrow or polars column
        Of str; None, NaN and blank texts count as missing.
    name : str, default="X"
        What `X` is called in messages.

    Raises
    ------
    TypeError
        If `X` is not a collection of that kind.
    InputError
        If it is empty, has several columns, or holds something other than texts.
    """
    values, index = _column(X, name)
    if not len(values):
        raise InputError(f"{name} holds no texts.", f"Pass at least one, such as {name}=['some text'].")
    if {type(value) for value in values} <= _PLAIN:
        texts: list[str | None] = [value if value and not value.isspace() else None for value in values]
        return Texts(texts, pd.RangeIndex(len(texts)) if index is None else index)
    wrong = [
        (position, value) for position, value in enumerate(values) if not isinstance(value, str) and not _is_na(value)
    ]
    if wrong:
        shown = ", ".join(f"{name}[{position}] is of type {type(value).__name__}" for position, value in wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(f"{name} must hold strings; {shown}{more}.", "Convert them, for example with .astype(str).")
    texts = [str(value) if isinstance(value, str) and value.strip() else None for value in values]
    return Texts(texts, pd.RangeIndex(len(texts)) if index is None else index)


def refuse_missing(texts: Texts, name: str = "X") -> None:
    """Raise ``InputError`` naming the positions of missing texts, if there are any."""
    missing = texts.missing
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
        raise InputError(
            f"{name} has {len(missing)} missing or blank text(s), at position(s) {shown}.",
            "Drop them, or pass on_error='default' or on_error='coerce' to predict the others.",
        )


def as_labels(y: Any, n_texts: int | None, described: bool) -> np.ndarray[Any, Any]:
    """Return `y` as a one-dimensional array of labels.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        One label per text, or, without texts, each candidate label once.
    n_texts : int or None
        The number of texts; None if there are none.
    described : bool
        Whether the labels have descriptions, so that integers carry a meaning.

    Raises
    ------
    InputError
        If `y` is empty, blank, repeated, of the wrong length, of one value only, or of integers without descriptions.
    """
    if y is None:
        raise InputError(
            "fit requires y to be passed, but the target y is None.",
            "Pass the candidate labels: fit(None, ['positive', 'negative']).",
        )
    values, _ = _column(y, "y")
    _check_labels(list(values), described)
    array = np.asarray(y if isinstance(y, np.ndarray) else list(values))
    if n_texts is not None and len(array) != n_texts:
        raise InputError(f"X has {n_texts} texts but y has {len(array)} labels.", "Pass one label per text.")
    if n_texts is None:
        repeated = [label for label, count in zip(*np.unique(array, return_counts=True), strict=True) if count > 1]
        if repeated:
            raise InputError(
                f"y repeats {_quoted(repeated)}: without X, y lists each candidate label once.",
                "Remove the duplicates, or pass X too if y has one label per text.",
            )
    if len(np.unique(array)) < 2:
        raise InputError(f"y has the single label {_quoted(list(array[:1]))}.", "A choice needs at least two classes.")
    return array


def as_label_lists(y: Any, n_texts: int | None) -> list[list[str]]:
    """Return `y` as a list of label lists, for multi-label tasks; raises ``InputError`` as :func:`as_labels` does."""
    if isinstance(y, pd.DataFrame):
        y = _from_indicators(y)
    if y is None or isinstance(y, (str, bytes)) or not isinstance(y, Iterable):
        raise InputError(f"y must be a list of label lists; got {type(y).__name__}.", "Such as [['price', 'quality']].")
    lists = list(y)
    wrong = [i for i, labels in enumerate(lists) if not isinstance(labels, (list, tuple, set, np.ndarray))]
    if wrong or not lists:
        what = f"y[{wrong[0]}] is of type {type(lists[wrong[0]]).__name__}" if wrong else "it is empty"
        raise InputError(f"y must be a list of label lists; {what}.", "Such as [['price', 'quality'], ['delivery']].")
    if n_texts is not None and len(lists) != n_texts:
        raise InputError(f"X has {n_texts} texts but y has {len(lists)} label lists.", "Pass one list per text.")
    _check_labels([label for labels in lists for label in labels], described=False)
    if n_texts is None and len(lists) == 1:
        repeated = sorted({label for label in lists[0] if list(lists[0]).count(label) > 1})
        if repeated:
            raise InputError(f"y repeats {_quoted(repeated)}.", "List each candidate label once.")
    return [list(labels) for labels in lists]


def _from_indicators(y: pd.DataFrame) -> list[list[str]]:
    """Return the label lists of a binary indicator frame."""
    values = y.to_numpy()
    if not y.columns.is_unique or not np.isin(values, (0, 1)).all():
        raise InputError("y is a DataFrame, but not of a unique column for each label that holds 0 and 1 alone.")
    names = [str(name) for name in y.columns]
    return [[name for name, value in zip(names, row, strict=True) if value] for row in values]


def _check_labels(labels: Sequence[Any], described: bool) -> None:
    if not labels:
        raise InputError("y holds no labels.", "Pass the candidate labels: fit(None, ['positive', 'negative']).")
    for position, label in enumerate(labels):
        if isinstance(label, str):
            if not label.strip():
                raise InputError(
                    f"y[{position}] is an empty label.", "Every label needs a name that says what it means."
                )
        elif _is_na(label):
            raise InputError(f"y[{position}] is missing.", "Drop the row, or give it a label.")
        elif not described or not isinstance(label, (int, np.integer)):
            raise InputError(
                f"y[{position}] is {label!r}, of type {type(label).__name__}: a language model chooses by a label's "
                "name, and a number has none.",
                "Use names, or pass label_descriptions={0: 'what 0 means', …}. Meta-estimators encode labels: wrap a "
                "fitted classifier in sklearn.frozen.FrozenEstimator and use their prefit form.",
            )


def _column(X: Any, name: str) -> tuple[Sequence[Any], pd.Index[Any] | None]:
    """Return the values of a one-dimensional collection and its index, if it has one."""
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
    return _foreign_column(X, name), None


def _foreign_column(X: Any, name: str) -> Sequence[Any]:
    """Return the values of a pyarrow or polars object, told by its methods, so that neither need be imported."""
    module = type(X).__module__.partition(".")[0]
    if module == "ray":
        raise TypeError(
            f"{name} is a Ray Dataset, which predict does not take because its result would be held in this process. "
            "Use predict_dataset (transform_dataset on transformers): clf.predict_dataset(ds, text_column='text')."
        )
    if module in {"pyarrow", "polars"}:
        if hasattr(X, "columns"):  # a table
            _one_column(len(X.columns), name)
            X = X.column(0) if module == "pyarrow" else X.to_series(0)
        if hasattr(X, "to_pylist"):
            return list(X.to_pylist())
        if hasattr(X, "to_list"):
            return list(X.to_list())
    hint = f" Write list({name})." if isinstance(X, Iterable) and not isinstance(X, dict) else ""
    raise TypeError(
        f"{name} must be a list, a numpy array, a pandas Series, a one-column DataFrame, or a pyarrow or polars "
        f"column of texts; got {type(X).__name__}.{hint}"
    )


def _one_column(n_columns: int, name: str) -> None:
    if n_columns != 1:
        raise InputError(f"{name} has {n_columns} columns.", f"Pick the one with the texts: {name}['text'].")


def _is_na(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value))


def _quoted(labels: Sequence[Any]) -> str:
    return ", ".join(repr(str(label)) for label in labels[:_SHOWN])
