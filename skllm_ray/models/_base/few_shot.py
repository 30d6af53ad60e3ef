"""Classifiers that learn from examples in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError, InputError, MissingExtraError
from skllm_ray.execution.plan import Plan, Step
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.registry import provider_of
from skllm_ray.memory import IndexConstructor, MemoryIndex, SklearnMemoryIndex
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.constraints import Constraints, Has, Is, Text, Whole, shorten
from skllm_ray.models._base.inputs import as_label_lists, as_texts, refuse_missing
from skllm_ray.models._base.multilabel import MultiLabelClassifier
from skllm_ray.models._base.transformer_backend import TransformerSpec
from skllm_ray.models._base.vectorizer import LLMVectorizer
from skllm_ray.prompts.templates import FEW_SHOT_CLF_PROMPT_TEMPLATE, FEW_SHOT_MLCLF_PROMPT_TEMPLATE
from skllm_ray.tasks.base import Choices
from skllm_ray.tasks.embedding import EmbeddingTask
from skllm_ray.tasks.few_shot import (
    DynamicFewShotTask,
    ExampleMemory,
    FewShotTask,
    MultiLabelFewShotTask,
    format_examples,
)
from skllm_ray.tasks.prior import CONTENT_FREE

_TRIED: Final = (32, 8)
"""How many vectors an index is tried with, and of what length where the index does not say."""


class FewShotClassifier(LLMClassifier):
    """Base of the few-shot classifiers with one label per text."""

    _placeholders: ClassVar[tuple[str, ...]] = ("x", "labels", "training_data")

    examples_: str

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the labels and the examples. Nothing is sent and nothing is started.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The examples' texts. All of them go into every prompt.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If `X` is None or has missing texts, or `y` does not fit it.
        """
        texts = _examples(self, X)
        super().fit(X, y)
        if self.label_prior is not None:
            self.prior_texts_ = CONTENT_FREE  # the others stand in the prompt, with their labels
        self.examples_ = "\n\n".join(format_examples(texts, self._names_for(y), Choices(self._names())))
        return self

    def _task(self) -> FewShotTask:
        template = self.prompt_template or FEW_SHOT_CLF_PROMPT_TEMPLATE
        return FewShotTask(self._names(), template, self._descriptions(), self.examples_, prior=self._prior())


