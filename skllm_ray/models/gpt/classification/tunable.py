"""Classifiers of the GPT family that tune a model on labelled texts."""

from __future__ import annotations

from dataclasses import dataclass

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import GPTTuningParameters, TunedClassifierParameters
from skllm_ray.models._base.tunable import GPTTunable
from skllm_ray.models._base.tunable_classifier import TunableClassifier, TunableMultiLabelClassifier
from skllm_ray.prompts.templates import ZERO_SHOT_CLF_PROMPT_TEMPLATE, ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask

__all__ = ["GPTClassifier", "MultiLabelGPTClassifier"]


@dataclass(eq=False, repr=False)
class GPTClassifier(GPTTuningParameters, TunedClassifierParameters, GPTTunable, TunableClassifier):
    """Tune a model of the GPT family on labelled texts, and classify with it.

    ``fit`` submits one tuning job and waits for it; the same content is never submitted twice. ``submit_tuning``
    returns at once, and ``GPTClassifier.from_job(id)`` gives the fitted classifier later, in any process.

    Parameters
    ----------
    base_model : str, default="gpt-4.1-mini-2025-04-14"
        ``"gpt-…"`` (OpenAI, which takes no new jobs from 2027-01-06), ``"azure::<model>"``, or
        ``"custom_url::<model>"`` for any server with OpenAI's fine-tuning API.
    default_label, key, org, prompt_template, on_error, label_descriptions, random_state, request_options
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    n_epochs : int or None, default=None
        OpenAI's ``n_epochs``; None leaves it to the service.
    custom_suffix : str or None, default="skllm"
        Part of the tuned model's name (OpenAI's ``suffix``).
    batch_size : int or None, default=None
        OpenAI's ``batch_size``; None leaves it to the service.
    learning_rate_multiplier : float or None, default=None
        OpenAI's ``learning_rate_multiplier``; None leaves it to the service.
    deployment : str or None, default=None
        Azure: the deployment of the tuned model, which Azure needs before it predicts.
    delete_data : bool, default=False
        Whether the service's copy of the data set goes when the job has ended.
    poll_s : float, default=15.0
        The first pause between two looks at the job, in seconds; pauses grow to 300 s.
    grace_s : float, default=120.0
        How long to look for a job whose submission's outcome is unknown, in seconds.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    class_probabilities_ : ndarray of shape (n_classes,)
        Their frequencies in `y`.
    tuned_model_ : str
        The tuned model, with which the estimator predicts.
    tuning_job_id_ : str
        The service's ID of the tuning job.

    Examples
    --------
    >>> GPTClassifier(n_epochs=2).get_params()["n_epochs"]
    2
    """

    base_model: str = DEFAULTS["gpt_tunable"].name
    default_label: str = "Random"
    key: str | None = None
    org: str | None = None
    n_epochs: int | None = None
    custom_suffix: str | None = "skllm"
    prompt_template: str | None = None

    def _task(self) -> ZeroShotTask:
        return ZeroShotTask(self._names(), self.prompt_template or ZERO_SHOT_CLF_PROMPT_TEMPLATE, self._descriptions())


@dataclass(eq=False, repr=False)
class MultiLabelGPTClassifier(GPTTuningParameters, TunedClassifierParameters, GPTTunable, TunableMultiLabelClassifier):
    """Tune a model of the GPT family on texts with any number of labels, and classify with it.

    Parameters
    ----------
    base_model, default_label, key, org, n_epochs, custom_suffix, prompt_template, on_error, label_descriptions, \
    random_state, request_options, batch_size, learning_rate_multiplier, deployment, delete_data, poll_s, grace_s
        As in :class:`GPTClassifier`; the template holds ``{x}``, ``{labels}`` and ``{max_cats}``.
    max_labels : int, default=5
        The largest number of labels for one text.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    class_probabilities_ : ndarray of shape (n_classes,)
        Their frequencies in `y`.
    tuned_model_ : str
        The tuned model, with which the estimator predicts.
    tuning_job_id_ : str
        The service's ID of the tuning job.

    Examples
    --------
    >>> MultiLabelGPTClassifier(max_labels=3).max_labels
    3
    """

    base_model: str = DEFAULTS["gpt_tunable"].name
    default_label: str = "Random"
    key: str | None = None
    org: str | None = None
    n_epochs: int | None = None
    custom_suffix: str | None = "skllm"
    prompt_template: str | None = None
    max_labels: int = 5

    def _task(self) -> MultiLabelZeroShotTask:
        template = self.prompt_template or ZERO_SHOT_MLCLF_PROMPT_TEMPLATE
        return MultiLabelZeroShotTask(self._names(), self.max_labels, template, self._descriptions())
