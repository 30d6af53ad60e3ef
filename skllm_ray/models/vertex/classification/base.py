"""The parameters that the classifiers of the Vertex family share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.multilabel import MultiLabelClassifier
from skllm_ray.models._base.parameters import ClassifierParameters


@dataclass(eq=False, repr=False)
class SingleLabelVertex(ClassifierParameters, LLMClassifier):
    """A classifier of the Vertex family that gives each text one label."""

    _family: ClassVar[str] = "vertex"

    model: str = DEFAULTS["vertex"].name
    default_label: str = "Random"
    prompt_template: str | None = None


@dataclass(eq=False, repr=False)
class MultiLabelVertex(ClassifierParameters, MultiLabelClassifier):
    """A classifier of the Vertex family that gives each text any number of labels."""

    _family: ClassVar[str] = "vertex"

    model: str = DEFAULTS["vertex"].name
    default_label: str = "Random"
    max_labels: int = 5
    prompt_template: str | None = None
