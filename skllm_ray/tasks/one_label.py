"""What it means where nearly all texts are given the same label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

FEWEST: Final = 20
"""Texts, from which on it says something that a label was never or always given."""
_MOST: Final = 0.8
"""Share of the texts from which on it is told, where there are three candidates or more."""
_MAY_HELP: Final = (
    "label_descriptions, examples, label_prior='uniform' (--label-prior uniform), which takes out a model's liking for "
    "some labels, or a larger model may help."
)


def one_label(label: Any, n: int, n_texts: int, n_candidates: int) -> str:
    """Return a warning where `n` of `n_texts` answers are `label`, and that is all or nearly all; else an empty text.

    Examples
    --------
    >>> one_label("a", 40, 40, 3)[:58]
    "All 40 texts were given the label 'a', one of 3 candidates"
    >>> one_label("a", 36, 40, 3)[:50]
    "36 of 40 texts were given the label 'a', one of 3."
    >>> one_label("a", 30, 40, 3)
    ''
    """
    if n_texts < FEWEST or n_candidates < 2:
        return ""
    if n == n_texts:
        return (
            f"All {n_texts:,} texts were given the label {label!r}, one of {n_candidates:,} candidates. Is it so, "
            f"or does the model not see what the others mean? {_MAY_HELP}"
        )
    if n_candidates > 2 and n >= _MOST * n_texts:
        return f"{n:,} of {n_texts:,} texts were given the label {label!r}, one of {n_candidates:,}. {_MAY_HELP}"
    return ""


def one_for_all(labels: Sequence[Any], n_candidates: int) -> str:
    """Return a warning where all answers are the same label; empty where they are not, or are few."""
    if not labels or any(label != labels[0] for label in labels):
        return ""
    return one_label(labels[0], len(labels), len(labels), n_candidates)
