"""Loaded models of this process, or, through Ray, of the cluster: scikit-llm's ``ModelCache``."""

from __future__ import annotations

from skllm_ray.llm.gpt.clients.llama_cpp.catalog import supported_models
from skllm_ray.llm.open_models import Freed, ModelCache, ModelStore

__all__ = ["Freed", "ModelCache", "ModelStore", "supported_models"]
