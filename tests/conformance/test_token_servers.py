"""Labels scored by real servers, against our own engine on the same weights."""

from __future__ import annotations

import os

import numpy as np
import pytest

from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from tests.batch.worlds import read, write

pytestmark = [
    pytest.mark.usefixtures("local_mode"),
    pytest.mark.filterwarnings("ignore:.*would answer with one of"),
    pytest.mark.filterwarnings("ignore:.*does not accept"),
    pytest.mark.filterwarnings("ignore:.*has no chat template"),  # of the own engine; the server was given one
]
LABELS = ["negative", "neutral", "positive", "positively odd"]
TEXTS = ["I love it, works like a charm.", "Broke after two days. Terrible.", "It arrived on a Tuesday.", "ü 😀 {x}"]


def compare(model, own, tolerance):
    served = ZeroShotGPTClassifier(model=model, on_error="coerce").fit(None, LABELS)
    own = ZeroShotGPTClassifier(model=own).fit(None, LABELS)
    proba, wanted = served.predict_proba(TEXTS), own.predict_proba(TEXTS)
    details, of_own = served.predict_details(TEXTS), own.predict_details(TEXTS)
    np.testing.assert_allclose(proba, wanted, atol=tolerance)
    np.testing.assert_allclose(details["label_mass"], of_own["label_mass"], rtol=10 * tolerance)
    np.testing.assert_allclose(details["probability"], proba.max(axis=1), atol=tolerance)  # asked twice
    assert details["error"].isna().all()
    return served


def test_llama_servers_labels_are_scored_as_by_our_engine(native_server, tmp_path):
    SKLLMConfig.set_gpt_url(f"{native_server}/v1")
    served = compare("custom_url::demo", "gguf::demo", 0.03)
    assert served.predict(TEXTS).shape == (len(TEXTS),)
    write(tmp_path / "in.parquet", TEXTS)
    batch.run(served, str(tmp_path / "in.parquet"), str(tmp_path / "out"))
    rows = read(tmp_path / "out")
    assert rows["probability"].notna().all() and rows["label_mass"].notna().all()


def test_vllms_labels_are_scored_as_by_our_engine(vllm_server):
    SKLLMConfig.set_gpt_url(vllm_server)
    model, path = os.environ.get("SKLLM_RAY_VLLM_MODEL", "model"), os.environ.get("SKLLM_RAY_VLLM_GGUF", "")
    compare(f"custom_url::{model}", f"gguf::{path}", 0.03)  # bfloat16; 0.002 where its processor computes in 32 bits
