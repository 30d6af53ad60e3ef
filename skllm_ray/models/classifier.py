"""The public names of :mod:`skllm_ray.models._base.classifier`."""

from skllm_ray.models._base.classifier import LLMClassifier

__all__ = ["LLMClassifier"]
