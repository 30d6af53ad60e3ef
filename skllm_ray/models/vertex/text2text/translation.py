"""Translations, with the Vertex family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.text2text import Translator

__all__ = ["VertexTranslator"]


class VertexTranslator(Translator):
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

    def __init__(
        self,
        model: str = DEFAULTS["vertex"].name,
        output_language: str = "English",
        *,
        on_error: OnError = "raise",
        request_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.output_language = output_language
        self.on_error = on_error
        self.request_options = request_options
