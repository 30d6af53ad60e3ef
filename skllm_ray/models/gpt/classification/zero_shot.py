"""Zero-shot classifiers of the GPT family: OpenAI, Azure, custom URL, GGUF."""

from __future__ import annotations

from skllm_ray.models._base.cot import CoTClassifier, MultiLabelCoTClassifier
from skllm_ray.models.gpt.classification.base import MultiLabelGPT, SingleLabelGPT
from skllm_ray.prompts.templates import ZERO_SHOT_CLF_PROMPT_TEMPLATE, ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask

__all__ = [
    "CoTGPTClassifier",
    "MultiLabelCoTGPTClassifier",
    "MultiLabelZeroShotGPTClassifier",
    "ZeroShotGPTClassifier",
]


class ZeroShotGPTClassifier(SingleLabelGPT):
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
        What the labels mean; put into the prompt.
    random_state : int or None, default=None
        Seeds the draws of ``default_label="Random"``.
    request_options : mapping of str to object or None, default=None
        Extra request parameters for API backends, such as ``{"reasoning_effort": "low"}``.
    label_names : list of str, mapping of label to str, or None, default=None
        The names of labels that are integers, in their order or by label: `y` and the predictions hold the integers,
        the prompt the names. With the sorted labels, scikit-learn's meta-estimators can encode `y`. A `y` of the names
        themselves is taken, too.
    label_prior : {"uniform"} or None, default=None
        "uniform" takes the labels' prior out: how likely the model finds each label whatever the text is. It is each
        label's mean log-probability, over up to 200 of the texts given to `fit` (chosen by `random_state`), where there
        are 20 or more, as in batch calibration [2]_, else over texts without content, as in contextual calibration
        [1]_. It is subtracted from the scores, so that labels are taken to be about equally frequent. It is asked for
        at the first call, once, and costs as many requests.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted, of the dtype of `y`.
    class_probabilities_ : ndarray of shape (n_classes,)
        Their frequencies in `y`.
    prior_texts_ : tuple of str
        The texts that the labels' prior is estimated from; with `label_prior` alone.
    label_prior_ : ndarray of shape (n_classes,)
        The prior that is taken out, as probabilities; with `label_prior`, after the first call.

    References
    ----------
    .. [1] Zhao, Wallace, Feng, Klein, Singh: Calibrate Before Use: Improving Few-Shot Performance of Language Models.
       ICML 2021.
    .. [2] Zhou, Wan, Proleev, Mincu, Chen, Heller, Roy: Batch Calibration: Rethinking Calibration for In-Context
       Learning and Prompt Engineering. ICLR 2024 (arXiv 2309.17249, 2023).

    Examples
    --------
    >>> import skllm_ray
    >>> skllm_ray.init(local_mode=True)
    >>> clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative", "neutral"])
    >>> clf.predict(["I love it, works like a charm.", "Broke after two days. Terrible."]).tolist()
    ['positive', 'negative']
    >>> skllm_ray.shutdown()
    """

    def _task(self) -> ZeroShotTask:
        template = self.prompt_template or ZERO_SHOT_CLF_PROMPT_TEMPLATE
        return ZeroShotTask(self._names(), template, self._descriptions(), prior=self._prior())


class MultiLabelZeroShotGPTClassifier(MultiLabelGPT):
    """Choose, for each text, any of the labels by their names alone.

    Parameters
    ----------
    model, default_label, prompt_template, key, org, on_error, label_descriptions, random_state, request_options
        As in :class:`ZeroShotGPTClassifier`; the template holds ``{x}``, ``{labels}`` and ``{max_cats}``.
    label_names : list of str or None, default=None
        The names of the columns of an indicator array `y`, such as ``MultiLabelBinarizer`` makes.
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

    def _task(self) -> MultiLabelZeroShotTask:
        template = self.prompt_template or ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
        return MultiLabelZeroShotTask(self._names(), self.max_labels, template, self._descriptions())


class CoTGPTClassifier(CoTClassifier, SingleLabelGPT):
    """Classify texts by the labels' names, with an explanation that the model writes before it chooses.

    Parameters
    ----------
    model, default_label, prompt_template, key, org, on_error, label_descriptions, random_state, request_options
        As in :class:`ZeroShotGPTClassifier`.
    label_names
        As in :class:`ZeroShotGPTClassifier`.

    Examples
    --------
    >>> clf = CoTGPTClassifier(model="gguf::demo").fit(None, ["good", "bad"])
    >>> "explain why" in clf.render_prompt(["Lovely."])[0]
    True
    """


class MultiLabelCoTGPTClassifier(MultiLabelCoTClassifier, MultiLabelGPT):
    """Choose any of the labels for each text, with an explanation that the model writes before it chooses.

    Parameters
    ----------
    model, default_label, max_labels, prompt_template, key, org
        As in :class:`MultiLabelZeroShotGPTClassifier`.
    on_error, label_descriptions, random_state, request_options
        As in :class:`ZeroShotGPTClassifier`.
    label_names
        As in :class:`ZeroShotGPTClassifier`.

    Examples
    --------
    >>> clf = MultiLabelCoTGPTClassifier(model="gguf::demo", max_labels=2).fit(None, [["price", "quality"]])
    >>> "explain why" in clf.render_prompt(["Lovely."])[0]
    True
    """
