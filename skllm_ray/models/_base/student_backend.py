"""Labels of a scikit-learn classifier of texts, as a backend gives them, so that it can be a step of a batch job."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import joblib
import numpy as np

from skllm_ray.config import Price, RateLimit
from skllm_ray.errors import NotSupportedError
from skllm_ray.execution.plan import Step
from skllm_ray.llm.base import WORKERS_AT_ONCE, Backend, BackendSpec, Capabilities, SecretResolver
from skllm_ray.tasks.base import UNSEEN_PROBABILITY, ChatRequest, Embedding, Reply, RowError, Usage
from skllm_ray.tasks.classification import ZeroShotTask

_TEXT_ALONE: Final = "{x}"


@dataclass(frozen=True)
class StudentSpec(BackendSpec):
    """A fitted scikit-learn classifier of texts as a backend of labels."""

    classifier: Any
    key: str = field(default_factory=lambda: f"student-{uuid.uuid4().hex}")
    limit: RateLimit | None = None

    @property
    def capabilities(self) -> Capabilities:
        """It gives labels with their probabilities, at once and for nothing."""
        return Capabilities(
            gives_log_probs=True,
            writes_labels=False,
            streams=False,
            takes_json_schemas=False,
            embeds=False,
            stateful=False,
            calls_at_once=WORKERS_AT_ONCE,
            stays_open=False,
            retry=None,
            price=Price(0.0),
            cache=None,
        )

    @property
    def identity(self) -> str:
        """What the classifier has learnt."""
        return f"{self.model} {joblib.hash(self.classifier)}"

    @property
    def model(self) -> str:
        """The classifier's class."""
        return type(self.classifier).__name__

    def check(self) -> None:
        """Accept everything: the classifier is fitted."""

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
