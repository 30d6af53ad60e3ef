"""What it means where a model would hardly answer with any of the labels."""

from __future__ import annotations

from typing import Final

_LOW: Final = 0.06
"""Measured on Gemma 3 270M, a weak model, and bank customers' questions: the median is 0.09 to 0.38 for six sets of
labels that fit (BANKING77's own, topics, moods, urgency), and 0.011 to 0.051 for those that do not (emotions, zebra and
quasar, sports and politics), under two plain chat templates."""
_FEW: Final = 8
"""Texts, from which on a median says something of the call and not of one odd text."""


def low_mass(model: str, median: float, n_texts: int) -> str:
    """Return a warning of labels that do not fit; empty where the median of the texts' masses says nothing of the kind.

    Examples
    --------
    >>> low_mass("gguf::demo", 0.5, 100)
    ''
    >>> low_mass("gguf::demo", 0.001, 100)[:60]
    'gguf::demo would answer with one of the labels with a probab'
    """
    if n_texts < _FEW or median >= _LOW:
        return ""
    return (
        f"{model} would answer with one of the labels with a probability of {median:.2g} only (the median of "
        f"{n_texts:,} texts), so that what it says of them may mean little. Look at whether the labels are names that "
        "answer the prompt's question, at prompt_template, and at the model's chat template; the column label_mass of "
        "predict_details(X) and of batch parts shows each text's."
    )
