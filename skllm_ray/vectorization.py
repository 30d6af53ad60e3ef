"""All vectorizers."""

from skllm_ray.models.gpt.vectorization import GPTVectorizer
from skllm_ray.models.vertex.vectorization import VertexVectorizer

__all__ = ["GPTVectorizer", "VertexVectorizer"]
