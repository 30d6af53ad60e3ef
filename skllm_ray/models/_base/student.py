"""The default student: words and pairs of words, characters within words, and a linear model. No model is asked.

scikit-learn counts the n-grams of characters of every text anew. Words repeat, so here each word's n-grams are looked
up once for each call, and a text's counts are a product of two sparse matrices: its words, and their n-grams.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, Final, Self

import numpy as np
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import FeatureUnion, Pipeline

_WORDS: Final = re.compile(r"\w+")
_MANY_ROWS: Final = 1_000_000
_SIZES: Final = (3, 4, 5)


def default_student(n_rows: int, *, random_state: int = 0, characters: bool = True) -> Pipeline:
    """Return an unfitted student for so many training rows.

    Parameters
    ----------
    n_rows : int
        Beyond a million, words are hashed and the linear model learns row by row, so that memory stays bounded.
    random_state : int, default=0
        Seeds the training.
    characters : bool, default=True
        Whether characters within words count too; words alone are several times as fast, and a little worse.

    Examples
    --------
    >>> texts, labels = ["good film", "bad film", "good food", "bad food"], ["+", "-", "+", "-"]
    >>> default_student(4).fit(texts, labels).predict(["a good book", "a bad book"]).tolist()
    ['+', '-']
    """
    if n_rows > _MANY_ROWS:
        return Pipeline(
            [
                ("features", HashingVectorizer(analyzer=words_and_pairs, alternate_sign=False)),
                ("classifier", SGDClassifier(loss="log_loss", alpha=1e-6, random_state=random_state)),
            ]
        )
    words = TfidfVectorizer(analyzer=words_and_pairs, sublinear_tf=True, dtype=np.float32)
    features: Any = words
    if characters:
        inner = Pipeline([("counts", WordCharacters()), ("tfidf", TfidfTransformer(sublinear_tf=True))])
        features = FeatureUnion([("words", words), ("characters", inner)])
    classifier = LogisticRegression(C=10, max_iter=500, random_state=random_state)
    return Pipeline([("features", features), ("classifier", classifier)])


def words_and_pairs(text: str) -> list[str]:
    """Return a text's words and pairs of neighbours.

    Examples
    --------
    >>> words_and_pairs("Lost my card")
    ['lost', 'my', 'card', 'lost my', 'my card']
    """
    words = _WORDS.findall(text.lower())
    return words + [f"{one} {other}" for one, other in pairwise(words)]


class WordCharacters(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Count the n-grams of three to five characters within a text's words; a space stands before and after each word.

    Attributes
    ----------
    vocabulary_ : dict of str to int
        The n-grams of the texts that it was fitted with.

    Examples
    --------
    >>> WordCharacters().fit(["ab"]).get_feature_names_out().tolist()
    [' ab', ' ab ', 'ab ']
    """

    vocabulary_: dict[str, int]

    def fit(self, X: Sequence[str], y: Any = None) -> Self:
        """Learn the n-grams of texts."""
        del y
        words = set(chain.from_iterable(_WORDS.findall(text.lower()) for text in X))
        grams = sorted(set(chain.from_iterable(map(_grams, words))))
        self.vocabulary_ = {gram: at for at, gram in enumerate(grams)}
        return self

    def transform(self, X: Sequence[str]) -> csr_array:
        """Return the counts, of shape (n_texts, n_grams)."""
        places: dict[str, int] = {}
        found: list[int] = []
        ends = [0]
        for text in X:
            found += [places.setdefault(word, len(places)) for word in _WORDS.findall(text.lower())]
            ends.append(len(found))
        counts = csr_array((np.ones(len(found), np.float32), found, ends), shape=(len(ends) - 1, len(places)))
        return counts @ self._of_words(places)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the n-grams."""
        del input_features
        return np.asarray(list(self.vocabulary_), dtype=object)

    def _of_words(self, words: dict[str, int]) -> csr_array:
        """Return the counts of each word's n-grams."""
        columns: list[int] = []
        values: list[int] = []
        ends = [0]
        for word in words:
            known = Counter(at for gram in _grams(word) if (at := self.vocabulary_.get(gram)) is not None)
            columns += known.keys()
            values += known.values()
            ends.append(len(columns))
        return csr_array((np.asarray(values, np.float32), columns, ends), shape=(len(words), len(self.vocabulary_)))


def _grams(word: str) -> list[str]:
    padded = f" {word} "
    return [padded[at : at + size] for size in _SIZES for at in range(len(padded) - size + 1)]
