"""Structured extraction with the GPT family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.extraction import Extractor
from skllm_ray.models._base.parameters import RequestParameters

__all__ = ["GPTExtractor"]


@dataclass(eq=False, repr=False)
class GPTExtractor(RequestParameters, Extractor):
    """Extract the fields of a pydantic model from texts, a column for each.

    Parameters
    ----------
    schema : subclass of pydantic.BaseModel
        The fields, their types and, in ``Field(description=…)``, what they mean.
    model : str, default="gpt-5.4-mini"
        ``"gpt-…"`` (OpenAI), ``"azure::<deployment>"``, ``"custom_url::<name>"`` or ``"gguf::<name or path>"``.
    prompt_template : str or None, default=None
        A ``str.format`` string with ``{x}`` and ``{schema}``; None takes the library's own.
    key : str or None, default=None
        The API key; None takes ``SKLLMConfig``'s or the environment's.
    org : str or None, default=None
        The OpenAI organisation ID; None takes ``SKLLMConfig``'s.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or None in every column.
    request_options : mapping of str to object or None, default=None
        Extra request parameters for API backends, such as ``{"reasoning_effort": "low"}``.

    Examples
    --------
    >>> from pydantic import BaseModel
    >>> class Order(BaseModel):
    ...     item: str
    ...     quantity: int
    >>> GPTExtractor(Order, model="gguf::demo").fit().get_feature_names_out().tolist()
    ['item', 'quantity']
    """

    schema: type[Any]
    model: str = DEFAULTS["gpt"].name
    prompt_template: str | None = None
    key: str | None = None
    org: str | None = None
