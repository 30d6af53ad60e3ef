"""Programs as scikit-llm's users write them: only the import lines change, and where the model is served."""

from __future__ import annotations

import json

import pytest

from skllm_ray.config import SKLLMConfig
from skllm_ray.testing import ChatServer, prompt_of

PROGRAMS = {
    "zero-shot": """
from skllm.datasets import get_classification_dataset
from skllm.models.gpt.classification.zero_shot import ZeroShotGPTClassifier
X, y = get_classification_dataset()
clf = ZeroShotGPTClassifier(model="custom_url::m")
clf.fit(X, y)
labels = clf.predict(X)
assert len(labels) == len(X) and set(labels) <= set(y)
clf.fit(None, ["positive", "negative", "neutral"])
assert len(clf.predict(X, num_workers=2)) == len(X)
""",
    "several labels": """
from skllm.datasets import get_multilabel_classification_dataset
from skllm.models.gpt.classification.zero_shot import MultiLabelZeroShotGPTClassifier
X, y = get_multilabel_classification_dataset()
clf = MultiLabelZeroShotGPTClassifier(model="custom_url::m", max_labels=3)
clf.fit(X, y)
assert clf.predict(X).shape == (len(X), 3)
clf.fit(None, [["quality", "price", "delivery"]])
assert clf.predict(X).shape == (len(X), 3)
""",
    "chain of thought": """
from skllm.datasets import get_classification_dataset
from skllm.models.gpt.classification.zero_shot import CoTGPTClassifier
X, y = get_classification_dataset()
clf = CoTGPTClassifier(model="custom_url::m").fit(X, y)
predictions = clf.predict(X)
labels, reasoning = predictions[:, 0], predictions[:, 1]
assert set(labels) <= set(y) and all(reasoning)
""",
    "few-shot": """
from skllm.datasets import get_classification_dataset, get_multilabel_classification_dataset
from skllm.models.gpt.classification.few_shot import FewShotGPTClassifier, MultiLabelFewShotGPTClassifier
X, y = get_classification_dataset()
assert len(FewShotGPTClassifier(model="custom_url::m").fit(X, y).predict(X)) == len(X)
X, y = get_multilabel_classification_dataset()
clf = MultiLabelFewShotGPTClassifier(max_labels=2, model="custom_url::m").fit(X, y)
assert clf.predict(X).shape == (len(X), 2)
""",
    "dynamic few-shot": """
from skllm.models.gpt.classification.few_shot import DynamicFewShotGPTClassifier
from skllm.models.gpt.vectorization import GPTVectorizer
from skllm.memory._sklearn_nn import SklearnMemoryIndex
from skllm.memory.base import IndexConstructor
X = ["I love ice cream", "Pizza is fine", "The sea is deep", "Mountains are high"]
y = ["food", "food", "nature", "nature"]
clf = DynamicFewShotGPTClassifier(
    n_examples=1, vectorizer=GPTVectorizer(model="custom_url::e"), model="custom_url::m",
    memory_index=IndexConstructor(SklearnMemoryIndex, metric="euclidean"),
).fit(X, y)
assert len(clf.predict(["Soup is hot", "Rivers are long"])) == 2
""",
    "texts": """
from skllm.datasets import get_summarization_dataset, get_translation_dataset
from skllm.models.gpt.text2text.summarization import GPTSummarizer
from skllm.models.gpt.text2text.translation import GPTTranslator
X = get_summarization_dataset()
assert len(GPTSummarizer(model="custom_url::m", max_words=15).fit_transform(X)) == len(X)
assert len(GPTSummarizer(model="custom_url::m", max_words=15, focus="apples").fit_transform(X)) == len(X)
X = get_translation_dataset()
assert len(GPTTranslator(model="custom_url::m", output_language="English").fit_transform(X)) == len(X)
""",
    "entities": """
from skllm.models.gpt.tagging.ner import GPTExplainableNER as NER
entities = {"PERSON": "a name of an individual", "DATE": "a point in time"}
ner = NER(entities=entities, display_predictions=False, model="custom_url::m")
assert len(ner.fit_transform(["Ada was born in 1815.", "Nobody came."])) == 2
""",
    "vectors in a pipeline": """
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelEncoder
from skllm.datasets import get_classification_dataset
from skllm.models.gpt.vectorization import GPTVectorizer
X, y = get_classification_dataset()
vectors = GPTVectorizer(model="custom_url::e", batch_size=2).fit_transform(X)
assert vectors.shape[0] == len(X)
pipe = Pipeline([("GPT", GPTVectorizer(model="custom_url::e")), ("Clf", LogisticRegression())])
pipe.fit(X, LabelEncoder().fit_transform(y))
assert len(pipe.predict(X)) == len(X)
""",
    "a local model": """
from skllm.config import SKLLMConfig
from skllm.classification import ZeroShotGPTClassifier
SKLLMConfig.set_gguf_max_gpu_layers(0)
clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative", "neutral"])
assert clf.predict(["I love it, works like a charm."])[0] == "positive"
""",
}


def answer(body):
    """Answer in the form that the request's schema wants."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    return json.dumps(_example(schema)) if schema else f"short: {len(prompt_of(body))}"


def _example(schema):
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: _example(inner) for name, inner in schema["properties"].items()}
    if kind == "array":
        return [_example(schema["items"])]
    return {"string": "because", "integer": 1, "number": 1.0, "boolean": True}[kind]


@pytest.mark.usefixtures("local_mode")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_only_the_import_lines_change(program):
    with ChatServer(answer) as server:
        SKLLMConfig.set_openai_key("sk-x")
        SKLLMConfig.set_gpt_url(server.url)
        exec(program.replace("from skllm.", "from skllm_ray."), {})  # noqa: S102
