"""All estimators, each with arguments that let it be made, for tests that hold for all of them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from skllm_ray import classification, text2text, vectorization
from skllm_ray.models.gpt.extraction import GPTExtractor
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.models.vertex.extraction import VertexExtractor
from skllm_ray.models.vertex.tagging.ner import VertexExplainableNER


class Order(BaseModel):
    """What the extractors extract."""

    item: str
    quantity: int = 1


CLASSIFIERS = [getattr(classification, name) for name in classification.__all__ if "Shot" in name or "CoT" in name]
TEXTS = [getattr(text2text, name) for name in text2text.__all__ if "Tunable" not in name]
VECTORIZERS = [getattr(vectorization, name) for name in vectorization.__all__]
TAGGERS = [GPTExplainableNER, VertexExplainableNER]
EXTRACTORS = [GPTExtractor, VertexExtractor]
TRANSFORMERS = [*TEXTS, *VECTORIZERS, *TAGGERS, *EXTRACTORS]
ALL = [*CLASSIFIERS, *TRANSFORMERS]

X = ["good food", "bad film", "good film", "bad food"]


def make(cls: type, **parameters: Any) -> Any:
    """Return an estimator of `cls`."""
    if cls in TAGGERS:
        parameters.setdefault("entities", {"FOOD": "what is eaten"})
    if cls in EXTRACTORS:
        parameters.setdefault("schema", Order)
    return cls(**parameters)


def labels_for(cls: type) -> Any:
    """Return a `y` for `X`; None for transformers."""
    if cls not in CLASSIFIERS:
        return None
    one = ["good", "bad", "good", "bad"]
    return [[label] for label in one] if "MultiLabel" in cls.__name__ else one
