"""Indexes of vectors, which dynamic few-shot finds its examples in."""

from skllm_ray.memory._sklearn_nn import SklearnMemoryIndex
from skllm_ray.memory.base import IndexConstructor, MemoryIndex

__all__ = ["IndexConstructor", "MemoryIndex", "SklearnMemoryIndex"]
