"""All classifiers."""

from skllm_ray.models.gpt.classification.tunable import GPTClassifier as TunableGPTClassifier
from skllm_ray.models.gpt.classification.tunable import MultiLabelGPTClassifier
from skllm_ray.models.gpt.classification.zero_shot import MultiLabelZeroShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.models.vertex.classification.tunable import VertexClassifier as TunableVertexClassifier
from skllm_ray.models.vertex.classification.zero_shot import (
    MultiLabelZeroShotVertexClassifier,
    ZeroShotVertexClassifier,
)

GPTClassifier = TunableGPTClassifier
VertexClassifier = TunableVertexClassifier

__all__ = [
    "GPTClassifier",
    "MultiLabelGPTClassifier",
    "MultiLabelZeroShotGPTClassifier",
    "MultiLabelZeroShotVertexClassifier",
    "TunableGPTClassifier",
    "TunableVertexClassifier",
    "VertexClassifier",
    "ZeroShotGPTClassifier",
    "ZeroShotVertexClassifier",
]
