"""Tuning jobs that are submitted once: what to tune, what became of it, where that is kept, and how it is submitted."""

from skllm_ray.errors import AmbiguousSubmission
from skllm_ray.llm.tuning.job import ServerJob, State, TuningJob
from skllm_ray.llm.tuning.spec import TuningSpec
from skllm_ray.llm.tuning.store import TuningStore
from skllm_ray.llm.tuning.submit import RefusedError, TuningService, submit

__all__ = [
    "AmbiguousSubmission",
    "RefusedError",
    "ServerJob",
    "State",
    "TuningJob",
    "TuningService",
    "TuningSpec",
    "TuningStore",
    "submit",
]
