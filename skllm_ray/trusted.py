"""Which types a saved estimator may hold, for formats that load none that is not named."""

from __future__ import annotations

from typing import Any

import skllm_ray.config as config


def trusted_types() -> list[str]:
    """Return the names of all types that this library's estimators may hold, themselves included.

    skops, which is MLflow's default format for scikit-learn models, loads no type that is not named.

    Returns
    -------
    list of str
        Such as ``"skllm_ray.config.Settings"``, sorted.

    Examples
    --------
    >>> "skllm_ray.models.gpt.classification.zero_shot.ZeroShotGPTClassifier" in trusted_types()
    True
    """
    import skllm_ray.classification as classification
    import skllm_ray.text2text as text2text
    import skllm_ray.vectorization as vectorization
    from skllm_ray.cascade import AgreementScore, Audit, Certificate
    from skllm_ray.llm.base import Placement
    from skllm_ray.memory import IndexConstructor, SklearnMemoryIndex
    from skllm_ray.models._base.student import WordCharacters, words_and_pairs
    from skllm_ray.models._base.taught import TaughtRows
    from skllm_ray.models._base.transformer_backend import TransformerSpec
    from skllm_ray.models.gpt.extraction import GPTExtractor
    from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
    from skllm_ray.models.vertex.extraction import VertexExtractor
    from skllm_ray.models.vertex.tagging.ner import VertexExplainableNER
    from skllm_ray.tasks.few_shot import ExampleMemory

    estimators = [
        vars(module)[name] for module in (classification, text2text, vectorization) for name in module.__all__
    ]
    estimators += [GPTExplainableNER, VertexExplainableNER, GPTExtractor, VertexExtractor]
    settings = [config.Settings, config.Timeouts, config.RateLimit, config.Price, config.GGUFResources, config.Secret]
    parts: list[Any] = [IndexConstructor, SklearnMemoryIndex, ExampleMemory, TransformerSpec, Placement]
    parts += [Audit, Certificate, AgreementScore, TaughtRows, WordCharacters, words_and_pairs]
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in (*estimators, *settings, *parts)}
    return sorted({*names, "skllm_ray.memory._annoy.AnnoyMemoryIndex"})
