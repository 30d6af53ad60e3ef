"""Customer reviews with their sentiment: three hundred of all kinds, and plainly worded ones."""

from __future__ import annotations

from skllm_ray.datasets.labelled_csv import read_labelled_csv

__all__ = ["get_plain_reviews_dataset", "get_reviews_dataset"]


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


def get_plain_reviews_dataset() -> tuple[list[str], list[str]]:
    """Return 180 plainly worded customer reviews of one sentence, shuffled, with their sentiment.

    Sixty each are positive, negative and neutral; of the neutral ones twenty each are factual, indifferent and mixed.
    They were fixed before the demo model was asked about them.

    Returns
    -------
    X : list of str, of shape (180,)
        The reviews.
    y : list of str, of shape (180,)
        ``"positive"``, ``"negative"`` or ``"neutral"``.

    Examples
    --------
    >>> from skllm_ray.datasets import get_plain_reviews_dataset
    >>> X, y = get_plain_reviews_dataset()
    >>> X[1], y[1]
    ('The vacuum cleaner is quiet and powerful.', 'positive')
    """
    return read_labelled_csv("plain_reviews.csv")
