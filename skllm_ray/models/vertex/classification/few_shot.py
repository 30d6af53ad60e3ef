"""Few-shot classifiers of the Vertex family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from skllm_ray.memory import IndexConstructor
from skllm_ray.models._base.few_shot import DynamicFewShotClassifier, FewShotClassifier, MultiLabelFewShotClassifier
from skllm_ray.models._base.vectorizer import LLMVectorizer
from skllm_ray.models.vertex.classification.base import MultiLabelVertex, SingleLabelVertex
from skllm_ray.models.vertex.vectorization import VertexVectorizer

__all__ = ["DynamicFewShotVertexClassifier", "FewShotVertexClassifier", "MultiLabelFewShotVertexClassifier"]


class FewShotVertexClassifier(FewShotClassifier, SingleLabelVertex):
    """Classify texts after the examples in `X` and `y`, all of which go into every prompt.

    Parameters
    ----------
    model, default_label, prompt_template, on_error, label_descriptions, random_state, request_options
        As in ``ZeroShotVertexClassifier``; the template holds ``{x}``, ``{labels}`` and ``{training_data}``.
    label_names, label_prior
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.

    Examples
    --------
    >>> clf = FewShotVertexClassifier().fit(["Lovely!", "Broken."], ["good", "bad"])
    >>> print(clf.render_prompt(["Very nice."])[0].partition("Examples:")[2])
    <BLANKLINE>
    <BLANKLINE>
    Text:
    ```
    Lovely!
    ```
    Answer: {"label": "good"}
    <BLANKLINE>
    Text:
    ```
    Broken.
    ```
    Answer: {"label": "bad"}
    <BLANKLINE>
    The text to judge:
    ```
    Very nice.
    ```
    """


class MultiLabelFewShotVertexClassifier(MultiLabelFewShotClassifier, MultiLabelVertex):
    """Choose any of the labels for each text, after the examples in `X` and `y`.

    Parameters
    ----------
    model, default_label, max_labels, prompt_template, on_error
        As in ``MultiLabelZeroShotVertexClassifier``; the template also holds ``{training_data}``.
    label_descriptions, random_state, request_options
        As in ``ZeroShotVertexClassifier``.
    label_names
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.

    Examples
    --------
    >>> clf = MultiLabelFewShotVertexClassifier(max_labels=2)
    >>> clf = clf.fit(["Cheap and good.", "Dear."], [["price", "quality"], ["price"]])
    >>> 'Answer: {"label": ["price", "quality"]}' in clf.render_prompt(["Cheap."])[0]
    True
    """


@dataclass(eq=False, repr=False)
class DynamicFewShotVertexClassifier(DynamicFewShotClassifier, SingleLabelVertex):
    """Classify each text after those examples of each class that are most like it.

    The examples are embedded once, in ``fit``; the texts in batches, and whole batches look up their neighbours
    at once.

    Parameters
    ----------
    model, default_label, prompt_template, on_error, label_descriptions, random_state, request_options
        As in ``FewShotVertexClassifier``.
    label_names, label_prior
        As in :class:`~skllm_ray.classification.ZeroShotGPTClassifier`.
    n_examples : int, default=3
        How many examples of each class a prompt holds; of a class with fewer, all.
    memory_index : IndexConstructor or None, default=None
        Makes the index of each class; None takes scikit-learn's nearest neighbours with `metric`.
    vectorizer : transformer or None, default=None
        Makes the vectors: ``VertexVectorizer`` or any scikit-learn transformer of texts. None takes
        ``VertexVectorizer()``.
    metric : str, default="euclidean"
        The distance, for the default index.

    Examples
    --------
    >>> from sklearn.feature_extraction.text import TfidfVectorizer
    >>> DynamicFewShotVertexClassifier(n_examples=1, vectorizer=TfidfVectorizer()).n_examples
    1
    """

    _vectorizer_class: ClassVar[type[LLMVectorizer]] = VertexVectorizer

    n_examples: int = 3
    memory_index: IndexConstructor | None = None
    vectorizer: Any = None
    metric: str = "euclidean"
