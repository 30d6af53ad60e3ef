"""Text to text with a tuned Gemini model."""

from __future__ import annotations

from dataclasses import dataclass

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters, VertexTuningParameters
from skllm_ray.models._base.tunable import VertexTunable
from skllm_ray.models._base.tunable_text import TunableText2Text

__all__ = ["TunableVertexText2Text"]


@dataclass(eq=False, repr=False)
class TunableVertexText2Text(VertexTuningParameters, RequestParameters, VertexTunable, TunableText2Text):  # type: ignore[misc]  # fit needs y
    """Tune a Gemini model on pairs of texts, and turn texts into others with its endpoint.

    Parameters
    ----------
    base_model : str, default="gemini-3.5-flash-lite"
        The Gemini model to tune.
    n_update_steps : int, default=1
        scikit-llm's name. Gemini knows no steps: it is taken as the number of epochs.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError``, or None.
    request_options : mapping of str to object or None, default=None
        Extra fields of Gemini's ``GenerateContentConfig``.
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
    tuned_model_ : str
        The tuned model, with which the estimator predicts.
    tuning_job_id_ : str
        The service's ID of the tuning job.

    Examples
    --------
    >>> TunableVertexText2Text().n_update_steps
    1
    """

    base_model: str = DEFAULTS["vertex_tunable"].name
    n_update_steps: int = 1
