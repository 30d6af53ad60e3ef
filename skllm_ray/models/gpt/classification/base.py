"""The parameters that the classifiers of the GPT family share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.estimator import OnError, wrap_secret
from skllm_ray.models._base.label_names import LabelNames
from skllm_ray.models._base.multilabel import MultiLabelClassifier


class SingleLabelGPT(LLMClassifier):
    """A classifier of the GPT family that gives each text one label."""

    def __init__(
        self,
        model: str = DEFAULTS["gpt"].name,
        default_label: str = "Random",
        prompt_template: str | None = None,
        key: str | None = None,
        org: str | None = None,
        *,
        on_error: OnError = "raise",
        label_descriptions: Mapping[Any, str] | None = None,
        random_state: int | None = None,
        request_options: Mapping[str, Any] | None = None,
        label_names: LabelNames = None,
        label_prior: str | None = None,
    ) -> None:
        self.model = model
        self.default_label = default_label
        self.prompt_template = prompt_template
        self.key = wrap_secret(key)
        self.org = org
        self.on_error = on_error
        self.label_descriptions = label_descriptions
        self.random_state = random_state
        self.request_options = request_options
        self.label_names = label_names
        self.label_prior = label_prior


class MultiLabelGPT(MultiLabelClassifier):
    """A classifier of the GPT family that gives each text any number of labels."""

    def __init__(
        self,
        model: str = DEFAULTS["gpt"].name,
        default_label: str = "Random",
        max_labels: int = 5,
        prompt_template: str | None = None,
        key: str | None = None,
        org: str | None = None,
        *,
        on_error: OnError = "raise",
        label_descriptions: Mapping[Any, str] | None = None,
        random_state: int | None = None,
        request_options: Mapping[str, Any] | None = None,
        label_names: LabelNames = None,
        label_prior: str | None = None,
    ) -> None:
        self.model = model
        self.default_label = default_label
        self.max_labels = max_labels
        self.prompt_template = prompt_template
        self.key = wrap_secret(key)
        self.org = org
        self.on_error = on_error
        self.label_descriptions = label_descriptions
        self.random_state = random_state
        self.request_options = request_options
        self.label_names = label_names
        self.label_prior = label_prior
