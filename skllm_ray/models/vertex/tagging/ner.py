"""Named entities with reasons, found by the Vertex family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.tagger import ExplainableNER

__all__ = ["VertexExplainableNER"]


@dataclass(eq=False, repr=False)
class VertexExplainableNER(RequestParameters, ExplainableNER):
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
    model : str, default="gemini-3.5-flash-lite"
        The Gemini model.
    num_workers : int, default=1
        Taken for ``GPTExplainableNER``'s sake: above 1 it caps a call's requests in flight; 1 leaves it to the limits.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or None.
    request_options : mapping of str to object or None, default=None
        Extra fields of Vertex AI's ``GenerateContentConfig``, such as ``{"seed": 7}``.

    Examples
    --------
    >>> ner = VertexExplainableNER({"PERSON": "the name of a person"})
    >>> '- "PERSON": the name of a person' in ner.render_prompt(["Ann met Bob."])[0]
    True
    """

    _family: ClassVar[str] = "vertex"

    entities: Mapping[str, str]
    display_predictions: bool = False
    sparse_output: bool = True
    model: str = DEFAULTS["vertex"].name
    num_workers: int = 1
