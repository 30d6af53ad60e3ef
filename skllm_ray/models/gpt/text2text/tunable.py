"""Text to text with a tuned model of the GPT family."""

from __future__ import annotations

from dataclasses import dataclass

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import GPTTuningParameters, RequestParameters
from skllm_ray.models._base.tunable import GPTTunable
from skllm_ray.models._base.tunable_text import TunableText2Text

__all__ = ["TunableGPTText2Text"]


@dataclass(eq=False, repr=False)
class TunableGPTText2Text(GPTTuningParameters, RequestParameters, GPTTunable, TunableText2Text):  # type: ignore[misc]  # fit needs y
    """Tune a model of the GPT family on pairs of texts, and turn texts into others with it.

    Parameters
    ----------
    base_model : str, default="gpt-4.1-mini-2025-04-14"
        ``"gpt-…"`` (OpenAI, which takes no new jobs from 2027-01-06), ``"azure::<model>"``, or
        ``"custom_url::<model>"`` for any server with OpenAI's fine-tuning API.
    key, org, request_options
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    n_epochs : int or None, default=None
        OpenAI's ``n_epochs``; None leaves it to the service.
    custom_suffix : str or None, default="skllm"
        Part of the tuned model's name (OpenAI's ``suffix``).
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError``, or None.
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
    tuned_model_ : str
        The tuned model, with which the estimator predicts.
    tuning_job_id_ : str
        The service's ID of the tuning job.

    Examples
    --------
    >>> TunableGPTText2Text(custom_suffix="short").custom_suffix
    'short'
    """

    base_model: str = DEFAULTS["gpt_tunable"].name
    key: str | None = None
    org: str | None = None
    n_epochs: int | None = None
    custom_suffix: str | None = "skllm"
