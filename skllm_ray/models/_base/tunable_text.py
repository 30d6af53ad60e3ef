"""Texts as the answers that a model is tuned to give."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from skllm_ray.errors import InputError
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.transformer import TextToText
from skllm_ray.models._base.tunable import Tunable, whole_texts
from skllm_ray.tasks.tuned import TunedTextTask


class TunableText2Text(Tunable, TextToText):  # type: ignore[misc]  # fit needs y
    """Base of the estimators that learn to turn one text into another."""

    def predict(self, X: Any, num_workers: int | None = None, *, on_error: OnError | None = None) -> NDArray[Any]:
        """Return the tuned model's text for every text.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The texts.
        num_workers : int or None, default=None
            The most requests that this call may have in flight.
        on_error : {"raise", "coerce"} or None, default=None
            Overrides the constructor's.

        Returns
        -------
        ndarray of object of shape (n_samples,)
            In the order of `X`; None for rows that failed, with "coerce".

        Raises
        ------
        PartialResultError
            If rows failed and ``on_error="raise"``; its ``details`` hold all rows.
        """
        found: NDArray[Any] = self._results(X, on_error, num_workers)
        return found

    def _task(self) -> TunedTextTask:
        return TunedTextTask()

    def _learn(self, X: Any, y: Any) -> None:
        self._check_parameters()
        n_texts, n_answers = len(whole_texts(X).values), len(whole_texts(y, "y").values)
        if n_texts != n_answers:
            raise InputError(f"X has {n_texts} texts but y has {n_answers}.", "Pass one answer per text.")

    def _answers(self, X: Any, y: Any) -> list[str]:  # noqa: ARG002  the base's signature
        return [str(text) for text in whole_texts(y, "y").values]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags
