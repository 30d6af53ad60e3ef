"""Three hundred customer reviews with their sentiment."""

from __future__ import annotations

from skllm_ray.datasets.labelled_csv import read_labelled_csv

__all__ = ["get_reviews_dataset"]


def get_reviews_dataset() -> tuple[list[str], list[str]]:
    """Return 300 customer reviews of many kinds, shuffled, with their sentiment.

    A hundred reviews each are positive, negative and neutral; neutral ones are factual, indifferent or evenly mixed.

    Returns
    -------
    X : list of str, of shape (300,)
        The reviews, one to five sentences each.
    y : list of str, of shape (300,)
        ``"positive"``, ``"negative"`` or ``"neutral"``.

    Examples
    --------
    >>> from skllm_ray.datasets import get_reviews_dataset
    >>> X, y = get_reviews_dataset()
    >>> len(X), sorted(set(y))
    (300, ['negative', 'neutral', 'positive'])
    """
    return read_labelled_csv("reviews.csv")
