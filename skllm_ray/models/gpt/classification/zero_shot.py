"""Zero-shot classifiers of the GPT family: OpenAI, Azure, custom URL, GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skllm_ray.llm.models import DEFAULTS
from skllm_ray.models.classifier import LLMClassifier, OnError, wrap_secret
from skllm_ray.models.multilabel import MultiLabelClassifier
from skllm_ray.prompts.templates import ZERO_SHOT_CLF_PROMPT_TEMPLATE, ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask

__all__ = ["MultiLabelZeroShotGPTClassifier", "ZeroShotGPTClassifier"]


class ZeroShotGPTClassifier(LLMClassifier):
    """Classify texts by the names of the labels alone.

    Parameters
    ----------
    model : str, default="gpt-5.4-mini"
        ``"gpt-…"`` (OpenAI), ``"azure::<deployment>"``, ``"custom_url::<name>"`` or ``"gguf::<name or path>"``.
    default_label : str, default="Random"
        What an invalid answer becomes; ``"Random"`` draws a label by its frequency in `y`.
    prompt_template : str or None, default=None
        A ``str.format`` string with ``{x}`` and ``{labels}``; None takes the library's own.
    key : str or None, default=None
        The API key; None takes ``SKLLMConfig``'s or the environment's.
    org : str or None, default=None
        The OpenAI organisation ID; None takes ``SKLLMConfig``'s.
    on_error : {"raise", "default", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError``, `default_label`, or None.
    label_descriptions : mapping of label to str or None, default=None
        What the labels mean; put into the prompt. Needed where labels are integers.
    random_state : int or None, default=None
        Seeds the draws of ``default_label="Random"``.
    request_options : mapping of str to object or None, default=None
        Extra request parameters for API backends, such as ``{"reasoning_effort": "low"}``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted, of the dtype of `y`.
    class_probabilities_ : ndarray of shape (n_classes,)
        Their frequencies in `y`.

    Examples
    --------
    >>> import skllm_ray
    >>> skllm_ray.init(local_mode=True)
    >>> clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative", "neutral"])
    >>> clf.predict(["I love it, works like a charm.", "Broke after two days. Terrible."]).tolist()
    ['positive', 'negative']
    >>> skllm_ray.shutdown()
    """

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

    def _task(self) -> ZeroShotTask:
        return ZeroShotTask(self._names(), self.prompt_template or ZERO_SHOT_CLF_PROMPT_TEMPLATE, self._descriptions())


class MultiLabelZeroShotGPTClassifier(MultiLabelClassifier):
    """Choose, for each text, any of the labels by their names alone.

    Parameters
    ----------
    model, default_label, prompt_template, key, org, on_error, label_descriptions, random_state, request_options
        As in :class:`ZeroShotGPTClassifier`; the template holds ``{x}``, ``{labels}`` and ``{max_cats}``.
    max_labels : int, default=5
        The largest number of labels for one text.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    class_probabilities_ : ndarray of shape (n_classes,)
        Their frequencies in `y`.

    Examples
    --------
    >>> import skllm_ray
    >>> skllm_ray.init(local_mode=True)
    >>> clf = MultiLabelZeroShotGPTClassifier(model="gguf::demo", max_labels=3)
    >>> clf.fit(None, [["delivery", "price", "quality"]]).predict(["The parcel came a week late."]).shape
    (1, 3)
    >>> skllm_ray.shutdown()
    """

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

    def _task(self) -> MultiLabelZeroShotTask:
        template = self.prompt_template or ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
        return MultiLabelZeroShotTask(self._names(), self.max_labels, template, self._descriptions())
