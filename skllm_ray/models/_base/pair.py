"""Whether a cascade can be made of two classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skllm_ray.errors import ConfigurationError, NotSupportedError
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.labelling import innermost
from skllm_ray.models._base.multilabel import MultiLabelClassifier
from skllm_ray.models._base.sklearn_bases import BaseEstimator


def is_fitted(classifier: Any) -> bool:
    """Return whether a classifier is fitted."""
    try:
        check_is_fitted(classifier)
    except (NotFittedError, TypeError):
        return False
    return True


def check_pair(fast: Any, strong: Any) -> None:
    """Raise where no cascade can be made of two fitted classifiers."""
    known, given = classes_of(strong, "strong"), classes_of(fast, "fast")
    foreign = [label for label in given if label not in set(known)]
    if foreign:
        raise ConfigurationError(
            f"fast and strong must have the same labels: fast={type(fast).__name__} knows {foreign[0]!r}, which "
            f"strong={type(strong).__name__} does not.",
            f"strong knows: {', '.join(map(repr, known[:5]))}{', …' if len(known) > 5 else ''}.",
        )
    if is_of_several(fast) != is_of_several(strong):
        raise ConfigurationError("fast and strong must both give one label for each row, or both give several.")
    check_probabilities(fast, "fast")
    strong, _ = innermost(strong)
    for one in (innermost(fast)[0], strong):
        if isinstance(one, LLMClassifier):
            one._validate_params()
            one._checked_spec()


def check_probabilities(classifier: Any, name: str) -> None:
    """Raise ``NotSupportedError`` if a fitted classifier tells no probabilities, before any is asked for."""
    classifier, _ = innermost(classifier)
    if isinstance(classifier, LLMClassifier):
        if classifier._gives_scores and classifier._spec().capabilities.gives_log_probs:
            return
        model = f"{type(classifier).__name__}(model={classifier.model!r})"
        hint = "GGUF models give them, and many servers behind a custom URL; explanations come without."
    elif isinstance(classifier, BaseEstimator) and has_probabilities(classifier):
        return
    else:
        model, hint = (
            type(classifier).__name__,
            "CalibratedClassifierCV gives them to any classifier of scikit-learn's.",
        )
    raise NotSupportedError(f"{name}={model} gives no probabilities, by which its labels are kept or not.", hint)


def has_probabilities(classifier: Any) -> bool:
    """Return whether a classifier of scikit-learn's kind has ``predict_proba``; it depends on its parameters."""
    # scikit-learn declares it by the attribute's presence alone.
    return callable(getattr(classifier, "predict_proba", None))


def classes_of(classifier: Any, name: str) -> list[Any]:
    """Return the labels of a fitted classifier."""
    try:
        return list(np.asarray(classifier.classes_).tolist())
    except AttributeError:
        raise ConfigurationError(f"{name}={type(classifier).__name__} has no classes_, and so no labels.") from None


def is_of_several(classifier: Any) -> bool:
    """Return whether a classifier gives a row any number of labels."""
    return isinstance(innermost(classifier)[0], MultiLabelClassifier)
