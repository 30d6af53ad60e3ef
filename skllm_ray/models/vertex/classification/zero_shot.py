"""Zero-shot classifiers of the Vertex family: Gemini models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from skllm_ray.llm.models import DEFAULTS
from skllm_ray.models.classifier import LLMClassifier, OnError
from skllm_ray.models.multilabel import MultiLabelClassifier
from skllm_ray.prompts.templates import ZERO_SHOT_CLF_PROMPT_TEMPLATE, ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask

__all__ = ["MultiLabelZeroShotVertexClassifier", "ZeroShotVertexClassifier"]


class ZeroShotVertexClassifier(LLMClassifier):
    """Classify texts by the names of the labels alone, with a Gemini model on Vertex AI.

    Credentials are Google's application default credentials; the project is ``SKLLMConfig.set_google_project``'s.

    Parameters
    ----------
    model : str, default="gemini-3.5-flash-lite"
        The Gemini model.
    default_label, prompt_template, on_error, label_descriptions, random_state, request_options
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.

    Examples
    --------
    >>> ZeroShotVertexClassifier().fit(None, ["a", "b"]).classes_.tolist()
    ['a', 'b']
    """

    _family: ClassVar[str] = "vertex"

    def __init__(
        self,
        model: str = DEFAULTS["vertex"].name,
        default_label: str = "Random",
        prompt_template: str | None = None,
        *,
        on_error: OnError = "raise",
        label_descriptions: Mapping[Any, str] | None = None,
        random_state: int | None = None,
        request_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.default_label = default_label
        self.prompt_template = prompt_template
        self.on_error = on_error
        self.label_descriptions = label_descriptions
        self.random_state = random_state
        self.request_options = request_options

    def _task(self) -> ZeroShotTask:
        return ZeroShotTask(self._names(), self.prompt_template or ZERO_SHOT_CLF_PROMPT_TEMPLATE, self._descriptions())


class MultiLabelZeroShotVertexClassifier(MultiLabelClassifier):
    """Choose, for each text, any of the labels by their names alone, with a Gemini model on Vertex AI.

    Parameters
    ----------
    model : str, default="gemini-3.5-flash-lite"
        The Gemini model.
    default_label, prompt_template, on_error, label_descriptions, random_state, request_options
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    max_labels : int, default=5
        The largest number of labels for one text.

    Examples
    --------
    >>> MultiLabelZeroShotVertexClassifier().fit(None, [["a", "b"]]).classes_.tolist()
    ['a', 'b']
    """

    _family: ClassVar[str] = "vertex"

    def __init__(
        self,
        model: str = DEFAULTS["vertex"].name,
        default_label: str = "Random",
        max_labels: int = 5,
        prompt_template: str | None = None,
        *,
        on_error: OnError = "raise",
        label_descriptions: Mapping[Any, str] | None = None,
        random_state: int | None = None,
        request_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.default_label = default_label
        self.max_labels = max_labels
        self.prompt_template = prompt_template
        self.on_error = on_error
        self.label_descriptions = label_descriptions
        self.random_state = random_state
        self.request_options = request_options

    def _task(self) -> MultiLabelZeroShotTask:
        template = self.prompt_template or ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
        return MultiLabelZeroShotTask(self._names(), self.max_labels, template, self._descriptions())
