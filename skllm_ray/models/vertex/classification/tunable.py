"""Classifiers of the Vertex family that tune a model on labelled texts."""

from __future__ import annotations

from dataclasses import dataclass, field

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import TunedClassifierParameters, VertexTuningParameters
from skllm_ray.models._base.tunable import VertexTunable
from skllm_ray.models._base.tunable_classifier import TunableClassifier
from skllm_ray.prompts.templates import ZERO_SHOT_CLF_PROMPT_TEMPLATE
from skllm_ray.tasks.classification import ZeroShotTask

__all__ = ["VertexClassifier"]


@dataclass(eq=False, repr=False)
class VertexClassifier(VertexTuningParameters, TunedClassifierParameters, VertexTunable, TunableClassifier):
    """Tune a Gemini model on labelled texts, and classify with its endpoint.

    ``fit`` submits one tuning job and waits for it; the same content is never submitted twice. ``submit_tuning``
    returns at once, and ``VertexClassifier.from_job(id)`` gives the fitted classifier later, in any process.

    Parameters
    ----------
    base_model : str, default="gemini-3.5-flash-lite"
        The Gemini model to tune.
    n_update_steps : int, default=1
        scikit-llm's name. Gemini knows no steps: it is taken as the number of epochs.
    default_label, prompt_template, on_error, label_descriptions, random_state, request_options
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    epoch_count : int or None, default=None
        Vertex AI's ``epochCount``; None takes `n_update_steps`.
    adapter_size : {1, 2, 4, 8, 16, 32} or None, default=None
        Vertex AI's ``adapterSize``; None leaves it to the service.
    learning_rate_multiplier : float or None, default=None
        Vertex AI's ``learningRateMultiplier``; None leaves it to the service.
    location : str or None, default=None
        The region; None takes ``SKLLMConfig``'s.
    bucket : str or None, default=None
        The bucket for the data set; None takes ``SKLLMConfig``'s.
    delete_data : bool, default=False
        Whether the data set is removed from the bucket when the job has ended.
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
    >>> VertexClassifier(adapter_size=4).get_params()["adapter_size"]
    4
    """

    base_model: str = DEFAULTS["vertex_tunable"].name
    n_update_steps: int = 1
    default_label: str = "Random"
    prompt_template: str | None = field(default=None, kw_only=True)

    def _task(self) -> ZeroShotTask:
        return ZeroShotTask(self._names(), self.prompt_template or ZERO_SHOT_CLF_PROMPT_TEMPLATE, self._descriptions())
