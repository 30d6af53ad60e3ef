"""What becomes of rows, on a worker: without the estimator, and without scikit-learn."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from pydantic import BaseModel

from skllm_ray.classification import (
    CoTGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.models._base.reading import DatasetReading
from skllm_ray.models.gpt.extraction import GPTExtractor
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.models.gpt.vectorization import GPTVectorizer
from skllm_ray.tasks.base import Reply, Row, RowError
from skllm_ray.tasks.ner import Span
from skllm_ray.text2text import GPTSummarizer

FAILED = Row(None, False, Reply(error=RowError("timeout", "Too late.")))
INVALID = Row(None, False, Reply("what?"))
URL = "custom_url::m"


class Order(BaseModel):
    item: str
    count: int


def good(value):
    return Row(value, True, Reply("said"))


CASES = {
    "labels": (
        ZeroShotGPTClassifier(model=URL, default_label="b").fit(None, ["a", "b"]),
        "a",
        {"prediction": ["a", None, "b"]},
    ),
    "numbers": (
        ZeroShotGPTClassifier(model=URL, label_names=["no", "yes"]).fit(["x"] * 4, [0, 1, 1, 1]),
        "no",
        {"prediction": [0, None, 1]},
    ),
    "several labels": (
        MultiLabelZeroShotGPTClassifier(model=URL, default_label="b").fit(None, [["a", "b"]]),
        ("a",),
        {"prediction": [["a"], None, ["b"]]},
    ),
    "explained": (
        CoTGPTClassifier(model=URL, default_label="b").fit(None, ["a", "b"]),
        ("a", "so"),
        {"prediction": ["a", None, "b"], "explanation": ["so", None, ""]},
    ),
    "texts": (GPTSummarizer(model=URL).fit(), "short", {"summary": ["short", None, None]}),
    "vectors": (
        GPTVectorizer(model=URL).fit(),
        np.ones(2, np.float32),
        {"embedding": [[1.0, 1.0], None, None]},
    ),
    "fields": (
        GPTExtractor(model=URL, schema=Order).fit(),
        {"item": "tea", "count": 2},
        {"item": ["tea", None, None], "count": [2, None, None]},
    ),
    "entities": (
        GPTExplainableNER(model=URL, entities={"PERSON": "a name"}).fit(),
        (Span(0, 3, "PERSON", "Ann", "why"),),
        {
            "tagged": [
                "<entity><reasoning>why</reasoning><tag>PERSON</tag><value>Ann</value></entity>",
                None,
                None,
            ],
            "entities": [
                [{"start": 0, "end": 3, "tag": "PERSON", "value": "Ann", "reasoning": "why"}],
                None,
                None,
            ],
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_columns_are_those_of_the_estimator_wherever_a_reading_travels(name, monkeypatch):
    clf, value, expected = CASES[name]
    monkeypatch.setattr(type(clf), "random_state", 0, raising=False)
    columns = DatasetReading(pickle.loads(pickle.dumps(clf._reading())), "coerce", True, "our_")
    found = columns(["Ann", "x", "y"], lambda texts, _: [good(value), FAILED, INVALID][: len(texts)])
    assert list(found) == list(columns.types)
    if name == "numbers":  # drawn for a text that has no label, always the same
        expected = {"prediction": [0, None, clf._reading().default("y")]}
    assert {column: found[f"our_{column}"].to_pylist() for column in expected} == expected
    assert found["our_error_kind"].to_pylist() == [None, "timeout", "invalid_answer"]
    for column, kind in columns.types.items():
        assert kind is None or found[column].type == kind


def test_a_worker_imports_neither_scikit_learn_nor_scipy_for_a_reading():
    clf = ZeroShotGPTClassifier(model=URL).fit(None, ["a", "b"])
    travels = pickle.dumps((DatasetReading(clf._reading(), "raise", True, ""), clf._task()))
    code = (
        "import pickle, sys\n"
        "columns, task = pickle.loads(sys.stdin.buffer.read())\n"
        "from skllm_ray.tasks.base import Reply\n"
        'replies = [Reply(\'{"label": "a"}\')]\n'
        "print(columns(['x'], lambda texts, _: task.parse(texts, replies))['prediction'][0])\n"
        "print({'sklearn', 'scipy', 'openai', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=travels, capture_output=True, check=True)
    assert done.stdout.decode().split("\n")[:2] == ["a", "set()"]
