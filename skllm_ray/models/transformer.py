"""The public names of :mod:`skllm_ray.models._base.transformer`."""

from skllm_ray.models._base.transformer import TextToText, TextTransformer

__all__ = ["TextToText", "TextTransformer"]
