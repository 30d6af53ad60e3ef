"""Summaries, with the GPT family."""

from __future__ import annotations

from dataclasses import dataclass

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.text2text import Summarizer

__all__ = ["GPTSummarizer"]


@dataclass(eq=False, repr=False)
class GPTSummarizer(RequestParameters, Summarizer):
    """Summarize texts.

    Parameters
    ----------
    model : str, default="gpt-5.4-mini"
        ``"gpt-…"`` (OpenAI), ``"azure::<deployment>"``, ``"custom_url::<name>"`` or ``"gguf::<name or path>"``.
    key : str or None, default=None
        The API key; None takes ``SKLLMConfig``'s or the environment's.
    org : str or None, default=None
        The OpenAI organisation ID; None takes ``SKLLMConfig``'s.
    max_words : int, default=15
        About the most words in a summary; the model is asked to keep to it.
    focus : str or None, default=None
        The subject that summaries should be about.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or None.
    request_options : mapping of str to object or None, default=None
        Extra request parameters for API backends, such as ``{"reasoning_effort": "low"}``.

    Examples
    --------
    >>> summarizer = GPTSummarizer(model="gguf::demo", max_words=5, focus="price")
    >>> "about this subject, in at most 5 words: price" in summarizer.render_prompt(["Too dear."])[0]
    True
    """

    model: str = DEFAULTS["gpt"].name
    key: str | None = None
    org: str | None = None
    max_words: int = 15
    focus: str | None = None
