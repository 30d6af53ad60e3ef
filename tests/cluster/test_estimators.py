"""Estimators on a real Ray: Datasets, vectors, examples that travel, child processes."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import ray
from joblib import Parallel, delayed
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import cross_val_predict

from skllm_ray.classification import (
    CoTGPTClassifier,
    DynamicFewShotGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.config import SKLLMConfig
from skllm_ray.datasets import get_reviews_dataset
from skllm_ray.errors import InputError
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.testing import ChatServer, StatusFault, prompt_of
from skllm_ray.text2text import GPTSummarizer
from skllm_ray.vectorization import GPTVectorizer

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(600)]
KEY = "sk-planted-0123456789abcdef"
LABELS = ["negative", "positive", "neutral"]


def answer(body):
    prompt = prompt_of(body)
    text = prompt.rpartition("\n```\n")[2].removesuffix("\n```")
    if "refuse me" in text:
        return StatusFault(400, "no")
    if "Summarize" in prompt:
        return f"short: {text}"
    if "Find all entities" in prompt:
        return json.dumps({"entities": [{"reasoning": "named", "tag": "ROW", "value": text.split()[0]}]})
    label = "positive" if int(text.split()[-1]) % 2 else "negative"
    return json.dumps({"explanation": "parity", "label": [label] if '"label": [' in prompt else label})


@pytest.fixture
def server():
    with ChatServer(answer) as found:
        SKLLMConfig.set_gpt_url(found.url)
        yield found


def rows(n):
    return [{"id": i, "text": f"row {i}"} for i in range(n)]


def test_a_dataset_keeps_its_columns_and_gets_ours(server):
    clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, LABELS)
    lazy = clf.predict_dataset(ray.data.from_items(rows(700)))
    assert server.n_requests == 0
    found = sorted(lazy.take_all(), key=lambda row: row["id"])
    assert [row["id"] for row in found] == list(range(700))
    assert [row["prediction"] for row in found] == ["positive" if i % 2 else "negative" for i in range(700)]
    assert server.n_requests == 700


def test_details_and_prefixes_and_failures_in_a_dataset(server):
    clf = MultiLabelZeroShotGPTClassifier(model="custom_url::m", on_error="coerce").fit(None, [LABELS])
    items = [*rows(3), {"id": 3, "text": "refuse me"}, {"id": 4, "text": None}]
    found = clf.predict_dataset(ray.data.from_items(items), output_prefix="llm_", details=True).take_all()
    by_id = {row["id"]: row for row in found}
    assert by_id[1]["llm_prediction"] == ["positive"]
    assert by_id[3]["llm_prediction"] is None
    assert [by_id[i]["llm_error_kind"] for i in range(5)] == [None, None, None, "bad_request", "missing_text"]
    cot = CoTGPTClassifier(model="custom_url::m").fit(None, LABELS).predict_dataset(ray.data.from_items(rows(2)))
    assert {row["explanation"] for row in cot.take_all()} == {"parity"}


def test_a_dataset_that_cannot_work_is_refused_before_any_row(server):
    clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, LABELS)
    dataset = ray.data.from_items([{"text": "row 1", "prediction": "mine"}])
    with pytest.raises(InputError, match="'body'"):
        clf.predict_dataset(dataset, text_column="body")
    with pytest.raises(InputError, match="'prediction' already"):
        clf.predict_dataset(dataset)
    with pytest.raises(TypeError, match="Ray Dataset"):
        clf.predict_dataset(["row 1"])
    with pytest.raises(TypeError, match="predict_dataset"):
        clf.predict(dataset)
    with pytest.raises(Exception, match="missing or blank"):
        clf.predict_dataset(ray.data.from_items([{"text": " "}])).take_all()
    assert server.n_requests == 0


def test_transformers_on_datasets(server):
    dataset = ray.data.from_items(rows(40))
    summaries = GPTSummarizer(model="custom_url::m").transform_dataset(dataset).take_all()
    assert {row["summary"] for row in summaries} == {f"short: row {i}" for i in range(40)}
    tagger = GPTExplainableNER({"ROW": "a row"}, model="custom_url::m").fit()
    spans = tagger.transform_dataset(dataset).take_all()
    assert all(row["entities"][0]["end"] == 3 for row in spans)
    vectors = GPTVectorizer(model="custom_url::m").transform_dataset(dataset).take_all()
    assert {len(row["embedding"]) for row in vectors} == {64}


@pytest.mark.deep
def test_vectors_of_many_texts_are_the_same_on_the_cluster(server):
    texts = [f"row {i}" for i in range(600)]
    for vectorizer in (GPTVectorizer(model="custom_url::m"), GPTVectorizer(model="gguf::demo")):
        many = vectorizer.fit_transform(texts)
        assert many.shape[0] == 600
        np.testing.assert_allclose(many[::100], vectorizer.transform(texts[::100]), atol=1e-2)


@pytest.mark.slow
def test_examples_are_looked_up_on_the_workers(server):
    X = [f"even {i}" if i % 2 == 0 else f"odd {i}" for i in range(40)]
    y = ["negative" if i % 2 == 0 else "positive" for i in range(40)]
    for vectorizer in (TfidfVectorizer(), GPTVectorizer(model="custom_url::m"), GPTVectorizer(model="gguf::demo")):
        clf = DynamicFewShotGPTClassifier(model="custom_url::m", n_examples=2, vectorizer=vectorizer).fit(X, y)
        texts = [f"odd {i}" for i in range(300)]
        assert clf.predict(texts).tolist() == ["positive" if i % 2 else "negative" for i in range(300)]
        asked = sorted(
            received.body["messages"][-1]["content"]
            for received in list(server.received)[-300:]
            if "messages" in received.body
        )
        shown = [prompt.partition("[user]\n")[2] for prompt in clf.render_prompt(texts)]
        assert asked[0] in shown
        found = clf.predict_dataset(ray.data.from_items(rows(300))).take_all()
        assert sorted(row["prediction"] for row in found) == ["negative"] * 150 + ["positive"] * 150


@pytest.mark.deep
def test_local_chat_and_local_vectors_share_one_model(server):
    X = ["I love it.", "Broke at once.", "Works like a charm.", "Terrible."]
    clf = DynamicFewShotGPTClassifier(model="gguf::demo", n_examples=1)
    clf.fit(X, ["positive", "negative", "positive", "negative"])
    found = clf.predict(X * 100)
    assert found.tolist() == clf.predict(X).tolist() * 100
    assert server.n_requests == 0


@pytest.mark.slow
def test_child_processes_join_this_ray_and_find_its_credentials():
    with ChatServer(answer, key=KEY) as server:
        SKLLMConfig.set_gpt_url(server.url)
        SKLLMConfig.set_openai_key(KEY)
        clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, LABELS)
        texts = [f"row {i}" for i in range(300)]
        expected = clf.predict(texts).tolist()
        found = Parallel(n_jobs=2)(delayed(_predict)(clf, texts) for _ in range(2))
        assert [labels for labels, _, _ in found] == [expected] * 2
        assert {address for _, address, _ in found} == {ray.get_runtime_context().gcs_address}
        assert os.getpid() not in {pid for _, _, pid in found}
        y = ["positive" if i % 2 else "negative" for i in range(8)]
        assert cross_val_predict(clf, texts[:8], y, cv=2, n_jobs=2).tolist() == y


@pytest.mark.slow
@pytest.mark.parametrize("carried", ["by the estimator", "by the settings"])
def test_children_use_the_parents_key_and_not_their_environments(monkeypatch, carried):
    monkeypatch.setenv("SKLLM_CONFIG_OPENAI_KEY", "sk-of-another-account")
    with ChatServer(answer, key=KEY) as server:
        SKLLMConfig.set_gpt_url(server.url)
        key = KEY if carried == "by the estimator" else None
        if key is None:
            SKLLMConfig.set_openai_key(KEY)
        clf = ZeroShotGPTClassifier(model="custom_url::m", key=key).fit(None, LABELS)
        texts = [f"row {i}" for i in range(300)]
        expected = clf.predict(texts).tolist()
        assert pickle.loads(pickle.dumps(clf)).predict(texts[:3]).tolist() == expected[:3]  # in this process too
        found = Parallel(n_jobs=2)(delayed(_predict)(clf, texts) for _ in range(2))
        assert [labels for labels, _, _ in found] == [expected] * 2
        nested = ray.remote(num_cpus=0)(_predict).remote(clf, texts[:5])
        assert ray.get(nested)[0] == expected[:5]


def _predict(clf, texts):
    labels = clf.predict(texts).tolist()
    return labels, ray.get_runtime_context().gcs_address, os.getpid()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("loaded", [True, False], ids=["parent's model", "model of their own"])
def test_children_and_joblib_s_ray_share_a_gguf_model(loaded):
    import joblib
    from ray.util.joblib import register_ray

    ModelCache.clear()
    texts, y = get_reviews_dataset()
    texts, y = texts[:12], y[:12]
    clf = ZeroShotGPTClassifier(model="gguf::demo")
    if loaded:
        clf.fit(None, sorted(set(y))).predict(texts[:2])
    by_loky = cross_val_predict(clf, texts, y, cv=4, n_jobs=4)
    register_ray()
    with joblib.parallel_backend("ray", n_jobs=2):
        by_ray = cross_val_predict(clf, texts, y, cv=2)
    assert len(by_loky) == len(by_ray) == 12
