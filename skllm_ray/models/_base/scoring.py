"""Predictions compared with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score

from skllm_ray.errors import InputError


def accuracy(predictions: Sequence[Any], truth: Sequence[Any], weights: Any) -> float:
    """Return the share of right labels; where there is none, the row counts as wrong."""
    weighed = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    there = [i for i, label in enumerate(predictions) if label is not None]
    if not there:
        return 0.0
    right = accuracy_score([truth[i] for i in there], [predictions[i] for i in there], sample_weight=weighed[there])
    return float(right * weighed[there].sum() / weighed.sum())


def check_truth(truth: Sequence[Any], weights: Any, classes: NDArray[Any]) -> None:
    """Raise where predictions, some of `classes`, cannot be compared with the true labels: before any is paid for.

    Raises
    ------
    InputError
        If a label is missing, if labels and classes are not of one kind, or if the weights are not one number for each.
    """
    missing = [i for i, label in enumerate(truth) if pd.api.types.is_scalar(label) and pd.isna(label)]
    if missing:
        told = f"y has {len(missing)} missing labels, the first at position {missing[0]}."
        raise InputError(told, "Drop these rows.")
    try:
        accuracy_score(truth, [classes[0]] * len(truth))
    except (TypeError, ValueError) as error:
        raise InputError(f"y cannot be compared with the classes {classes[:3].tolist()}…: {error}") from None
    check_weights(weights, len(truth))


def check_weights(weights: Any, n_rows: int) -> None:
    """Raise ``InputError`` unless `weights` is None, or one finite number of at least 0 for each row."""
    if weights is None:
        return
    try:
        found = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise InputError("sample_weight must hold a number for each row.") from None
    if found.shape != (n_rows,):
        raise InputError(f"sample_weight has the shape {found.shape}; it must be ({n_rows},).")
    if not (np.isfinite(found).all() and (found >= 0).all() and (not n_rows or found.any())):
        raise InputError("sample_weight must hold finite numbers of at least 0, not all of them 0.")