class MultiLabelFewShotClassifier(MultiLabelClassifier):
    """Base of the few-shot classifiers with any number of labels per text."""

    _placeholders: ClassVar[tuple[str, ...]] = ("x", "labels", "max_cats", "training_data")

    examples_: str

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the labels and the examples. Nothing is sent and nothing is started.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The examples' texts. All of them go into every prompt.
        y : list of lists of str
            Their labels.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If `X` is None or has missing texts, or `y` does not fit it.
        """
        texts = _examples(self, X)
        super().fit(X, y)
        choices = Choices(self._names(), multiple=True)
        self.examples_ = "\n\n".join(
            format_examples(texts, as_label_lists(y, len(texts), self._column_names()), choices)
        )
        return self

    def _task(self) -> MultiLabelFewShotTask:
        template = self.prompt_template or FEW_SHOT_MLCLF_PROMPT_TEMPLATE
        return MultiLabelFewShotTask(self._names(), self.max_labels, template, self._descriptions(), self.examples_)


class DynamicFewShotClassifier(FewShotClassifier):
    """Base of the few-shot classifiers that show each text the examples that are most like it."""

    _parameter_constraints: ClassVar[Constraints] = {
        "n_examples": [Whole(1)],
        "memory_index": [Has("__call__", "an IndexConstructor"), Is(type, "a class of indexes"), None],
        "vectorizer": [Has("transform", "a transformer of texts, such as GPTVectorizer()"), None],
        "metric": [Text()],
    }

    n_examples: int
    memory_index: IndexConstructor | None
    vectorizer: Any
    metric: str
    memory_: ExampleMemory
    vectorizer_: Any

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the labels, and embed the examples: once, in batches.

        Parameters
        ----------
        X : array-like of str of shape (n_samples,)
            The examples' texts.
        y : array-like of shape (n_samples,)
            Their labels. A class may have fewer than ``n_examples``.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If `X` is None or has missing texts, or `y` does not fit it.
        ConfigurationError
            If a constructor parameter cannot work.
        JobFailedError
            If not every example could be embedded.
        """
        super().fit(X, y)
        del self.examples_  # each row gets its own
        if self.label_prior is not None:
            self.prior_texts_ = tuple(filter(None, CONTENT_FREE))  # nothing has no vector
        texts, labels = _examples(self, X), np.asarray(self._names_for(y))
        self.vectorizer_ = self._new_vectorizer(texts)
        rows = self._answered(texts, (self._embedding_step(),))
        vectors = np.stack([np.asarray(row.value, np.float32) for row in rows])
        members = [np.flatnonzero(labels == name) for name in self._names()]
        memory = ExampleMemory(
            tuple(format_examples(texts, labels.tolist(), Choices(self._names()))),
            tuple(self._new_index(vectors[rows]) for rows in members),
            tuple(members),
        )
        self.memory_ = memory.with_order(vectors, self.n_examples)
        return self

    def render_prompt(self, X: Any) -> list[str | None]:
        """Return the exact prompts; None where the text is missing. The texts are embedded for it, nothing else."""
        return super().render_prompt(X)

    # --- inside ---------------------------------------------------------------------------------------------------

    _vectorizer_class: ClassVar[type[LLMVectorizer]]

    def _task(self) -> DynamicFewShotTask:  # type: ignore[override]
        return DynamicFewShotTask(
            self._names(),
            self.prompt_template or FEW_SHOT_CLF_PROMPT_TEMPLATE,
            self._descriptions(),
            self.memory_,
            self.n_examples,
            prior=self._prior(),
        )

    def _plan(self, spec: BackendSpec) -> Plan:
        return (self._embedding_step(), *super()._plan(spec))

    def _new_vectorizer(self, texts: Sequence[str]) -> Any:
        if self.vectorizer is None:
            return self._vectorizer_class(**self._vectorizer_parameters()).fit()
        vectorizer = clone(self.vectorizer)
        if isinstance(vectorizer, LLMVectorizer):
            return vectorizer.fit()
        return TransformerSpec(vectorizer.fit(list(texts)))

    def _vectorizer_parameters(self) -> dict[str, Any]:
        """Return the parameters of the vectorizer that is made where none is given."""
        embedder = provider_of(self.model, self._family).embedder
        if embedder == "unknown":  # texts go only where they were sent
            raise ConfigurationError(
                f"vectorizer is None, and model={self.model!r} says nothing about who embeds the texts.",
                f"Pass one, such as GPTVectorizer(model='{self.model.partition('::')[0]}::<embedding model>').",
            )
        parameters: dict[str, Any] = {"key": self.key, "org": self.org} if self._family == "gpt" else {}
        return {**parameters, "model": self.model} if embedder == "itself" else parameters

    def _embedding_step(self) -> Step:
        own = isinstance(self.vectorizer_, TransformerSpec)
        return Step(EmbeddingTask(), self.vectorizer_ if own else self.vectorizer_._spec())

    def _secrets(self) -> dict[str, Secret]:
        vectorizer = getattr(self, "vectorizer_", None)  # a fitted attribute: credentials are asked for before, too
        theirs = vectorizer._secrets() if isinstance(vectorizer, LLMVectorizer) else {}
        return {**super()._secrets(), **theirs}

    def _empty_index(self) -> MemoryIndex:
        make = self.memory_index or IndexConstructor(SklearnMemoryIndex, metric=self.metric)
        return make()

    def _new_index(self, vectors: NDArray[np.float32]) -> MemoryIndex:
        index = self._empty_index()
        if _dim_of(index) < 1:
            index.dim = vectors.shape[1]  # type: ignore[attr-defined]
        for vector in vectors:
            index.add(vector)
        index.build()
        return index

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.vectorizer is None:
            self._vectorizer_parameters()
        self._try_index()

    def _try_index(self) -> None:
        """Make an index of a few vectors of our own: one that cannot work must not be found out with paid ones."""
        try:
            length = max(_TRIED[1], _dim_of(self._empty_index()))
            vectors = np.random.default_rng(0).normal(size=(_TRIED[0], length)).astype(np.float32)
            self._new_index(vectors).retrieve(vectors[:1], min(self.n_examples, len(vectors)))
        except MissingExtraError:
            raise
        except Exception as error:  # noqa: BLE001  an index may be anyone's, and raises what it likes
            raise ConfigurationError(
                f"memory_index={shorten(self.memory_index)} with metric={self.metric!r} makes no index that works: "
                f"{type(error).__name__}: {error}",
                "Such as metric='cosine', or memory_index=IndexConstructor(SklearnMemoryIndex, metric='cosine').",
            ) from None


def _dim_of(index: MemoryIndex) -> int:
    """Return the length of vectors that an index takes, below 1 where it has to be told; 1 where it takes any."""
    return int(getattr(index, "dim", 1))  # scikit-llm's indexes have it; a user's own need not


def _examples(estimator: LLMClassifier, X: Any) -> list[str]:
    if X is None:
        raise InputError(
            f"{type(estimator).__name__}.fit got X=None, but it learns from examples.",
            "Pass texts and their labels; without texts, use a zero-shot classifier.",
        )
    texts = as_texts(X)
    refuse_missing(texts)
    return [str(text) for text in texts.values]
