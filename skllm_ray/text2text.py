"""All estimators that turn one text into another."""

from skllm_ray.models.gpt.text2text.tunable import TunableGPTText2Text
from skllm_ray.models.vertex.text2text.tunable import TunableVertexText2Text

__all__ = ["TunableGPTText2Text", "TunableVertexText2Text"]
