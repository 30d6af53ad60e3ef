"""Files as attackers, other programs and half-done copies leave them."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from skllm_ray import batch
from skllm_ray.batch.input import parquet_files
from skllm_ray.batch.input.files import cut, read, rows_per_unit, scan
from skllm_ray.batch.storage import StorageOptions, base_of, list_inputs, open_folder
from skllm_ray.errors import InputError
from tests.batch.worlds import asked, classifier, texts, write
from tests.batch.worlds import read as read_parts

NONE = StorageOptions()
KEYS = [
    "a b.parquet", "c=D E/x.parquet", "ü/é🦜.parquet", "h#sh.parquet", "q?x=1.parquet", "p%20c%41.parquet",
    "[br].parquet", "st*r.parquet", "plus+.parquet", "quote\"'.parquet", "trail .parquet", "a&b;c,d@e:f$.parquet",
    "e=f=g/y.parquet", "c=%E4/z.parquet", " lead.parquet", "_day=1/w.parquet",
]  # fmt: skip


def rows(uri: str, options: StorageOptions = NONE) -> list[dict[str, Any]]:
    secrets = options.secrets()
    folder = open_folder(base_of(uri), options, secrets)
    scanned = scan(folder, list_inputs(uri, options, secrets), "from", "s3://" if "s3://" in uri else "")
    assert [file.error for file in scanned.files if file.error] == []
    tables = [read(folder, unit, ["text", "from"], scanned.schema) for unit in cut(scanned.files, 9)]
    return [row for table in tables for row in table.to_pylist()]


def test_odd_names_on_a_disk(tmp_path):
    for key in KEYS:
        write(tmp_path / "in" / key, [key])
    found = rows(str(tmp_path / "in"))
    assert {row["from"]: row["text"] for row in found} == {str(tmp_path / "in" / key): key for key in KEYS}
    for key in KEYS:
        assert [row["text"] for row in rows(str(tmp_path / "in" / key))] == [key]


def test_odd_keys_on_s3(s3_server, monkeypatch):
    keys = {"access_key": "key", "secret_key": "secret", "region": "us-east-1"}
    options = StorageOptions.of({"endpoint_override": s3_server, "scheme": "http", **keys})
    s3 = pafs.S3FileSystem(endpoint_override=s3_server, scheme="http", allow_bucket_creation=True, **keys)
    s3.create_dir("bucket")
    for key in KEYS:
        pq.write_table(pa.table({"text": [key]}), f"bucket/in/{key}", filesystem=s3)
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_server}")
    for some in (options, NONE):
        found = rows("s3://bucket/in", some)
        assert {row["from"]: row["text"] for row in found} == {f"s3://bucket/in/{key}": key for key in KEYS}
        for key in KEYS:
            assert [row["text"] for row in rows(f"s3://bucket/in/{key}", some)] == [key]
    with pytest.raises(InputError, match="cannot be looked up"):
        rows("s3://bucket/in//a.parquet", options)


@pytest.mark.usefixtures("local_mode")
def test_links_do_not_have_rows_paid_twice(tmp_path):
    write(tmp_path / "other/c.parquet", ["good c"])
    write(tmp_path / "in/a.parquet", ["good a"])
    (tmp_path / "in/other").symlink_to(tmp_path / "other")
    (tmp_path / "in/c2.parquet").symlink_to(tmp_path / "other/c.parquet")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken.parquet").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "in/pipe.csv")
    asked.clear()
    result = batch.run(classifier(), [str(tmp_path / "in"), str(tmp_path / "other")], str(tmp_path / "out"))
    assert (result.complete, result.rows_total) == (True, 2)
    assert asked == {"good a": 1, "good c": 1}


def test_names_that_are_no_utf_8_are_told(tmp_path):
    write(tmp_path / "a.parquet", ["good"])
    try:
        Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/b\xff.csv")).write_text("text\nx\n")
    except OSError:
        pytest.skip("this filesystem has no such names")
    with pytest.raises(InputError, match="no UTF-8"):
        list_inputs(str(tmp_path), NONE, {})


@pytest.mark.parametrize("name", ["b.csv.gz", "b.JSONL.zst", "sub/b.parquet.bz2"])
def test_packed_files_are_not_passed_over(tmp_path, name):
    write(tmp_path / "in/a.parquet", ["good"])
    (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "in" / name).write_bytes(gzip.compress(b"text\n" + b"0" * 10**6))
    for uri in (tmp_path / "in", tmp_path / "in" / name):
        with pytest.raises(InputError, match="which is compressed"):
            list_inputs(str(uri), NONE, {})
    assert len(list_inputs(f"{tmp_path}/in/*.parquet", NONE, {})) == 1
    (tmp_path / "in" / name).rename(tmp_path / "in" / "_b.csv.gz")
    assert len(list_inputs(str(tmp_path / "in"), NONE, {})) == 1


@pytest.mark.usefixtures("local_mode")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_is_told_and_the_others_are_done(tmp_path, share):
    write(tmp_path / "in/a.parquet", texts(30))
    path = Path(write(tmp_path / "in/b.parquet", texts(300), row_group_size=50))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    result = batch.run(classifier(), str(tmp_path / "in"), str(tmp_path / "out"))
    assert (result.complete, result.rows_done, list(result.unreadable)) == (False, 30, [str(path)])


@pytest.mark.usefixtures("local_mode")
def test_a_file_that_changes_while_it_is_read_gives_no_rows(tmp_path, monkeypatch):
    path = Path(write(tmp_path / "in/a.parquet", texts(30)))
    decode = parquet_files._of_group

    def slow(*args: Any) -> pa.Table:
        found = decode(*args)
        write(path, [f"another {text}" for text in texts(30)])
        return found

    monkeypatch.setattr(parquet_files, "_of_group", slow)
    result = batch.run(classifier(), str(path), str(tmp_path / "out"))
    assert "changed since the job was planned" in str(result.unreadable)
    assert result.rows_done == 0


def test_a_large_row_group_is_not_held_whole(tmp_path, monkeypatch):
    """One row group of 64 MB, decoded in units of a few rows: what is asked of the decoder at once stays small."""
    text = os.urandom(8000).hex()
    write(tmp_path / "a.parquet", [f"{i} {text[i % 999 :]}" for i in range(4000)], row_group_size=10**9)
    folder = open_folder(str(tmp_path), NONE, {})
    scanned = scan(folder, list_inputs(str(tmp_path), NONE, {}))
    batches = []
    iterate = pq.ParquetFile.iter_batches

    def watched(self: Any, size: int, **options: Any) -> Any:
        batches.append(size)
        return iterate(self, size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    before = pa.total_allocated_bytes()
    units = list(cut(scanned.files, rows_per_unit(scanned.files)))
    table = read(folder, units[-1], ["id", "text"], scanned.schema)
    assert table.column("id").to_pylist() == list(range(units[-1].start, 4000))
    assert set(batches) == {units[-1].n_rows}
    assert pa.total_allocated_bytes() - before < 16 << 20


def test_thousands_of_tiny_files_of_two_types(tmp_path):
    for i in range(1500):
        pq.write_table(pa.table({"text": ["good"], "n": [i if i % 2 else i + 0.5]}), tmp_path / f"{i:04}.parquet")
    scanned = scan(open_folder(str(tmp_path), NONE, {}), list_inputs(str(tmp_path), NONE, {}))
    assert (len(scanned.files), scanned.schema.types) == (1500, [pa.string(), pa.float64()])


def test_a_kill_in_the_middle_of_a_part_leaves_none(tmp_path):
    text = """
