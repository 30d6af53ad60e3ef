"""Seventy news-like texts with their topic."""

from __future__ import annotations

from skllm_ray.datasets.labelled_csv import read_labelled_csv

__all__ = ["get_topics_dataset"]


def get_topics_dataset() -> tuple[list[str], list[str]]:
    """Return 70 news-like texts, shuffled, with their topic; ten for each of seven topics.

    Returns
    -------
    X : list of str, of shape (70,)
        The texts, one or two sentences each.
    y : list of str, of shape (70,)
        ``"business"``, ``"food"``, ``"health"``, ``"politics"``, ``"sports"``, ``"technology"`` or ``"travel"``.

    Examples
    --------
    >>> from skllm_ray.datasets import get_topics_dataset
    >>> X, y = get_topics_dataset()
    >>> len(X), y.count("travel")
    (70, 10)
    """
    return read_labelled_csv("topics.csv")
