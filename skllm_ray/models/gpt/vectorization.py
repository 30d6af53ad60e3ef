"""Vectors of texts, with the GPT family."""

from __future__ import annotations

from dataclasses import dataclass

from skllm_ray.llm.model_facts import DEFAULTS
from skllm_ray.models._base.parameters import RequestParameters
from skllm_ray.models._base.vectorizer import LLMVectorizer

__all__ = ["GPTVectorizer"]


@dataclass(eq=False, repr=False)
class GPTVectorizer(RequestParameters, LLMVectorizer):
    """Turn texts into the vectors of an embedding model.

    Parameters
    ----------
    model : str, default="text-embedding-3-small"
        An embedding model of OpenAI, ``"azure::<deployment>"``, ``"custom_url::<name>"`` or any
        ``"gguf::<name or path>"``.
    batch_size : int, default=1
        Taken for scikit-llm's sake: texts always go to the model in large batches.
    key : str or None, default=None
        The API key; None takes ``SKLLMConfig``'s or the environment's.
    org : str or None, default=None
        The OpenAI organisation ID; None takes ``SKLLMConfig``'s.
    on_error : {"raise", "coerce"}, default="raise"
        What becomes of rows that fail, after all rows were tried: ``PartialResultError`` or NaN.
    request_options : mapping of str to object or None, default=None
        Extra request parameters for API backends, such as ``{"dimensions": 256}``.

    Attributes
    ----------
    n_features_out_ : int
        The vectors' length, after the first ``transform``.

    Examples
    --------
    >>> import skllm_ray
    >>> skllm_ray.init(local_mode=True)
    >>> GPTVectorizer(model="gguf::demo").fit_transform(["good", "bad"]).shape[0]
    2
    >>> skllm_ray.shutdown()
    """

    model: str = DEFAULTS["gpt embedding"].name
    batch_size: int = 1
    key: str | None = None
    org: str | None = None
