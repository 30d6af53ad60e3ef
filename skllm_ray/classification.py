"""All classifiers."""

from skllm_ray.models.cascade import CascadeClassifier
from skllm_ray.models.distilled import DistilledClassifier
from skllm_ray.models.gpt.classification.few_shot import (
    DynamicFewShotGPTClassifier,
    FewShotGPTClassifier,
    MultiLabelFewShotGPTClassifier,
)
from skllm_ray.models.gpt.classification.tunable import GPTClassifier as TunableGPTClassifier
from skllm_ray.models.gpt.classification.tunable import MultiLabelGPTClassifier
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
from skllm_ray.models.vertex.classification.tunable import VertexClassifier as TunableVertexClassifier
from skllm_ray.models.vertex.classification.zero_shot import (
    CoTVertexClassifier,
    MultiLabelCoTVertexClassifier,
    MultiLabelZeroShotVertexClassifier,
    ZeroShotVertexClassifier,
)

GPTClassifier = TunableGPTClassifier
VertexClassifier = TunableVertexClassifier

__all__ = [
    "CascadeClassifier",
    "CoTGPTClassifier",
    "CoTVertexClassifier",
    "DistilledClassifier",
    "DynamicFewShotGPTClassifier",
    "DynamicFewShotVertexClassifier",
    "FewShotGPTClassifier",
    "FewShotVertexClassifier",
    "GPTClassifier",
    "MultiLabelCoTGPTClassifier",
    "MultiLabelCoTVertexClassifier",
    "MultiLabelFewShotGPTClassifier",
    "MultiLabelFewShotVertexClassifier",
    "MultiLabelGPTClassifier",
    "MultiLabelZeroShotGPTClassifier",
    "MultiLabelZeroShotVertexClassifier",
    "TunableGPTClassifier",
    "TunableVertexClassifier",
    "VertexClassifier",
    "ZeroShotGPTClassifier",
    "ZeroShotVertexClassifier",
]
