"""The Vertex family's estimators: Google's SDK over a real socket, with the estimators' own settings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import BaseModel

pytest.importorskip("google.genai")

from skllm_ray.classification import (
    CoTVertexClassifier,
    DynamicFewShotVertexClassifier,
    FewShotVertexClassifier,
    MultiLabelCoTVertexClassifier,
    MultiLabelFewShotVertexClassifier,
    MultiLabelZeroShotVertexClassifier,
    ZeroShotVertexClassifier,
)
from skllm_ray.config import SKLLMConfig
from skllm_ray.models.vertex.extraction import VertexExtractor
from skllm_ray.models.vertex.tagging.ner import VertexExplainableNER
from skllm_ray.testing import ChatServer
from skllm_ray.testing.tuning_server import TuningServer
from skllm_ray.text2text import VertexSummarizer, VertexTranslator
from skllm_ray.vectorization import VertexVectorizer
from tests.tuning_worlds import google_environment

TEXTS = ["the soup was good", "the bread was bad", "good wine", "bad {service} ```"]
LABELS = ["good", "bad", "good", "bad"]


@pytest.fixture
def serve(tmp_path, monkeypatch, local_mode):
    """Start a server with an answer; Google's SDK finds it, and a token, as it does in production."""
    servers = []

    def start(answer):
        chat, tokens = ChatServer(answer), TuningServer()
        for server in (chat, tokens):
            server.__enter__()
            servers.append(server)
        environment = google_environment(tokens, tmp_path)
        for name, value in {**environment, "GOOGLE_VERTEX_BASE_URL": chat.root}.items():
            monkeypatch.setenv(name, value)
        SKLLMConfig.set_google_project("project")
        SKLLMConfig.set_google_location("europe-west4")
        return chat

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def text_of(body):
    """The row's text, which every prompt puts last."""
    prompt = body["contents"][-1]["parts"][0]["text"]
    return next(text for text in sorted(TEXTS, key=prompt.rfind, reverse=True) if text.split()[0] in prompt)


def label_of(body):
    return "good" if "good" in text_of(body) else "bad"


@pytest.mark.parametrize("kind", [ZeroShotVertexClassifier, FewShotVertexClassifier])
def test_one_label(serve, kind):
    server = serve(lambda body: json.dumps({"label": label_of(body)}))
    clf = kind().fit(TEXTS, LABELS)
    assert clf.predict(TEXTS).tolist() == LABELS
    assert "gemini" in clf.model and server.n_requests == 4


def test_chain_of_thought(serve):
    serve(lambda body: json.dumps({"explanation": "as it says", "label": label_of(body)}))
    assert CoTVertexClassifier().fit(TEXTS, LABELS).predict(TEXTS)[:, 0].tolist() == LABELS


@pytest.mark.parametrize(
    "kind", [MultiLabelZeroShotVertexClassifier, MultiLabelFewShotVertexClassifier, MultiLabelCoTVertexClassifier]
)
def test_several_labels(serve, kind):
    serve(lambda body: json.dumps({"explanation": "so", "label": [label_of(body)]}))
    found = kind(max_labels=2).fit(TEXTS, [[label] for label in LABELS]).predict_details(TEXTS)
    assert found["error"].isna().all() and found["valid"].all()


def test_texts(serve):
    serve(lambda body: "short" if label_of(body) else "")
    assert VertexSummarizer(max_words=3).fit().transform(TEXTS).tolist() == ["short"] * 4
    assert VertexTranslator(output_language="French").fit().transform(TEXTS).tolist() == ["short"] * 4


def test_vectors_and_examples_by_likeness(serve):
    server = serve(lambda body: json.dumps({"label": label_of(body)}))
    vectors = VertexVectorizer().fit_transform(TEXTS)
    assert vectors.shape[0] == 4 and vectors.dtype.kind == "f" and np.isfinite(vectors).all()
    options = {"output_dimensionality": 64, "task_type": "CLASSIFICATION"}
    assert VertexVectorizer(request_options=options).fit_transform(TEXTS[:1]).shape == (1, 64)
    assert "CLASSIFICATION" in str(server.received[-1].body)
    n_before = server.n_requests
    vectorizer = VertexVectorizer(request_options=options)
    clf = DynamicFewShotVertexClassifier(n_examples=1, vectorizer=vectorizer).fit(TEXTS, LABELS)
    assert clf.predict(TEXTS).tolist() == LABELS
    clf = DynamicFewShotVertexClassifier(n_examples=1).fit(TEXTS, LABELS)
    assert clf.predict(TEXTS).tolist() == LABELS
    assert server.n_requests > n_before


def test_entities(serve):
    entity = {"reasoning": "a drink", "tag": "FOOD", "value": "wine"}
    serve(lambda body: json.dumps({"entities": [entity]}))
    found = VertexExplainableNER(entities={"FOOD": "what one eats or drinks"}).fit().transform(["good wine"])
    assert "wine" in str(found[0]) and "FOOD" in str(found[0]).upper()


def test_extraction(serve):
    class Dish(BaseModel):
        name: str
        price: float

    serve(lambda body: json.dumps({"name": "soup", "price": 4.5}))
    table = VertexExtractor(schema=Dish).fit().transform(["the soup was good"])
    assert "soup" in str(table)
