"""All estimators that turn one text into another."""

from skllm_ray.models.gpt.text2text.summarization import GPTSummarizer
from skllm_ray.models.gpt.text2text.translation import GPTTranslator
from skllm_ray.models.vertex.text2text.summarization import VertexSummarizer
from skllm_ray.models.vertex.text2text.translation import VertexTranslator

__all__ = ["GPTSummarizer", "GPTTranslator", "VertexSummarizer", "VertexTranslator"]
