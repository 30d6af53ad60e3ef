"""A job that the first release began goes on under its schema."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skllm_ray import batch
from skllm_ray.batch.output.manifest import read_schema
from skllm_ray.classification import ZeroShotGPTClassifier

DATA = Path(__file__).parents[1] / "data" / "first_release" / "job"


@pytest.mark.usefixtures("local_mode")
def test_an_output_of_the_first_release_keeps_its_columns_and_types(tmp_path):
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    place = tmp_path / "out/_skllm_ray/manifest.json"
    told = json.loads(place.read_text().replace("@FOLDER@", str(tmp_path)))
    for file in told["files"]:
        file["mtime_ns"] = Path(file["path"]).stat().st_mtime_ns
    place.write_text(json.dumps(told))
    clf = ZeroShotGPTClassifier(model="gguf::demo", on_error="coerce").fit(None, ["bad", "good"])
    result = batch.run(clf, str(tmp_path / "in"), str(tmp_path / "out"))
    assert (result.complete, result.unreadable, result.this_run.rows) == (True, {}, 3)
    parts = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*"))]
    schema = read_schema(told["schema"])
    for part in parts:
        assert part.schema.remove_metadata().equals(schema)
    found = pa.concat_tables(parts).to_pydict()
    assert found["text"] == ["good", "bad", "good", "good", "good"]
    assert found["n"] == [5.0, float(2**53), 0.5, None, float(2**53)]
    assert found["c"] == ["x", "y", None, "z", None]
    assert found["t"] == [None, None, "[1]", None, '{"a": 1}']
    assert "country" not in found
