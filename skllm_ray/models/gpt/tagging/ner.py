"""Named entities with reasons, found by the GPT family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.tagger import ExplainableNER

__all__ = ["GPTExplainableNER"]


@dataclass(eq=False, repr=False)
class GPTExplainableNER(RequestParameters, ExplainableNER):
    """Find named entities in texts, with the reason for each.

    Parameters
    ----------
    entities : mapping of str to str
        Each type's name and what it means.
    display_predictions : bool, default=False
        Whether ``transform`` also shows the texts with their entities, in Jupyter.
    sparse_output : bool, default=True
        Whether the model lists the entities, which is short, or repeats the whole text with the entities marked, which
        tells apart the places of words that occur more than once.
    model : str, default="gpt-5.4-mini"
        ``"gpt-…"`` (OpenAI), ``"azure::<deployment>"``, ``"custom_url::<name>"`` or ``"gguf::<name or path>"``.
    key : str or None, default=None
        The API key; None takes ``SKLLMConfig``'s or the environment's.
    org : str or None, default=None
        The OpenAI organisation ID; None takes ``SKLLMConfig``'s.
    num_workers : int, default=1
        Taken for scikit-llm's sake: above 1 it caps a call's requests in flight; 1 leaves it to the limits.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or None.
    request_options : mapping of str to object or None, default=None
        Extra request parameters for API backends, such as ``{"reasoning_effort": "low"}``.

    Examples
    --------
    >>> ner = GPTExplainableNER({"PERSON": "the name of a person"}, model="gguf::demo")
    >>> '- "PERSON": the name of a person' in ner.render_prompt(["Ann met Bob."])[0]
    True
    """

    entities: Mapping[str, str]
    display_predictions: bool = False
    sparse_output: bool = True
    model: str = DEFAULTS["gpt"].name
    key: str | None = None
    org: str | None = None
    num_workers: int = 1
