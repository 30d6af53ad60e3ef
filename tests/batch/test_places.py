"""Where a job reads and writes: which files are meant, and places that cannot work."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch import filesystems, storage
from skllm_ray.batch.storage import StorageOptions, list_inputs
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.llm.open_models import ModelCache
from tests.batch.worlds import classifier, read, texts, write

NONE = StorageOptions()


@pytest.fixture(autouse=True)
def _world():
    SKLLMConfig.reset()
    skllm_ray.init(local_mode=True)
    ModelCache.clear()
    yield
    ModelCache.clear()
    skllm_ray.shutdown()


def names(uri: object) -> list[str]:
    return [Path(file.path).name for file in list_inputs(str(uri), NONE, {})]


def test_what_folders_and_patterns_mean(tmp_path):
    for name in ("a.csv", "b.jsonl", "_SUCCESS", "notes.txt", ".hidden.csv", "_c.csv", "_old/d.csv", "sub/e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert names(tmp_path) == ["a.csv", "b.jsonl", "e.csv"]
    assert names(f"{tmp_path}/*") == ["a.csv", "b.jsonl"]
    assert names(f"{tmp_path}/**/*.csv") == ["a.csv", "e.csv"]
    assert names(f"{tmp_path}/_*.csv") == ["_c.csv"]
    assert names(f"{tmp_path}/_old/*") == ["d.csv"]
    assert names(f"{tmp_path}/_c.csv") == ["_c.csv"]
    with pytest.raises(InputError, match="no file of a known kind"):
        names(f"{tmp_path}/*.txt")


def test_files_without_a_row_are_no_trouble(tmp_path):
    write(tmp_path / "in/a.parquet", texts(5))
    for name in ("b.csv", "c.jsonl", "_SUCCESS"):
        (tmp_path / "in" / name).write_text("")
    (tmp_path / "in/d.csv").write_text("text\n")
    for number, uri in enumerate((tmp_path / "in", tmp_path / "in/*")):
        result = batch.run(classifier(), str(uri), str(tmp_path / f"out{number}"))
        assert (result.complete, result.unreadable, result.rows_done) == (True, {}, 5)


@pytest.mark.parametrize(
    ("uri", "output"),
    [("in", "in/out"), ("in", "in"), ("in/*", "in"), ("in/**/*.parquet", "in/a/out"), ("in/*/*", "in/out")],
)
def test_an_output_whose_parts_would_be_input_is_refused(tmp_path, monkeypatch, uri, output):
    write(tmp_path / "in/a.parquet", texts(5))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="lies in the input"):
        batch.run(classifier(), uri, output)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.parquet", "in"]


@pytest.mark.parametrize(
    ("uri", "output"),
    [("in", "inner"), ("in", "in/_out"), ("in/*.parquet", "in/out"), ("in/a.parquet", "in"), ("in/a*.parquet", "in")],
)
def test_an_output_near_the_input_is_none_of_it(tmp_path, monkeypatch, uri, output):
    write(tmp_path / "in/a.parquet", texts(5))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert batch.run(classifier(), uri, output).complete


def test_a_relative_path_means_one_place_whatever_the_working_directory(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path / name / "in.parquet", texts(5))
        monkeypatch.chdir(tmp_path / name)
        result = batch.run(classifier(), "in.parquet", "out")
        assert (result.rows_done, result.output) == (5, str(tmp_path / name / "out"))
    monkeypatch.chdir(tmp_path)
    assert batch.run(classifier(), "b/in.parquet", str(tmp_path / "b/out")).this_run.rows == 0


def test_inputs_on_two_filesystems_are_refused(tmp_path):
    source = write(tmp_path / "in.parquet", texts(5))
    with pytest.raises(ConfigurationError, match="on different filesystems"):
        batch.run(classifier(), [source, "memory://b.parquet"], str(tmp_path / "out"))
    other = write(tmp_path / "b.parquet", texts(5))
    assert batch.run(classifier(), [source, f"file://{other}"], str(tmp_path / "out")).rows_done == 10


@pytest.mark.parametrize("ends", [{}, {"credential_token_expiration": "2100-01-01T00:00:00+00:00"}])
def test_google_storage_takes_a_token_and_does_not_wait_for_ever(monkeypatch, ends):
    """JSON has no dates, so that no token could be given; where nothing answered, each look took 15 minutes."""
    monkeypatch.setattr(storage, "_PAUSES_S", ())
    token = "ya29.planted-token-0123456789"
    options = {"access_token": token, "endpoint_override": "127.0.0.1:9", "scheme": "http", "retry_time_limit": 1}
    with pytest.raises(InputError, match=r"'gs://b/in.parquet' cannot be looked up: .*connect") as caught:
        storage.list_inputs("gs://b/in.parquet", storage.StorageOptions.of(options | ends), {})
    assert token not in str(caught.value)
    assert filesystems._google_options({})["retry_time_limit"].total_seconds() <= 60


def test_columns_named_twice_are_kept_once(tmp_path):
    source = write(tmp_path / "in.parquet", texts(5))
    batch.run(classifier(), source, str(tmp_path / "out"), keep_columns=["id", "id"])
    assert list(read(tmp_path / "out").columns)[:2] == ["id", "prediction"]


def test_columns_that_differ_do_not_stop_a_job(tmp_path):
    write(tmp_path / "in/a.parquet", texts(5), more=[1] * 5)
    write(tmp_path / "in/b.parquet", texts(5), more=[["x"]] * 5)
    batch.run(classifier(), str(tmp_path / "in"), str(tmp_path / "out"))
    assert read(tmp_path / "out")["more"].tolist() == ["1"] * 5 + ['["x"]'] * 5


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.null()], ids=str)
def test_texts_of_other_types_are_texts(tmp_path, kind):
    words = pa.nulls(2) if pa.types.is_null(kind) else pa.array(["good", "awful"], kind)
    pq.write_table(pa.table({"text": words}), tmp_path / "in.parquet")
    result = batch.run(classifier(), str(tmp_path / "in.parquet"), str(tmp_path / "out"))
    assert result.complete
    assert read(tmp_path / "out")["text"].tolist() == words.to_pylist()


def test_bytes_are_no_texts(tmp_path):
    pq.write_table(pa.table({"text": [b"good"]}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"of type binary, not of texts\. Convert it to strings"):
        batch.run(classifier(), str(tmp_path / "in.parquet"), str(tmp_path / "out"))


def test_an_output_that_cannot_be_used_ends_the_job_before_anything_is_asked(tmp_path):
    source = write(tmp_path / "in.parquet", texts(3))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"output='.*file/out' cannot be used"):
        batch.run(classifier(), source, str(tmp_path / "file" / "out"))
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "_skllm_ray").symlink_to("/proc/none")
    with pytest.raises(InputError, match=r"output folder .*seen/_skllm_ray' cannot be used"):
        batch.run(classifier(), source, str(tmp_path / "seen"))
    options = {"endpoint_override": "http://127.0.0.1:9", "access_key": "a", "secret_key": "hidden", "region": "x"}
    with pytest.raises(InputError, match=r"output='s3://bucket/out' cannot be used.*127\.0\.0\.1:9") as told:
        batch.run(classifier(), source, "s3://bucket/out", storage_options=options)
    assert "hidden" not in str(told.value)
