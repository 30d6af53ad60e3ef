"""Classification after examples: the same for every text, or, dynamically, those that are most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skllm_ray.prompts import fill, format_example
from skllm_ray.prompts.templates import (
    CLF_SYSTEM_MESSAGE,
    FEW_SHOT_CLF_PROMPT_TEMPLATE,
    FEW_SHOT_MLCLF_PROMPT_TEMPLATE,
)
from skllm_ray.tasks.base import ChatRequest, Choices, FollowUpTask, Message, Row
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask, describe

_MOST_COUNTED = 2048  # training texts whose neighbours are counted for the canonical order


@dataclass(frozen=True)
class FewShotTask(ZeroShotTask):
    """Choose one of the labels, as examples show."""

    template: str = FEW_SHOT_CLF_PROMPT_TEMPLATE
    training_data: str = ""
    """The examples, as :func:`format_examples` writes them."""

    def _values(self) -> dict[str, str]:
        return {**super()._values(), "training_data": self.training_data}


@dataclass(frozen=True)
class MultiLabelFewShotTask(MultiLabelZeroShotTask):
    """Choose any of the labels, as examples show."""

    template: str = FEW_SHOT_MLCLF_PROMPT_TEMPLATE
    training_data: str = ""
    """The examples, as :func:`format_examples` writes them."""

    def _values(self) -> dict[str, str]:
        return {**super()._values(), "training_data": self.training_data}


def format_examples(texts: Sequence[str], labels: Sequence[Any], choices: Choices) -> list[str]:
    """Return the examples of a prompt; `labels` are one label per text, or, with several, a list of them."""
    chosen = labels if choices.multiple else [[label] for label in labels]
    return [format_example(text, choices.answer(some)) for text, some in zip(texts, chosen, strict=True)]


class Index(Protocol):
    """What finds the nearest of some vectors; see :mod:`skllm_ray.memory`."""

    def retrieve(self, vectors: NDArray[np.float32], k: int) -> Sequence[Sequence[int]]:
        """Return the positions of the `k` nearest, for each vector."""
        ...


@dataclass(frozen=True, eq=False)
class ExampleMemory:
    """The training texts of dynamic few-shot, with one index for each class."""

    examples: tuple[str, ...]
    """Each training text as a prompt shows it."""
    indexes: tuple[Index, ...]
    """One for each class."""
    members: tuple[NDArray[np.int64], ...]
    """The positions of each class's texts in `examples`, in the order of its index."""
    order: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Each example's place in a prompt; see :meth:`with_order`."""

    def nearest(self, vectors: NDArray[np.float32], n_examples: int) -> list[tuple[int, ...]]:
        """Return, for each vector, the nearest examples of every class, up to `n_examples` of each.

        Whole blocks of vectors go through each index at once. A class with fewer examples gives them all.
        """
        found: list[list[int]] = [[] for _ in vectors]
        for index, members in zip(self.indexes, self.members, strict=True):
            for near, row in zip(index.retrieve(vectors, min(n_examples, len(members))), found, strict=True):
                row.extend(members[np.asarray(near, np.int64)].tolist())
        if len(self.order):
            return [tuple(sorted(row, key=self.order.__getitem__)) for row in found]
        return [tuple(row) for row in found]

    def with_order(self, vectors: NDArray[np.float32], n_examples: int) -> ExampleMemory:
        """Return the same with a canonical order: the examples that are neighbours most often come first.

        So the prompts of rows that share some of their examples begin alike, and what they share is computed once by a
        local model, and served from the prompt cache by an API. How often is counted over the training texts.
        """
        step = max(1, len(vectors) // _MOST_COUNTED)
        counts = np.zeros(len(self.examples), np.int64)
        for row in self.nearest(vectors[::step], n_examples):
            counts[list(row)] += 1
        order = np.empty(len(counts), np.int64)
        order[np.lexsort((np.arange(len(counts)), -counts))] = np.arange(len(counts))
        return ExampleMemory(self.examples, self.indexes, self.members, order)


@dataclass(frozen=True, eq=False)
class DynamicFewShotTask(ZeroShotTask, FollowUpTask):
    """Choose one of the labels, as the examples show that are most like the text.

    It follows a step that embeds the texts: its vectors choose the examples.
    """

    template: str = FEW_SHOT_CLF_PROMPT_TEMPLATE
    memory: ExampleMemory | None = None
    n_examples: int = 3

    def render_after(self, texts: Sequence[str], rows: Sequence[Row[Any]]) -> list[ChatRequest]:
        """Return one request per text, with the examples nearest to its vector."""
        vectors = np.stack([np.asarray(row.value, np.float32) for row in rows])
        return self._with_examples(texts, self._filled_memory().nearest(vectors, self.n_examples))

    def render(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return one request per text with any examples: as long as the real ones, where nobody pays for vectors."""
        random = np.random.default_rng(0)
        sizes = [(some, min(len(some), self.n_examples)) for some in self._filled_memory().members]
        chosen = [[i for some, n in sizes for i in random.choice(some, n, replace=False)] for _ in texts]
        return self._with_examples(texts, chosen)

    def _filled_memory(self) -> ExampleMemory:
        if self.memory is None:
            raise ValueError("A dynamic few-shot prompt needs a memory of examples.")
        return self.memory

    def _with_examples(self, texts: Sequence[str], chosen: Sequence[Sequence[int]]) -> list[ChatRequest]:
        system: Message = {"role": "system", "content": CLF_SYSTEM_MESSAGE}
        labels, examples = describe(self.labels, self.descriptions), self._filled_memory().examples
        requests = []
        for text, near in zip(texts, chosen, strict=True):
            shown = "\n\n".join(examples[position] for position in near)
            content = fill(self.template, text, {"labels": labels, "training_data": shown})
            requests.append(ChatRequest((system, {"role": "user", "content": content}), self.choices))
        return requests
