"""Which rows taught a student, and what the teacher said about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.models._base.docs_link import DocsLink
from skllm_ray.models._base.sklearn_bases import BaseEstimator, ClassifierMixin


@dataclass(frozen=True)
class TaughtRows:
    """The teacher's labels by a hash of the text: a saved student holds no text that taught it."""

    labels: dict[str, Any]

    @classmethod
    def of(cls, texts: Sequence[str], labels: Sequence[Any]) -> TaughtRows:
        """Return what a teacher said about texts."""
        return cls(dict(zip(map(_hash, texts), labels, strict=True)))

    def among(self, texts: Sequence[str | None]) -> NDArray[np.bool_]:
        """Return which texts taught the student."""
        if not self.labels:
            return np.zeros(len(texts), bool)
        return np.asarray([text is not None and text in self for text in texts], bool)

    def __contains__(self, text: str) -> bool:
        return _hash(text) in self.labels

    def get(self, text: str) -> Any:
        """Return the teacher's label; None of a text that taught nothing."""
        return self.labels.get(_hash(text))

    def labels_of(self, texts: Sequence[str]) -> list[Any]:
        """Return the teacher's labels of texts that taught the student."""
        return [self.get(text) for text in texts]


class TaughtClassifier(DocsLink, ClassifierMixin, BaseEstimator):
    """Base of classifiers that were taught by another: its labels of these rows are known, and were paid for."""

    teacher_: Any
    taught_: TaughtRows


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