import os, sys
import pyarrow as pa
from skllm_ray.batch.storage import Folder
from skllm_ray.batch.job.worker import table_bytes
import pyarrow.fs as pafs
folder = Folder(pafs.LocalFileSystem(), sys.argv[1])
part = table_bytes(pa.table({"x": pa.array([os.urandom(1 << 20) for _ in range(16)])}))
print("ready", flush=True)
for i in range(10**6):
    folder.write(f"part-{i}.parquet", part)
"""
    child = subprocess.Popen([sys.executable, "-c", text, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    while not list(tmp_path.glob("out/*.parquet")):
        time.sleep(0.01)
    for _ in range(50):
        if list(tmp_path.glob("out/.*.tmp")):
            break
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    parts = list(tmp_path.glob("out/part-*"))
    assert parts
    for part in parts:
        assert pq.read_table(part).num_rows == 16
    assert pq.read_table(tmp_path / "out").num_rows == 16 * len(parts)  # what is half written is hidden


@pytest.mark.usefixtures("local_mode")
def test_a_half_part_is_never_taken_for_a_whole_one(tmp_path):
    source = write(tmp_path / "in.parquet", texts(40))
    batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=20)
    first, second = sorted((tmp_path / "out").glob("part-*"))
    first.write_bytes(first.read_bytes()[:-20])
    second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    result = batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=20)
    assert (result.complete, result.this_run.rows) == (True, 40)
    assert read_parts(tmp_path / "out")["id"].tolist() == list(range(40))


@pytest.mark.parametrize("told", [b"{}", b"[]", b'{"freq": "nonsense"}', b"\xff", b'"M"'])
def test_damaged_extension_types_are_told(tmp_path, told):
    """Some of them, pandas itself cannot read."""
    import pandas.core.arrays.arrow.extension_types  # noqa: F401  known to this process

    damaged = pa.field(
        "p", pa.int64(), metadata={"ARROW:extension:name": "pandas.period", "ARROW:extension:metadata": told}
    )
    write(tmp_path / "a.parquet", ["bad"], p=["2026"])
    pq.write_table(pa.table([pa.array([5])], schema=pa.schema([damaged])), tmp_path / "b.parquet")
    scanned = scan(open_folder(str(tmp_path), NONE, {}), list_inputs(str(tmp_path), NONE, {}))
    assert scanned.files[0].error is None
    assert scanned.files[1].error or "pandas.period" in scanned.clashes["p"] or "nonsense" in scanned.clashes["p"]
