"""A fitted scikit-learn estimator of texts as a backend: what all kinds share."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Final

import joblib

from skllm_ray.config import Price, RateLimit
from skllm_ray.llm.base import WORKERS_AT_ONCE, BackendSpec, Capabilities

LOCAL: Final = Capabilities(
    gives_log_probs=False,
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
"""It answers in this process, at once and for nothing; each kind replaces what it gives."""


@dataclass(frozen=True, kw_only=True)
class FittedSpec(BackendSpec):
    """What names a fitted estimator: its class, and what it has learnt."""

    key: str = field(default_factory=lambda: f"fitted-{uuid.uuid4().hex}")
    limit: RateLimit | None = None

    @property
    @abstractmethod
    def fitted(self) -> Any:
        """The estimator."""

    @property
    def identity(self) -> str:
        """What the estimator has learnt: two of a class may be fitted to other texts."""
        return f"{self.model} {joblib.hash(self.fitted)}"

    @property
    def model(self) -> str:
        """The estimator's class."""
        return type(self.fitted).__name__

    def check(self) -> None:
        """Accept everything: the estimator is fitted."""
