"""Structured extraction with the Vertex family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.extraction import Extractor
from skllm_ray.models._base.parameters import RequestParameters

__all__ = ["VertexExtractor"]


@dataclass(eq=False, repr=False)
class VertexExtractor(RequestParameters, Extractor):
    """Extract the fields of a pydantic model from texts, a column for each.

    Parameters
    ----------
    schema : subclass of pydantic.BaseModel
        The fields, their types and, in ``Field(description=…)``, what they mean.
    model : str, default="gemini-3.5-flash-lite"
        The Gemini model.
    prompt_template : str or None, default=None
        A ``str.format`` string with ``{x}`` and ``{schema}``; None takes the library's own.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or None in every column.
    request_options : mapping of str to object or None, default=None
        Extra fields of Vertex AI's ``GenerateContentConfig``, such as ``{"seed": 7}``.

    Examples
    --------
    >>> from pydantic import BaseModel
    >>> class Order(BaseModel):
    ...     item: str
    ...     quantity: int
    >>> VertexExtractor(Order).fit().get_feature_names_out().tolist()
    ['item', 'quantity']
    """

    _family: ClassVar[str] = "vertex"

    schema: type[Any]
    model: str = DEFAULTS["vertex"].name
    prompt_template: str | None = None
