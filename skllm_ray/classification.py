"""All classifiers."""

from skllm_ray.models.gpt.classification.zero_shot import MultiLabelZeroShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.models.vertex.classification.zero_shot import (
    MultiLabelZeroShotVertexClassifier,
    ZeroShotVertexClassifier,
)

__all__ = [
    "MultiLabelZeroShotGPTClassifier",
    "MultiLabelZeroShotVertexClassifier",
    "ZeroShotGPTClassifier",
    "ZeroShotVertexClassifier",
]
