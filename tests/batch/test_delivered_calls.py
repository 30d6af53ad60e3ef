"""Calls of estimators that are delivered by provider batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from skllm_ray.classification import CoTGPTClassifier, MultiLabelZeroShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError, JobFailedError, PartialResultError
from skllm_ray.models._base import by_batch
from skllm_ray.testing import StatusFault, prompt_of
from skllm_ray.testing.batch_server import BatchFault, SubmitFault
from skllm_ray.testing.chat_forms import default_answer
from tests.batch.delivery_worlds import Death, die_at
from tests.batch.worlds import LABELS

FRAME = pd.DataFrame({"text": ["a good thing", "an awful, bad thing", "good again"]}, index=["x", "y", "z"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "calls"
    monkeypatch.setattr(by_batch, "FOLDER", str(folder))
    return folder


def test_predictions_are_those_of_a_direct_call(world, home):
    clf = world.classifier()
    direct = clf.predict(FRAME), clf.predict_details(FRAME)
    by_batches = clf.predict(FRAME, delivery="batch"), clf.predict_details(FRAME, delivery="batch")
    assert by_batches[0].tolist() == direct[0].tolist() == ["good", "bad", "good"]
    assert by_batches[0].dtype == direct[0].dtype
    pd.testing.assert_frame_equal(by_batches[1], direct[1])
    assert len(world.server.batches) == 2
    assert list(home.iterdir()) == []


def test_other_classifiers_and_labels_that_are_no_texts(world):
    SKLLMConfig.set_gpt_url(world.server.url)
    numbers = ZeroShotGPTClassifier(model="custom_url::m", label_names=LABELS).fit(None, [0, 1])
    found = numbers.predict(FRAME, delivery="batch")
    assert (found.tolist(), found.dtype) == ([1, 0, 1], numbers.predict(FRAME).dtype)
    several = MultiLabelZeroShotGPTClassifier(model="custom_url::m", max_labels=2).fit(None, [LABELS])
    assert several.predict(FRAME, delivery="batch").tolist() == several.predict(FRAME).tolist()
    world.server.answer = lambda body: '{"explanation": "so", "label": "good"}'
    explained = CoTGPTClassifier(model="custom_url::m").fit(None, LABELS)
    assert explained.predict(FRAME, delivery="batch").tolist() == explained.predict(FRAME).tolist()


def test_the_same_call_takes_up_what_a_dead_process_left(world, home, monkeypatch):
    with monkeypatch.context() as patch:
        die_at(patch, "recorded")
        with pytest.raises(Death):
            world.classifier().predict(FRAME, delivery="batch")
    assert world.classifier().predict(FRAME, delivery="batch").tolist() == ["good", "bad", "good"]
    assert len(world.server.batches) == 1
    assert set(world.server.bill.charged.values()) == {1}
    assert list(home.iterdir()) == []


def test_failures_are_those_of_the_call(world):
    def answer(body: dict[str, Any]) -> Any:
        return StatusFault(400, "no", "content_filter") if "awful" in prompt_of(body) else default_answer(body)

    world.server.answer = answer
    clf = world.classifier()
    assert clf.predict(FRAME, delivery="batch").tolist() == ["good", None, "good"]
    with pytest.raises(PartialResultError, match=r"1 of 3 rows failed.*content_filter") as told:
        clf.predict(FRAME, delivery="batch", on_error="raise")
    assert told.value.details["prediction"].tolist() == ["good", None, "good"]
    with pytest.raises(InputError):
        clf.predict(["good", None], delivery="batch", on_error="raise")
    assert np.all(clf.predict(FRAME, delivery="batch", on_error="default") != None)  # noqa: E711


def test_what_cannot_be_is_said(world):
    clf = world.classifier()
    with pytest.raises(ConfigurationError, match="delivery must be"):
        clf.predict(FRAME, delivery="mail")
    with pytest.raises(ConfigurationError, match="include_io"):
        clf.predict_details(FRAME, delivery="batch", include_io=True)
    world.server.submit_faults.append(SubmitFault.REFUSED)
    with pytest.raises(JobFailedError, match=r"refused the batch.*The same call goes on"):
        clf.predict(FRAME, delivery="batch")
    world.server.batch_faults.append(BatchFault.EXPIRED)
    assert clf.predict(FRAME, delivery="batch").tolist() == ["good", "bad", "good"]
