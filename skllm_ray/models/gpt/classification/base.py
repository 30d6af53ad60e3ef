"""The parameters that the classifiers of the GPT family share."""

from __future__ import annotations

from dataclasses import dataclass

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.multilabel import MultiLabelClassifier
from skllm_ray.models._base.parameters import ClassifierParameters


@dataclass(eq=False, repr=False)
class SingleLabelGPT(ClassifierParameters, LLMClassifier):
    """A classifier of the GPT family that gives each text one label."""

    model: str = DEFAULTS["gpt"].name
    default_label: str = "Random"
    prompt_template: str | None = None
    key: str | None = None
    org: str | None = None


@dataclass(eq=False, repr=False)
class MultiLabelGPT(ClassifierParameters, MultiLabelClassifier):
    """A classifier of the GPT family that gives each text any number of labels."""

    model: str = DEFAULTS["gpt"].name
    default_label: str = "Random"
    max_labels: int = 5
    prompt_template: str | None = None
    key: str | None = None
    org: str | None = None
