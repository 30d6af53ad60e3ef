"""The public names of :mod:`skllm_ray.models._base.tagger`."""

from skllm_ray.models._base.tagger import ExplainableNER

__all__ = ["ExplainableNER"]
