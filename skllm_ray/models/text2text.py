"""The public names of :mod:`skllm_ray.models._base.text2text`."""

from skllm_ray.models._base.text2text import Summarizer, Translator

__all__ = ["Summarizer", "Translator"]
