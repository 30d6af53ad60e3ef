"""Parameters that several estimators share, as dataclasses.

The parameters of an estimator are the fields of its class, so that the `__init__` that `dataclass` writes does what
scikit-learn wants and nothing else: it assigns its arguments. `eq` and `repr` stay scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.label_names import LabelNames


@dataclass(eq=False, repr=False, kw_only=True)
class RequestParameters:
    """What every estimator has."""

    on_error: OnError = "raise"
    request_options: Mapping[str, Any] | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class TunedClassifierParameters:
    """What every classifier has."""

    on_error: OnError = "raise"
    label_descriptions: Mapping[Any, str] | None = None
    random_state: int | None = None
    request_options: Mapping[str, Any] | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ClassifierParameters(TunedClassifierParameters):
    """What every classifier has that is not tuned."""

    label_names: LabelNames = None
    label_prior: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class GPTTuningParameters:
    """What every estimator has that tunes a model of the GPT family."""

    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    deployment: str | None = None
    delete_data: bool = False
    poll_s: float = 15.0
    grace_s: float = 120.0


@dataclass(eq=False, repr=False, kw_only=True)
class VertexTuningParameters:
    """What every estimator has that tunes a Gemini model."""

    epoch_count: int | None = None
    adapter_size: int | None = None
    learning_rate_multiplier: float | None = None
    location: str | None = None
    bucket: str | None = None
    delete_data: bool = False
    poll_s: float = 15.0
    grace_s: float = 120.0
