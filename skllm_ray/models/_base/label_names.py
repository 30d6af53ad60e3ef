"""The names under which a model is asked about labels that are numbers, as scikit-learn's meta-estimators make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.plain_text import has_half

LabelNames: TypeAlias = "Mapping[Any, str] | Sequence[str] | None"
"""Names by label, or in the order of the labels 0, 1, …"""


def check_label_names(label_names: LabelNames) -> None:
    """Raise ``ConfigurationError`` unless `label_names` gives each label a name of its own, or is None."""
    if label_names is None:
        return
    if isinstance(label_names, str) or not isinstance(label_names, (Mapping, Sequence, np.ndarray)):
        hint = "Pass its .names." if type(label_names).__name__ == "ClassLabel" else "Such as ['negative', 'positive']."
        raise ConfigurationError(
            f"label_names must be a list of names, or a mapping of labels to names; got {type(label_names).__name__}.",
            hint,
        )
    names = list(_by_label(label_names).values())
    wrong = next((name for name in names if not isinstance(name, str) or not name.strip()), None)
    if wrong is not None or not names:
        raise ConfigurationError(f"label_names must hold non-empty strings; got {wrong!r}.")
    if has_half(names):
        raise ConfigurationError("label_names holds half of a surrogate pair, which no request can carry.")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ConfigurationError(f"label_names has {repeated!r} twice.", "Two labels need two names.")


def names_of(labels: Sequence[Any], label_names: LabelNames) -> tuple[str, ...]:
    """Return the name of each of `labels`; one that is a name itself, as where nothing is encoded, stays.

    Raises
    ------
    InputError
        If a label has no name.

    Examples
    --------
    >>> names_of([0, 1], ["negative", "positive"])
    ('negative', 'positive')
    >>> names_of(["positive"], ["negative", "positive"])
    ('positive',)
    """
    if label_names is None:
        return tuple(str(label) for label in labels)
    by_label = _by_label(label_names)
    names = set(by_label.values())
    found = []
    for label in labels:
        name = by_label.get(label, label if label in names else None)
        if name is None:
            raise InputError(
                f"y has the label {label!r}, which label_names gives no name.",
                f"label_names knows: {', '.join(map(repr, list(by_label)[:5]))}.",
            )
        found.append(str(name))
    return tuple(found)


def _by_label(label_names: Mapping[Any, str] | Sequence[str]) -> dict[Any, str]:
    return dict(label_names) if isinstance(label_names, Mapping) else dict(enumerate(label_names))
