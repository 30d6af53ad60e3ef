"""Vectors of texts, with the Vertex family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.vectorizer import LLMVectorizer

__all__ = ["VertexVectorizer"]


@dataclass(eq=False, repr=False)
class VertexVectorizer(RequestParameters, LLMVectorizer):
    """Turn texts into the vectors of an embedding model.

    Parameters
    ----------
    model : str, default="gemini-embedding-001"
        An embedding model of Vertex AI.
    batch_size : int, default=1
        Taken for likeness with ``GPTVectorizer``: many requests are always in flight.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or NaN.
    request_options : mapping of str to object or None, default=None
        Extra fields of Vertex AI's ``EmbedContentConfig``, such as ``{"output_dimensionality": 256}`` or
        ``{"task_type": "CLASSIFICATION"}``.

    Attributes
    ----------
    n_features_out_ : int
        The vectors' length, after the first ``transform``.

    Examples
    --------
    >>> VertexVectorizer().get_params()["model"]
    'gemini-embedding-001'
    """

    _family: ClassVar[str] = "vertex"

    model: str = DEFAULTS["vertex embedding"].name
    batch_size: int = 1
