"""Tuning jobs: what to tune, what became of it, and where that is kept. `llm.submissions` submits each of them once."""

from skllm_ray.errors import AmbiguousSubmission
from skllm_ray.llm.tuning.job import ServerJob, State, TuningJob
from skllm_ray.llm.tuning.spec import TuningSpec
from skllm_ray.llm.tuning.store import TuningStore

__all__ = [
    "AmbiguousSubmission",
    "ServerJob",
    "State",
    "TuningJob",
    "TuningSpec",
    "TuningStore",
]
