"""Tuning jobs from Python: list them, wait for them, cancel them, take them in.

Estimators submit them (``GPTClassifier.submit_tuning`` and its like); this module is for whoever comes later, in any
process. ``skllm-ray tune`` offers the same on the command line.
"""

from skllm_ray.errors import AmbiguousSubmission
from skllm_ray.execution.tuning_jobs import (
    adopt,
    cancel,
    find_job,
    forget,
    get_job,
    list_jobs,
    resume_all,
    wait,
)
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.llm.tuning import TuningJob

__all__ = [
    "AmbiguousSubmission",
    "Polling",
    "TuningJob",
    "adopt",
    "cancel",
    "find_job",
    "forget",
    "get_job",
    "list_jobs",
    "resume_all",
    "wait",
]
