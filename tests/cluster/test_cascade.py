"""Cascades over Ray Datasets."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import ray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skllm_ray.classification import CascadeClassifier, ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.testing import ChatServer

pytestmark = [pytest.mark.cluster, pytest.mark.deep, pytest.mark.usefixtures("ray_here")]
LABELS = ["even", "odd"]


def student(texts, seed=0):
    """A classifier that is sometimes wrong, and then unsure."""
    rng = np.random.default_rng(seed)
    y = np.array([LABELS[int(text.split()[1]) % 2] for text in texts])
    y = np.where(rng.random(len(y)) < 0.1, rng.permutation(y), y)
    return make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 2)), LogisticRegression(C=10)).fit(texts, y)


class Parity(ChatServer):
    """Says of "row i" whether i is even."""

    def __init__(self):
        super().__init__(self.parity)

    @staticmethod
    def parity(body):
        text = body["messages"][-1]["content"].rpartition("row ")[2]
        return json.dumps({"label": LABELS[int(text.split()[0].strip("`")) % 2]})


@pytest.fixture
def strong():
    with Parity() as server:
        SKLLMConfig.set_gpt_url(server.url)
        yield server, ZeroShotGPTClassifier(model="custom_url::m").fit(None, LABELS)


def test_a_dataset_is_counted_sampled_and_labelled(strong):
    server, teacher = strong
    texts = [f"row {i} of the file" for i in range(2000)]
    ds = ray.data.from_items([{"text": text, "at": i} for i, text in enumerate([*texts, None])]).repartition(7)
    clf = CascadeClassifier(student(texts[:500]), teacher)
    found = clf.predict_dataset(ds, details=True, on_error="coerce").to_pandas().sort_values("at")
    assert (clf.certificate_.n_rows, clf.certificate_.n_sampled) == (2000, 300)
    stages = found["stage"].value_counts()
    assert stages["sample"] == 300 and stages.sum() == 2000
    assert server.n_requests == 300 + stages.get("strong", 0) < 2000
    truth = [LABELS[i % 2] for i in range(2000)]
    assert (found["prediction"][:2000] != truth).mean() <= 0.05 and pd.isna(found["prediction"].iloc[2000])
    asked = found["stage"].isin(["sample", "strong"])
    assert (found["strong_label"].notna() == asked).all()
    assert set(found.columns) == {"text", "at", "prediction", "stage", "score", "fast_label", "strong_label", "error"}


@pytest.mark.slow
def test_kept_rows_of_a_dataset_are_audited_and_add_up_however_often_it_is_read(strong):
    server, teacher = strong
    texts = [f"row {i} of the file" for i in range(1000)]
    ds = ray.data.from_items([{"text": text, "at": i} for i, text in enumerate([*texts, None])]).repartition(3)
    clf = CascadeClassifier(student(texts[:500]), teacher, audit_share=0.2)
    lazy = clf.predict_dataset(ds, details=True, on_error="coerce")
    assert clf.audit_.n_audited == 0
    found = lazy.to_pandas().sort_values("at")
    stages = found["stage"].value_counts()
    audited = found[found["stage"] == "audit"]
    assert len(audited) > 100 and (audited["prediction"] == audited["strong_label"]).all()
    assert server.n_requests == stages["sample"] + stages.get("strong", 0) + stages["audit"]
    told = clf.audit_
    assert (told.n_rows, told.n_kept, told.n_audited) == (1000, stages["fast"] + stages["audit"], stages["audit"])
    assert told.n_disagreed == (audited["fast_label"] != audited["strong_label"]).sum()
    lazy.materialize()
    assert clf.audit_ == told == pickle.loads(pickle.dumps(clf)).audit_
    before = clf.certificate_
    more = [f"row {i} of another" for i in range(3000, 3400)]
    clf.calibrate(texts[:300]).predict_dataset(ray.data.from_items([{"text": text} for text in more])).materialize()
    assert clf.certificate_ != before and clf.audit_.n_rows == 400
    clf.predict(more[:100])
    assert clf.audit_.n_rows == 500


def test_a_calibrated_cascade_reads_a_dataset_once(strong):
    server, teacher = strong
    texts = [f"row {i} of the file" for i in range(1500)]
    clf = CascadeClassifier(student(texts[:500]), teacher).calibrate(texts[:1000])
    before = server.n_requests
    ds = ray.data.from_items([{"text": text} for text in texts[1000:]])
    found = clf.predict_dataset(ds).to_pandas()
    assert list(found.columns) == ["text", "prediction"] and server.n_requests - before < 500
    assert found["prediction"].tolist() == clf.predict(found["text"]).tolist()


@pytest.mark.slow
def test_language_models_on_both_sides(strong):
    _, teacher = strong
    texts = [f"row {i} of the file" for i in range(400)]
    fast = ZeroShotGPTClassifier(model="gguf::demo").fit(None, LABELS)
    found = CascadeClassifier(fast, teacher, n_samples=100).predict_dataset(
        ray.data.from_items([{"text": text} for text in texts])
    )
    rows = found.to_pandas()
    parity = [LABELS[int(text.split()[1]) % 2] for text in rows["text"]]
    assert (rows["prediction"] != parity).mean() <= 0.05


def test_what_cannot_work_is_refused_before_anything_is_asked(strong):
    server, teacher = strong
    texts = [f"row {i} of the file" for i in range(1000)]
    ds = ray.data.from_items([{"text": text} for text in texts])
    clf = CascadeClassifier(student(texts[:500]), teacher)
    with pytest.raises(InputError, match="no column 'body'"):
        clf.predict_dataset(ds, text_column="body")
    with pytest.raises(InputError, match="has a column 'prediction' already"):
        clf.predict_dataset(ray.data.from_items([{"text": "row 1", "prediction": "mine"}]))
    with pytest.raises(ConfigurationError, match="n_samples=40"):
        clf.set_params(n_samples=40).predict_dataset(ds)
    with pytest.raises(TypeError, match="must be a Ray Dataset"):
        clf.predict_dataset(texts)
    assert server.n_requests == 0
