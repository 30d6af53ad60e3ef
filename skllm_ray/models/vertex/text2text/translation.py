"""Translations, with the Vertex family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.text2text import Translator

__all__ = ["VertexTranslator"]


@dataclass(eq=False, repr=False)
class VertexTranslator(RequestParameters, Translator):
    """Translate texts.

    Parameters
    ----------
    model : str, default="gemini-3.5-flash-lite"
        The Gemini model.
    output_language : str, default="English"
        The language to translate into.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or None.
    request_options : mapping of str to object or None, default=None
        Extra fields of Vertex AI's ``GenerateContentConfig``, such as ``{"seed": 7}``.

    Examples
    --------
    >>> translator = VertexTranslator(output_language="French")
    >>> "Translate the text into French." in translator.render_prompt(["Hello."])[0]
    True
    """

    _family: ClassVar[str] = "vertex"

    model: str = DEFAULTS["vertex"].name
    output_language: str = "English"
