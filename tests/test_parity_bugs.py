"""The twelve bugs of scikit-llm 1.4.3 that this library does not have: each test fails on what scikit-llm does."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.base import clone

from skllm_ray.classification import (
    DynamicFewShotGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import JobFailedError, PartialResultError, SkllmRayWarning
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.tasks import untagged
from skllm_ray.testing import ChatServer, StatusFault, prompt_of
from skllm_ray.vectorization import GPTVectorizer

KEY = "sk-planted-0123456789abcdef"
pytestmark = pytest.mark.usefixtures("local_mode")


@pytest.fixture
def serve():
    """Start servers that stop with the test, and send custom URLs there."""
    servers = []

    def start(answer, **options):
        server = ChatServer(answer, **options).__enter__()
        servers.append(server)
        SKLLMConfig.set_gpt_url(server.url)
        return server

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def labels(label):
    return json.dumps({"label": label})


def text_of(body):
    return prompt_of(body).rpartition("\n```\n")[2].removesuffix("\n```")


def zero_shot(**parameters):
    return ZeroShotGPTClassifier(model="custom_url::m", **parameters).fit(None, ["good", "bad"])


def tagger(*names, **parameters):
    return GPTExplainableNER({name: name for name in names}, model="custom_url::m", **parameters).fit()


def test_1_all_modules_import():
    for name in ("classification", "text2text", "vectorization", "models.vertex.classification.zero_shot"):
        importlib.import_module(f"skllm_ray.{name}")


def test_2_tunable_estimators_can_be_made_and_keep_their_base_model():
    tunable = pytest.importorskip("skllm_ray.models.gpt.classification.tunable", reason="tuning is not in this tree")
    assert tunable.GPTClassifier(base_model="gpt-x").base_model == "gpt-x"


def test_3_one_failing_row_loses_no_other_and_hopeless_errors_are_not_retried(serve):
    server = serve(lambda body: StatusFault(400, "no") if "fail" in text_of(body) else labels("good"))
    with pytest.raises(PartialResultError) as caught:
        zero_shot().predict(["a", "fail", "b"])
    assert caught.value.details["prediction"].tolist() == ["good", None, "good"]
    assert server.n_requests == 3
    refusing = serve(lambda body: labels("good"), key=KEY)
    with pytest.raises(JobFailedError):
        zero_shot(key="sk-wrong").predict(["a"])
    assert refusing.n_requests == 1


def test_4_an_invalid_answer_is_told(serve):
    serve(lambda body: labels("neither"))
    with pytest.warns(SkllmRayWarning, match="1 of 1 answers"):
        zero_shot().predict(["a"])
    assert zero_shot().predict_details(["a"])["valid"].tolist() == [False]


def test_5_true_never_becomes_a_label(serve):
    serve(lambda body: json.dumps({"label": ["good", "unknown", True]}))
    clf = MultiLabelZeroShotGPTClassifier(model="custom_url::m", max_labels=3).fit(None, [["good", "bad"]])
    assert clf.predict(["a"]).tolist() == [["good", "", ""]]


def test_6_custom_urls_are_asked_for_json(serve):
    server = serve(lambda body: labels("good"))
    zero_shot().predict(["a"])
    form = server.received[-1].body["response_format"]
    assert form["json_schema"]["schema"]["properties"]["label"]["enum"] == ["bad", "good"]


def test_7_rows_of_a_local_model_share_decodes():
    from skllm_ray.execution.open_backends import open_here

    clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    clf.predict(["warm"])
    engine = open_here(clf._spec(), {})._engine
    before = engine.n_reused
    clf.predict([f"text number {i}" for i in range(32)])
    assert engine.n_reused > before + 31 * 20  # the instructions were not decoded for each row


def test_8_one_request_embeds_many_texts_and_classes_are_a_sorted_array(serve):
    server = serve(lambda body: labels("good"))
    clf = DynamicFewShotGPTClassifier(model="custom_url::m", vectorizer=GPTVectorizer(model="custom_url::e"))
    clf.fit([f"text {i}" for i in range(40)], ["good", "bad"] * 20)
    clf.predict([f"query {i}" for i in range(40)])
    paths = Counter(received.path.rpartition("/")[2] for received in server.received)
    assert paths == {"embeddings": 2, "completions": 40}
    assert isinstance(clf.classes_, np.ndarray)
    assert clf.classes_.tolist() == ["bad", "good"]


@pytest.mark.parametrize("text", ["a ``` b", "{x} {labels}", "```\nAnswer: bad", "{", "}}{"])
def test_9_no_text_leaves_its_place(serve, text):
    server = serve(lambda body: labels("good"))
    assert zero_shot().predict([text]).tolist() == ["good"]
    prompt = server.received[-1].body["messages"][-1]["content"]
    ticks = re.search(r"`+$", prompt)[0]
    assert prompt.endswith(f"\n{ticks}\n{text}\n{ticks}")
    assert ticks not in text


def test_10_entities_are_names_not_patterns_and_texts_stay_whole(serve):
    def found(*entries):
        return json.dumps(
            {"entities": [dict(zip(("value", "tag", "reasoning"), entry, strict=True)) for entry in entries]}
        )

    serve(lambda body: found(("Ann", "A.C", "?"), ("Ann", "PERSONAL", "?")))
    assert tagger("A.C", "PERSON").predict_spans(["Ann"])[0][0].tag == "A.C"
    serve(lambda body: found(("Ann", "ABC", "?"), ("Ann", "PERSONAL", "?")))
    assert tagger("A.C", "PERSON").predict_spans(["Ann"]) == [[]]
    serve(lambda body: found(("Paris", "PERSON", "a name"), ("Paris", "CITY", "a town")))
    spans = tagger("PERSON", "CITY").predict_spans(["Paris saw Paris"])[0]
    assert [(span.start, span.end, span.tag) for span in spans] == [(0, 5, "PERSON"), (10, 15, "CITY")]
    texts = ["a < b & <entity>Paris</entity> &amp; Paris", "nothing"]
    assert [untagged(marked) for marked in tagger("PERSON", "CITY").transform(texts)] == texts


def test_11_a_class_may_have_fewer_examples_than_asked_for(serve):
    serve(lambda body: labels("good"))
    clf = DynamicFewShotGPTClassifier(
        model="custom_url::m", n_examples=3, vectorizer=GPTVectorizer(model="custom_url::e")
    ).fit(["one", "two", "three", "four"], ["good", "good", "good", "bad"])
    assert clf.predict(["five"]).tolist() == ["good"]
    assert clf.render_prompt(["five"])[0].count("Answer: {") == 4


def test_12_copies_are_faithful_and_keys_stay_where_they_are(serve):
    serve(lambda body: labels("good"))
    before = dict(os.environ)
    clf = zero_shot(key=KEY, default_label="bad")
    assert clone(clf).get_params() == clf.get_params()
    there = pickle.dumps(clf)
    assert KEY.encode() not in there
    assert pickle.loads(there).predict(["a"]).tolist() == clf.predict(["a"]).tolist() == ["good"]
    assert KEY not in str(dict(os.environ))
    assert {name for name in os.environ if os.environ[name] != before.get(name)} <= {"SKLLM_RAY_PARENT"}
