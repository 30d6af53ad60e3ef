"""Reading the labelled texts that are packaged beside this module."""

from __future__ import annotations

import csv
from importlib.resources import files
from io import StringIO

__all__ = ["read_labelled_csv"]


def read_labelled_csv(filename: str) -> tuple[list[str], list[str]]:
    """Read a packaged CSV file with the columns ``text`` and ``label``.

    Parameters
    ----------
    filename : str
        Name of a file in ``skllm_ray.datasets``.

    Returns
    -------
    texts : list of str, of shape (n_samples,)
        The column ``text``, in the order of the file.
    labels : list of str, of shape (n_samples,)
        The column ``label``.

    Examples
    --------
    >>> texts, labels = read_labelled_csv("topics.csv")
    >>> len(texts) == len(labels)
    True
    """
    content = files("skllm_ray.datasets").joinpath(filename).read_text(encoding="utf-8")
    rows = list(csv.DictReader(StringIO(content, newline="")))
    return [row["text"] for row in rows], [row["label"] for row in rows]
