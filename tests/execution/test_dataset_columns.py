"""A user's Dataset: what one of its tasks does with its blocks, without Ray."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pyarrow as pa
import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.errors import InputError
from skllm_ray.execution import dataset_columns
from skllm_ray.execution.dataset import Connected
from skllm_ray.execution.plan import Step
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.models._base.reading import DatasetReading
from skllm_ray.tasks import ZeroShotTask
from skllm_ray.testing import FakeSpec


def answer(request):
    return '{"label": "a"}' if "yes" in request.messages[-1]["content"] else "no idea"


@pytest.fixture
def job(monkeypatch):
    """Return a task's own copy of the work, and how often it asked for credentials."""
    asked = []
    monkeypatch.setattr(dataset_columns, "fetch_secrets", lambda: dict(asked.append(1) or {}))
    clf = ZeroShotGPTClassifier(model="custom_url::m", default_label="b").fit(None, ["a", "b"])
    work = Connected((Step(ZeroShotTask(("a", "b")), FakeSpec(answer)),), (None,), {})
    reading = DatasetReading(clf._reading(), "coerce", True, "")
    yield pickle.loads(pickle.dumps(dataset_columns._Job(work, reading, "text"))), asked
    ModelCache.clear()


def test_a_tasks_blocks_get_their_columns_and_credentials_are_asked_for_once(job):
    work, asked = job
    schemas = set()
    for texts in (["yes", "what", None], ["yes"], [None]):
        block = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
        found = dataset_columns._add_columns(block, work)
        schemas.add(tuple(zip(found.schema.names, map(str, found.schema.types), strict=True)))
        expected = [None if text is None else "a" if text == "yes" else "b" for text in texts]
        assert found["prediction"].to_pylist() == expected
        assert found["id"].to_pylist() == list(range(len(texts)))
    assert len(schemas) == 1
    assert asked == [1]


def test_a_column_that_is_missing_or_there_already_is_named(job):
    work, _ = job
    with pytest.raises(InputError, match=r"no column 'text'.*Columns: body"):
        dataset_columns._add_columns(pa.table({"body": ["yes"]}), work)
    with pytest.raises(InputError, match=r"a column 'prediction' already.*output_prefix"):
        dataset_columns._add_columns(pa.table({"text": ["yes"], "prediction": ["x"]}), work)


@pytest.mark.parametrize(("cpus", "at_once", "expected"), [(0, 8, 2), (2, 8, 2), (5, 8, 5), (64, 8, 8), (64, 1, 1)])
def test_as_many_blocks_at_once_as_the_cluster_has_cpus(monkeypatch, cpus, at_once, expected):
    """Ray ends workers above that number after a second without work: each call started them anew, for seconds."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": float(cpus)} if cpus else {})
    spec = FakeSpec(answer)
    told = replace(spec.capabilities, calls_at_once=at_once)
    monkeypatch.setattr(FakeSpec, "capabilities", property(lambda self: told))
    assert Connected((Step(ZeroShotTask(("a", "b")), spec),), (None,), {}).in_flight == expected
