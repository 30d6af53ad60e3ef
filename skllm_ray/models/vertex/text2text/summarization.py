"""Summaries, with the Vertex family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.text2text import Summarizer

__all__ = ["VertexSummarizer"]


@dataclass(eq=False, repr=False)
class VertexSummarizer(RequestParameters, Summarizer):
    """Summarize texts.

    Parameters
    ----------
    model : str, default="gemini-3.5-flash-lite"
        The Gemini model.
    max_words : int, default=15
        About the most words in a summary; the model is asked to keep to it.
    focus : str or None, default=None
        The subject that summaries should be about.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or None.
    request_options : mapping of str to object or None, default=None
        Extra fields of Vertex AI's ``GenerateContentConfig``, such as ``{"seed": 7}``.

    Examples
    --------
    >>> summarizer = VertexSummarizer(max_words=5, focus="price")
    >>> "about this subject, in at most 5 words: price" in summarizer.render_prompt(["Too dear."])[0]
    True
    """

    _family: ClassVar[str] = "vertex"

    model: str = DEFAULTS["vertex"].name
    max_words: int = 15
    focus: str | None = None
