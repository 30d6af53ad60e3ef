"""The public names of :mod:`skllm_ray.models._base.estimator`."""

from skllm_ray.models._base.constraints import at_least_one
from skllm_ray.models._base.estimator import LLMEstimator, OnError, wrap_secret
from skllm_ray.models._base.reading import Process

__all__ = ["LLMEstimator", "OnError", "Process", "at_least_one", "wrap_secret"]
