"""A new API vendor of one file and one row, on real workers: a Dataset, and a batch job."""

from __future__ import annotations

import pandas as pd
import pytest
import ray
import ray.cloudpickle

from skllm_ray import batch
from tests.llm import acme
from tests.llm.test_new_vendor import ROW_USD, classifier, server, texts

__all__ = ["server"]
pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here", "_by_value")]


@pytest.fixture
def _by_value():
    """Workers have no tests: the vendor's file travels, as one that is not installed on a cluster does."""
    ray.cloudpickle.register_pickle_by_value(acme)
    yield
    ray.cloudpickle.unregister_pickle_by_value(acme)


def test_a_dataset_and_many_rows(server):
    rows = texts(600)
    clf = classifier()
    found = clf.predict_dataset(ray.data.from_items([{"text": text} for text in rows]), "text").to_pandas()
    expected = {text: "good" if "good" in text else "bad" for text in rows}
    assert dict(zip(found["text"], found["prediction"], strict=True)) == expected
    assert set(server.asked.values()) == {1, 2}
    assert clf.predict(rows).tolist() == list(expected.values())


def test_a_batch_job_with_a_budget(server, tmp_path):
    pd.DataFrame({"text": texts(300)}).to_parquet(tmp_path / "in.parquet")
    options = {"unit_rows": 50, "budget_usd": 5.0, "max_output_tokens": 20}
    result = batch.run(classifier(), str(tmp_path / "in.parquet"), str(tmp_path / "out"), **options)
    assert result.complete
    assert result.total.cost_usd == pytest.approx(300 * ROW_USD)
    assert server.asked.total() == 301
