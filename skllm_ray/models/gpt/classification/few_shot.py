"""Few-shot classifiers of the GPT family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from skllm_ray.memory import IndexConstructor
from skllm_ray.models._base.few_shot import DynamicFewShotClassifier, FewShotClassifier, MultiLabelFewShotClassifier
from skllm_ray.models._base.vectorizer import LLMVectorizer
from skllm_ray.models.gpt.classification.base import MultiLabelGPT, SingleLabelGPT
from skllm_ray.models.gpt.vectorization import GPTVectorizer

__all__ = ["DynamicFewShotGPTClassifier", "FewShotGPTClassifier", "MultiLabelFewShotGPTClassifier"]


class FewShotGPTClassifier(FewShotClassifier, SingleLabelGPT):
    """Classify texts after the examples in `X` and `y`, all of which go into every prompt.

    Parameters
    ----------
    model, default_label, prompt_template, key, org, on_error, label_descriptions, random_state, request_options
        As in ``ZeroShotGPTClassifier``; the template holds ``{x}``, ``{labels}`` and ``{training_data}``.
    label_names, label_prior
        As in ``ZeroShotGPTClassifier``.

    Examples
    --------
    >>> clf = FewShotGPTClassifier(model="gguf::demo").fit(["Lovely!", "Broken."], ["good", "bad"])
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


class MultiLabelFewShotGPTClassifier(MultiLabelFewShotClassifier, MultiLabelGPT):
    """Choose any of the labels for each text, after the examples in `X` and `y`.

    Parameters
    ----------
    model, default_label, max_labels, prompt_template, key, org, on_error
        As in ``MultiLabelZeroShotGPTClassifier``; the template also holds ``{training_data}``.
    label_descriptions, random_state, request_options
        As in ``ZeroShotGPTClassifier``.
    label_names
        As in ``ZeroShotGPTClassifier``.

    Examples
    --------
    >>> clf = MultiLabelFewShotGPTClassifier(model="gguf::demo", max_labels=2)
    >>> clf = clf.fit(["Cheap and good.", "Dear."], [["price", "quality"], ["price"]])
    >>> 'Answer: {"label": ["price", "quality"]}' in clf.render_prompt(["Cheap."])[0]
    True
    """


@dataclass(eq=False, repr=False)
class DynamicFewShotGPTClassifier(DynamicFewShotClassifier, SingleLabelGPT):
    """Classify each text after those examples of each class that are most like it.

    The examples are embedded once, in ``fit``; the texts in batches, and whole batches look up their neighbours
    at once.

    Parameters
    ----------
    model, default_label, prompt_template, key, org, on_error, label_descriptions, random_state, request_options
        As in ``FewShotGPTClassifier``.
    label_names, label_prior
        As in ``ZeroShotGPTClassifier``.
    n_examples : int, default=3
        How many examples of each class a prompt holds; of a class with fewer, all.
    memory_index : IndexConstructor or None, default=None
        Makes the index of each class; None takes scikit-learn's nearest neighbours with `metric`.
    vectorizer : transformer or None, default=None
        Makes the vectors: ``GPTVectorizer`` or any scikit-learn transformer of texts. None takes ``GPTVectorizer()``
        or, for a GGUF model, that model; for ``azure::`` and ``custom_url::`` models it has to be given.
    metric : str, default="euclidean"
        The distance, for the default index.

    Examples
    --------
    >>> import skllm_ray
    >>> from sklearn.feature_extraction.text import TfidfVectorizer
    >>> skllm_ray.init(local_mode=True)
    >>> clf = DynamicFewShotGPTClassifier(model="gguf::demo", n_examples=1, vectorizer=TfidfVectorizer())
    >>> clf = clf.fit(["the food was good", "a good film", "the food was bad"], ["positive", "positive", "negative"])
    >>> prompt = clf.render_prompt(["What a film"])[0]
    >>> "a good film" in prompt, "the food was good" in prompt
    (True, False)
    >>> skllm_ray.shutdown()
    """

    _vectorizer_class: ClassVar[type[LLMVectorizer]] = GPTVectorizer

    n_examples: int = 3
    memory_index: IndexConstructor | None = None
    vectorizer: Any = None
    metric: str = "euclidean"
