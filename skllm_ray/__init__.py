"""scikit-llm's scikit-learn API for language models, on a Ray cluster.

>>> from skllm_ray.classification import ZeroShotGPTClassifier
"""

from __future__ import annotations

from skllm_ray.execution.session import init, shutdown

__all__ = ["__version__", "init", "shutdown"]

__version__ = "0.1.0"
