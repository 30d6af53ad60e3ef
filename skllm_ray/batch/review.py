"""The public names of :mod:`skllm_ray.batch.tools.review`."""

from skllm_ray.batch.tools.review import Corrections, correct, labelled_texts, review

__all__ = ["Corrections", "correct", "labelled_texts", "review"]
