"""Zero-shot classifiers of the Vertex family: Gemini models."""

from __future__ import annotations

from skllm_ray.models._base.cot import CoTClassifier, MultiLabelCoTClassifier
from skllm_ray.models.vertex.classification.base import MultiLabelVertex, SingleLabelVertex
from skllm_ray.prompts.templates import ZERO_SHOT_CLF_PROMPT_TEMPLATE, ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask

__all__ = [
    "CoTVertexClassifier",
    "MultiLabelCoTVertexClassifier",
    "MultiLabelZeroShotVertexClassifier",
    "ZeroShotVertexClassifier",
]


class ZeroShotVertexClassifier(SingleLabelVertex):
    """Classify texts by the names of the labels alone, with a Gemini model on Vertex AI.

    Credentials are Google's application default credentials; the project is ``SKLLMConfig.set_google_project``'s.

    Parameters
    ----------
    model : str, default="gemini-3.5-flash-lite"
        The Gemini model.
    default_label, prompt_template, on_error, label_descriptions, random_state, request_options
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    label_names, label_prior
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.

    Examples
    --------
    >>> ZeroShotVertexClassifier().fit(None, ["a", "b"]).classes_.tolist()
    ['a', 'b']
    """

    def _task(self) -> ZeroShotTask:
        template = self.prompt_template or ZERO_SHOT_CLF_PROMPT_TEMPLATE
        return ZeroShotTask(self._names(), template, self._descriptions(), prior=self._prior())


class MultiLabelZeroShotVertexClassifier(MultiLabelVertex):
    """Choose, for each text, any of the labels by their names alone, with a Gemini model on Vertex AI.

    Parameters
    ----------
    model : str, default="gemini-3.5-flash-lite"
        The Gemini model.
    default_label, prompt_template, on_error, label_descriptions, random_state, request_options
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    label_names
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    max_labels : int, default=5
        The largest number of labels for one text.

    Examples
    --------
    >>> MultiLabelZeroShotVertexClassifier().fit(None, [["a", "b"]]).classes_.tolist()
    ['a', 'b']
    """

    def _task(self) -> MultiLabelZeroShotTask:
        template = self.prompt_template or ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
        return MultiLabelZeroShotTask(self._names(), self.max_labels, template, self._descriptions())


class CoTVertexClassifier(CoTClassifier, SingleLabelVertex):
    """Classify texts by the labels' names, with an explanation that the model writes before it chooses.

    Parameters
    ----------
    model, default_label, prompt_template, on_error, label_descriptions, random_state, request_options
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    label_names
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.

    Examples
    --------
    >>> clf = CoTVertexClassifier().fit(None, ["good", "bad"])
    >>> "explain why" in clf.render_prompt(["Lovely."])[0]
    True
    """


class MultiLabelCoTVertexClassifier(MultiLabelCoTClassifier, MultiLabelVertex):
    """Choose any of the labels for each text, with an explanation that the model writes before it chooses.

    Parameters
    ----------
    model, default_label, max_labels, prompt_template, on_error, label_descriptions, random_state, request_options
        As in :class:`MultiLabelZeroShotVertexClassifier`.
    label_names
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.

    Examples
    --------
    >>> clf = MultiLabelCoTVertexClassifier(max_labels=2).fit(None, [["price", "quality"]])
    >>> "explain why" in clf.render_prompt(["Lovely."])[0]
    True
    """
