"""All estimators that turn one text into another."""

from skllm_ray.models.gpt.text2text.summarization import GPTSummarizer
from skllm_ray.models.gpt.text2text.translation import GPTTranslator
from skllm_ray.models.gpt.text2text.tunable import TunableGPTText2Text
from skllm_ray.models.vertex.text2text.summarization import VertexSummarizer
from skllm_ray.models.vertex.text2text.translation import VertexTranslator
from skllm_ray.models.vertex.text2text.tunable import TunableVertexText2Text

__all__ = [
    "GPTSummarizer",
    "GPTTranslator",
    "TunableGPTText2Text",
    "TunableVertexText2Text",
    "VertexSummarizer",
    "VertexTranslator",
]
