"""All classifiers."""

from skllm_ray.models.gpt.classification.few_shot import (
    DynamicFewShotGPTClassifier,
    FewShotGPTClassifier,
    MultiLabelFewShotGPTClassifier,
)
from skllm_ray.models.gpt.classification.zero_shot import (
    CoTGPTClassifier,
    MultiLabelCoTGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.models.vertex.classification.few_shot import (
    DynamicFewShotVertexClassifier,
    FewShotVertexClassifier,
    MultiLabelFewShotVertexClassifier,
)
from skllm_ray.models.vertex.classification.zero_shot import (
    CoTVertexClassifier,
    MultiLabelCoTVertexClassifier,
    MultiLabelZeroShotVertexClassifier,
    ZeroShotVertexClassifier,
)

__all__ = [
    "CoTGPTClassifier",
    "CoTVertexClassifier",
    "DynamicFewShotGPTClassifier",
    "DynamicFewShotVertexClassifier",
    "FewShotGPTClassifier",
    "FewShotVertexClassifier",
    "MultiLabelCoTGPTClassifier",
    "MultiLabelCoTVertexClassifier",
    "MultiLabelFewShotGPTClassifier",
    "MultiLabelFewShotVertexClassifier",
    "MultiLabelZeroShotGPTClassifier",
    "MultiLabelZeroShotVertexClassifier",
    "ZeroShotGPTClassifier",
    "ZeroShotVertexClassifier",
]
