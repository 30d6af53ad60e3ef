"""scikit-llm's scikit-learn API for language models, on a Ray cluster.

>>> from skllm_ray.classification import ZeroShotGPTClassifier
"""

from __future__ import annotations

from skllm_ray.execution.session import init, shutdown
from skllm_ray.trusted import trusted_types

__all__ = ["__version__", "init", "shutdown", "trusted_types"]

__version__ = "0.1.0"
