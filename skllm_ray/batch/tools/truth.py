"""True labels, as a column may hold them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from skllm_ray.batch.tools.scores import Labels


def true_labels(told: Any, known: Collection[str], names: Mapping[str, str], *, several: bool) -> Labels:
    """Return the labels that a cell of a column holds.

    Parameters
    ----------
    told : object
        The cell: a label, or, with several labels, a list, a JSON list or labels with commas between them.
    known : collection of str
        The candidates: a text that is one of them is one label, commas and all.
    names : mapping of str to str
        What to take for a label that the column holds.
    several : bool
        Whether a row may have several labels.

    Examples
    --------
    >>> sorted(true_labels("a, b", ["a", "b"], {}, several=True))
    ['a', 'b']
    >>> sorted(true_labels("a, b", [], {"b": "c"}, several=True))
    ['a', 'c']
    >>> true_labels(1, [], {"1": "positive"}, several=False)
    frozenset({'positive'})
    """
    if not several or str(told) in known or str(told) in names:
        return frozenset([names.get(str(told), str(told))])
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError:
            told = told.split(",")
    each = (str(label).strip() for label in (told if isinstance(told, list) else [told]))
    return frozenset(names.get(label, label) for label in each if label)
