"""Translations, with the GPT family."""

from __future__ import annotations

from dataclasses import dataclass

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.text2text import Translator

__all__ = ["GPTTranslator"]


@dataclass(eq=False, repr=False)
class GPTTranslator(RequestParameters, Translator):
    """Translate texts.

    Parameters
    ----------
    model : str, default="gpt-5.4-mini"
        ``"gpt-…"`` (OpenAI), ``"azure::<deployment>"``, ``"custom_url::<name>"`` or ``"gguf::<name or path>"``.
    key : str or None, default=None
        The API key; None takes ``SKLLMConfig``'s or the environment's.
    org : str or None, default=None
        The OpenAI organisation ID; None takes ``SKLLMConfig``'s.
    output_language : str, default="English"
        The language to translate into.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or None.
    request_options : mapping of str to object or None, default=None
        Extra request parameters for API backends, such as ``{"reasoning_effort": "low"}``.

    Examples
    --------
    >>> translator = GPTTranslator(model="gguf::demo", output_language="French")
    >>> "Translate the text into French." in translator.render_prompt(["Hello."])[0]
    True
    """

    model: str = DEFAULTS["gpt"].name
    key: str | None = None
    org: str | None = None
    output_language: str = "English"
