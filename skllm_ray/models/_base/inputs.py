"""The user's texts and labels, checked before anything is started or paid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skllm_ray.errors import InputError, warn
from skllm_ray.models._base.columns import column
from skllm_ray.plain_text import has_half
from skllm_ray.tasks.base import normal_form

_SHOWN: Final = 5
_SUCH_AS: Final = "Such as [['price', 'quality'], ['delivery']]."
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
    X : list, tuple, numpy array, pandas Series, one-column DataFrame, or another library's column
        Of str; None, NaN and blank texts count as missing. Libraries: pyarrow, polars, narwhals, dask, Hugging Face
        datasets, and whatever numpy makes an array of.
    name : str, default="X"
        What `X` is called in messages.

    Raises
    ------
    TypeError
        If `X` is not a collection of that kind.
    InputError
        If it is empty, has several columns, or holds something other than texts.
    """
    values, index = column(X, name)
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


def check_length(X: Any, y: Sequence[Any]) -> None:
    """Raise ``InputError`` unless there is one label, or list of labels, for each text."""
    n_texts = len(column(X, "X")[0])
    if not n_texts and not len(y):
        raise InputError("X holds no texts, and y no labels.", "Pass at least one of each.")
    if n_texts != len(y):
        raise InputError(f"X has {n_texts} texts but y has {len(y)} labels.", "Pass one label per text.")


def as_labels(y: Any, n_texts: int | None, described: bool) -> np.ndarray[Any, Any]:
    """Return `y` as a one-dimensional array of labels.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        One label per text, or, without texts, each candidate label once.
    n_texts : int or None
        The number of texts; None if there are none.
    described : bool
        Whether the labels have names or descriptions, so that integers carry a meaning.

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
    values, _ = column(y, "y")
    _check_labels(list(values), described)
    _warn_of_like_labels(values)
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


def as_label_lists(y: Any, n_texts: int | None, names: Sequence[str] | None = None) -> list[list[str]]:
    """Return `y` as a list of label lists, for multi-label tasks.

    Parameters
    ----------
    y : list of label lists, indicator DataFrame, indicator array, or list of labels
        One list, or one row of 0 and 1, per text; or, without texts, the candidate labels, in a list of their own or
        not.
    n_texts : int or None
        The number of texts; None if there are none.
    names : sequence of str or None, default=None
        The names of an indicator array's columns.

    Raises
    ------
    InputError
        As :func:`as_labels` does; also where an indicator array's columns have no names.
    """
    if isinstance(y, Iterator):
        y = list(y)
    if n_texts is None and isinstance(y, Iterable) and not isinstance(y, str) and as_indicators(y) is None:
        listed = _listed(y)
        y = [listed] if listed and all(isinstance(label, str) for label in listed) else y
    lists = label_lists(y, names)
    if not lists:
        raise InputError("y must be a list of label lists; it is empty.", _SUCH_AS)
    if n_texts is not None and len(lists) != n_texts:
        raise InputError(f"X has {n_texts} texts but y has {len(lists)} label lists.", "Pass one list per text.")
    _check_labels([label for labels in lists for label in labels], described=False)
    _warn_of_like_labels(label for labels in lists for label in labels)
    if n_texts is None and len(lists) == 1:
        repeated = sorted({label for label in lists[0] if lists[0].count(label) > 1})
        if repeated:
            raise InputError(f"y repeats {_quoted(repeated)}.", "List each candidate label once.")
    return lists


def label_lists(y: Any, names: Sequence[str] | None = None) -> list[list[str]]:
    """Return `y` as a list of lists, whatever its form and whatever labels they hold."""
    indicators = as_indicators(y)
    if indicators is not None:
        columns = list(map(str, y.columns)) if isinstance(y, pd.DataFrame) else names
        return _from_indicators(indicators, columns)
    if y is None or isinstance(y, (str, bytes)) or not isinstance(y, Iterable):
        raise InputError(f"y must be a list of label lists; got {type(y).__name__}.", _SUCH_AS)
    lists = _listed(y)
    forms = (list, tuple, set, frozenset, np.ndarray)
    wrong = next((i for i, labels in enumerate(lists) if not isinstance(labels, forms)), None)
    if wrong is not None:
        raise InputError(
            f"y must be a list of label lists; y[{wrong}] is of type {type(lists[wrong]).__name__}.",
            f"{_SUCH_AS} Candidate labels alone go without texts: fit(None, ['price', 'quality']).",
        )
    return [list(labels) for labels in lists]


def _listed(y: Any) -> list[Any]:
    """Return the labels, or label lists, of any library's column as Python's own objects."""
    own = isinstance(y, (list, tuple, set, frozenset, np.ndarray, Iterator, Mapping))
    return list(y if own else column(y, "y")[0])


def as_indicators(y: Any) -> NDArray[Any] | None:
    """Return the matrix of 0 and 1 in a DataFrame, a numpy array or a scipy sparse matrix; None of anything else."""
    from scipy.sparse import issparse  # workers import this module for texts: they need no scipy

    if isinstance(y, pd.DataFrame):
        return np.asarray(y.to_numpy())
    if issparse(y):
        return np.asarray(y.toarray())
    return y if isinstance(y, np.ndarray) and y.ndim == 2 and y.dtype.kind in "iufb" else None


def _from_indicators(values: NDArray[Any], names: Sequence[str] | None) -> list[list[str]]:
    """Return the label lists of an indicator matrix."""
    if names is None:
        raise InputError(
            f"y is an array of 0 and 1 with {values.shape[1]} columns, and nothing says which label each stands for.",
            "Pass label_names=binarizer.classes_.tolist() to the estimator, or y as a DataFrame with named columns.",
        )
    if len(names) != values.shape[1] or len(set(names)) < len(names) or not np.isin(values, (0, 1)).all():
        raise InputError(
            f"y has {values.shape[1]} columns for the labels {_quoted(list(names))}, but not of a unique column for "
            "each label that holds 0 and 1 alone."
        )
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
            if has_half(label):
                raise InputError(
                    f"y[{position}] is {label!r}, which holds half of a surrogate pair: no request can carry it.",
                    "Read the labels with their right encoding.",
                )
        elif _is_na(label):
            raise InputError(f"y[{position}] is missing.", "Drop the row, or give it a label.")
        elif not described or not isinstance(label, (int, np.integer)):
            raise InputError(
                f"y[{position}] is {label!r}, of type {type(label).__name__}: a language model chooses by a label's "
                "name, and a number has none.",
                "Use names, or pass label_names=['what 0 means', 'what 1 means', …]: meta-estimators, and "
                "cross_val_predict with method='predict_proba', number the sorted labels so. "
                "label_descriptions={0: '…'} tells what a number means where the prompt shall show the number.",
            )


def _warn_of_like_labels(labels: Iterable[Any]) -> None:
    """Warn of labels that an answer hardly tells apart."""
    forms: dict[str, list[str]] = {}
    for label in dict.fromkeys(one for one in labels if isinstance(one, str)):
        forms.setdefault(normal_form(label), []).append(label)
    alike = next((found for found in forms.values() if len(found) > 1), None)
    if alike is not None:
        warn(
            f"The labels {_quoted(alike)} differ by their case, white space or Unicode form alone, so that an answer "
            "in any other spelling is none of them. If they mean the same, spell them alike."
        )


def _is_na(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value))


def _quoted(labels: Sequence[Any]) -> str:
    return ", ".join(repr(str(label)) for label in labels[:_SHOWN])
