"""What the first release wrote goes on under this one: an output, its journal, cached replies, pickled estimators.

`first_release/` was made with the first release: six of twelve rows of a batch job, whose input happens to have a
column of a later result's name, and some estimators.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from skllm_ray import batch
from skllm_ray.batch.output.journal import Journal, digest
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.errors import InputError, SkllmRayWarning
from skllm_ray.llm.reply_cache import SQLiteReplyCache, _load
from skllm_ray.tasks.base import Reply

HERE = Path(__file__).parent / "first_release"
COLUMNS = ["prediction", "probability", "valid", "error_kind", "error", "attempts"]
COLUMNS += ["prompt_tokens", "completion_tokens", "cost_usd", "model"]
pytestmark = pytest.mark.usefixtures("local_mode")


def begun(tmp_path: Path) -> tuple[str, str]:
    """Return the input and the output, as if they had been made in `tmp_path`."""
    source, output = shutil.copy(HERE / "in.parquet", tmp_path), tmp_path / "out"
    shutil.copytree(HERE / "out", output)
    manifest = output / "_skllm_ray" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["input"], told["files"][0]["path"] = [str(source)], str(source)
    manifest.write_text(json.dumps(told))
    os.utime(source, ns=(told["files"][0]["mtime_ns"],) * 2)
    return str(source), str(output)


def classifier() -> ZeroShotGPTClassifier:
    return ZeroShotGPTClassifier(model="gguf::demo", on_error="coerce").fit(None, ["negative", "positive"])


def test_an_output_goes_on_with_the_columns_with_which_it_was_begun(tmp_path):
    source, output = begun(tmp_path)
    before = {path.name: path.read_bytes() for path in Path(output).glob("part-*")}
    result = batch.run(classifier(), source, output)
    parts = sorted(Path(output).glob("part-*"))
    assert (result.complete, result.rows_done, result.this_run.rows) == (True, 12, 6)
    assert {path.name: path.read_bytes() for path in parts[: len(before)]} == before
    assert {tuple(pq.read_schema(path).names) for path in parts} == {("id", "label_mass", "text", *COLUMNS)}
    rows = [row for path in parts for row in pq.read_table(path).to_pylist()]
    assert [row["label_mass"] for row in rows] == [f"kept {i}" for i in range(12)]  # the input's own
    assert [row["prediction"] for row in rows][3] is None
    assert {row["prediction"] for row in rows[6:]} == {"negative", "positive"}


def test_a_new_output_of_the_same_input_tells_of_the_collision(tmp_path):
    source, _ = begun(tmp_path)
    with pytest.raises(InputError, match="'label_mass'"):
        batch.run(classifier(), source, str(tmp_path / "another"))
    result = batch.run(classifier(), source, str(tmp_path / "another"), keep_columns=["id"])
    table = pq.read_table(tmp_path / "another")
    assert (result.complete, table.column_names) == (True, ["id", *COLUMNS, "label_mass"])
    assert str(table.schema.field("label_mass").type) == "double"
    masses = table["label_mass"].to_pylist()
    assert masses[3] is None
    assert all(0 < mass <= 1 for i, mass in enumerate(masses) if i != 3)


def test_a_journal_and_a_cache_without_masses_are_read_and_those_with_them_keep_them(tmp_path):
    folder = open_folder(str(tmp_path / "journal"), StorageOptions.of(None), {})
    line = {"k": digest("q"), "u": [1, 2, 0, 0.5], "m": "m", "a": 1, "t": '{"label": "a"}', "l": [-0.1, -2.0]}
    folder.write("abc-000001.jsonl", (json.dumps(line) + "\n").encode())
    old = Journal(folder, resumes=True)
    assert old.resumed[digest("q")].log_probs == (-0.1, -2.0)
    assert old.resumed[digest("q")].label_mass is None
    old.add({"new": Reply("x", (-0.5,), label_mass=0.25)}, urgent=False)
    old.close(keep=True)
    assert Journal(folder, resumes=True).resumed[digest("new")].label_mass == 0.25
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 0, "cost_usd": None}
    kept = _load(json.dumps({"usage": usage, "model": "m", "text": "x", "log_probs": [-0.1]}))
    assert isinstance(kept, Reply)
    assert (kept.text, kept.label_mass) == ("x", None)
    cache = SQLiteReplyCache(tmp_path / "r.sqlite")
    cache.put({"a": Reply("yes", (-0.5,), label_mass=0.25)})
    assert cache.get(["a"])["a"].label_mass == 0.25


def test_estimators_of_the_first_release_load_and_answer():
    for name, estimator in pickle.loads((HERE / "estimators.pickle").read_bytes()).items():
        assert type(estimator).__name__ == name
        assert estimator.get_params()["on_error"] == "raise"
        if name == "ZeroShotGPTClassifier":
            found = estimator.predict_details(["I love it, works like a charm."])
            assert 0 <= found["label_mass"].iloc[0] <= 1


def test_labels_that_the_model_would_hardly_say_are_one_warning_of_a_job(tmp_path):
    source, _ = begun(tmp_path)
    odd = ZeroShotGPTClassifier(model="gguf::demo", on_error="coerce").fit(None, ["zebra", "xylophone"])
    with pytest.warns(SkllmRayWarning, match=r"probability of .* only \(the median of 12 texts\)") as told:
        batch.run(odd, source, str(tmp_path / "odd"), keep_columns=["id"], unit_rows=5)
    assert len(told) == 1
