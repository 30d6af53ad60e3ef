"""Labels of a scikit-learn classifier of texts, as a backend gives them, so that it can be a step of a batch job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from skllm_ray.errors import NotSupportedError
from skllm_ray.execution.plan import Step
from skllm_ray.llm.base import Backend, Capabilities, SecretResolver
from skllm_ray.models._base.fitted_spec import LOCAL, FittedSpec
from skllm_ray.tasks.base import UNSEEN_PROBABILITY, ChatRequest, Embedding, Reply, RowError, Usage
from skllm_ray.tasks.classification import ZeroShotTask

_TEXT_ALONE: Final = "{x}"


@dataclass(frozen=True)
class StudentSpec(FittedSpec):
    """A fitted scikit-learn classifier of texts as a backend of labels."""

    classifier: Any

    @property
    def fitted(self) -> Any:
        """The classifier."""
        return self.classifier

    @property
    def capabilities(self) -> Capabilities:
        """It gives labels with their probabilities, at once and for nothing."""
        return replace(LOCAL, gives_log_probs=True)

    def open(self, resolve_secret: SecretResolver) -> StudentBackend:  # noqa: ARG002 - it has none
        """Return the backend."""
        return StudentBackend(self)


class StudentBackend(Backend):
    """A fitted scikit-learn classifier that answers."""

    def __init__(self, spec: StudentSpec) -> None:
        self._spec = spec

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, whose last message is the text alone, or its failure."""
        model = self._spec.model
        try:
            found = self._spec.classifier.predict_proba([one.messages[-1]["content"] for one in requests])
            told = np.log(np.maximum(np.asarray(found, np.float64), UNSEEN_PROBABILITY))
        except Exception as error:  # noqa: BLE001  whatever a user's classifier raises fails its rows, typed
            failure = RowError("bad_request", f"{model}.predict_proba raised {type(error).__name__}: {error}")
            return [Reply(error=failure, model=model) for _ in requests]
        return [
            Reply(
                one.choices.answer([one.choices.labels[int(row.argmax())]]) if one.choices else None,
                tuple(row.tolist()),
                Usage(cost_usd=0.0),
                model=model,
            )
            for one, row in zip(requests, told, strict=True)
        ]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Refuse: it has no vectors."""
        raise NotSupportedError(f"{self._spec.model} gives labels, not vectors; {len(texts)} were asked for.")

    def close(self) -> None:
        """Nothing is held open."""


def student_step(classifier: Any, names: Sequence[str]) -> Step:
    """Return the step that asks a classifier; `names` are those of its classes, in their order."""
    return Step(ZeroShotTask(tuple(names), _TEXT_ALONE), StudentSpec(classifier))
