"""Inputs: every row of every file, whatever stands in it, and none that is not there."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from skllm_ray.batch.input import slices
from skllm_ray.batch.input.files import InputFile, cut, read, scan
from skllm_ray.batch.storage import FileInfo, Folder


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch: pytest.MonkeyPatch):
    """Let small files have several stretches."""
    for module in ("slices", "csv_files", "jsonl_files"):
        monkeypatch.setattr(f"skllm_ray.batch.input.{module}.INDEX_ROWS", 4)


def look(*paths: Path) -> tuple[Folder, list[InputFile], pa.Schema]:
    folder = Folder(pafs.LocalFileSystem(), str(paths[0].parent))
    found = scan(folder, [FileInfo(str(path), path.stat().st_size, 0) for path in paths])
    return folder, found.files, found.schema


def rows_of(*paths: Path, unit_rows: int = 3) -> list[dict[str, Any]]:
    """Return all rows as a job reads them."""
    folder, files, schema = look(*paths)
    assert [file.error for file in files] == [None] * len(files)
    tables = [read(folder, unit, schema.names, schema) for unit in cut(files, unit_rows)]
    assert sum(file.n_rows for file in files) == sum(table.num_rows for table in tables)
    for table in tables:
        assert table.schema.types == schema.types
    return [row for table in tables for row in table.to_pylist()]


def error_of(path: Path) -> str:
    return str(look(path)[1][0].error)


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


# --- CSV ----------------------------------------------------------------------------------------------------------


def test_a_quote_within_a_field_is_a_letter(tmp_path):
    lines = [f"{i},it is good number {i}" for i in range(50)]
    lines[4], lines[20] = '4,a 12" screen that is good', '20,a 7" tablet'
    found = rows_of(put(tmp_path / "in.csv", "id,text\n" + "\n".join(lines) + "\n"))
    assert [f"{row['id']},{row['text']}" for row in found] == lines


@pytest.mark.parametrize("seed", range(60))
def test_csv_has_the_rows_that_pythons_reader_finds_in_the_whole(tmp_path, seed):
    draw = random.Random(seed)
    pieces = [*"aü ,\n\r", "é\n", '"', '""', "\r\n", '"a,b"', '"x\ny"', ',"', '",', "\u2028", "🦜", "\x85"]
    names = ["id", "text", *"abcdef"]
    text = ",".join(names) + "\n" + "".join(draw.choice(pieces) for _ in range(draw.randrange(100)))
    path = put(tmp_path / "in.csv", ("\ufeff" if seed % 3 == 0 else "") + text)
    whole = [row for row in csv.reader([*io.StringIO(text, newline=""), "END"]) if row]
    if whole[-1] != ["END"]:
        assert "never closed" in error_of(path)
        return
    if any(any(row[len(names) :]) for row in whole[1:-1]):
        assert "fields, and the header 8" in error_of(path)
        return
    assert [list(row.values()) for row in rows_of(path, unit_rows=draw.choice([1, 3, 4, 5, 100]))] == [
        [field or None for field in (row + [""] * len(names))[: len(names)]] for row in whole[1:-1]
    ]


def test_a_quote_that_is_never_closed_is_told_and_takes_no_rows_with_it(tmp_path):
    path = put(tmp_path / "in.csv", 'id,text\n1,good\n2,"an open quote\n3,good\n4,good\n')
    assert error_of(path) == "ValueError: a quote is opened in row 2 and never closed"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_ends_of_lines_and_of_the_file(tmp_path, end, last):
    lines = ["id,text", *(f"{i},good {i}" for i in range(9))]
    path = put(tmp_path / "in.csv", end.join(lines) + (end if last else ""))
    assert rows_of(path) == [{"id": str(i), "text": f"good {i}"} for i in range(9)]


def test_marks_headers_and_nothing_at_all(tmp_path):
    assert rows_of(put(tmp_path / "mark.csv", '\ufeff"id","te\nxt"\n1,good\n')) == [{"id": "1", "te\nxt": "good"}]
    assert rows_of(put(tmp_path / "late.csv", "\n\r\nid,text\n\n1,good\n")) == [{"id": "1", "text": "good"}]
    for name, text, columns in (
        ("head.csv", "id,text", ["id", "text"]),
        ("none.csv", "", []),
        ("blank.csv", "\n\n", []),
    ):
        path = put(tmp_path / name, text)
        assert rows_of(path) == []
        assert look(path)[2].names == columns
    assert "called 'id'" in error_of(put(tmp_path / "twice.csv", "id,id\n1,2\n"))
    assert "UTF-16" in error_of(put(tmp_path / "wide.csv", "id,text\n1,good\n".encode("utf-16")))


def test_short_and_long_rows_and_large_fields(tmp_path):
    large = "good " * 100_000
    path = put(tmp_path / "in.csv", f"id,text,more\n1\n2,good,x,,\n3,{large},\n4,,\n")
    assert [tuple(row.values()) for row in rows_of(path)] == [
        ("1", None, None),
        ("2", "good", "x"),
        ("3", large, None),
        ("4", None, None),
    ]


def test_a_field_beyond_all_measure_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("skllm_ray.batch.input.csv_files.MOST_BYTES", 1000)
    assert "larger than field limit" in error_of(put(tmp_path / "in.csv", "text\n" + "x" * 2000))


def test_a_byte_that_is_no_utf_8_costs_itself(tmp_path):
    lines = [b"id,text", *(b"%d,good" % i for i in range(20))]
    lines[7] = b'6,"caf\xe9"'
    found = rows_of(put(tmp_path / "in.csv", b"\n".join(lines)), unit_rows=100)
    assert [row["text"] for row in found] == ["good"] * 6 + ["caf\ufffd"] + ["good"] * 13


# --- JSON lines ---------------------------------------------------------------------------------------------------


def test_blank_lines_marks_and_ends_of_lines(tmp_path):
    text = '\ufeff{"text": "a"}\r\n\r\n  \n\u00a0\n{"text": "b\u2028c"}\n\n{"text": "d"}'
    assert [row["text"] for row in rows_of(put(tmp_path / "in.jsonl", text))] == ["a", None, "b\u2028c", "d"]


def test_half_a_character_costs_itself(tmp_path):
    lines = [r'{"text": "good"}', r'{"text": "cut \ud83d", "m": {"a": "\udc00"}}', r'{"text": "\ud83e\udd9c"}']
    found = rows_of(put(tmp_path / "in.jsonl", "\n".join(lines)))
    assert [row["text"] for row in found] == ["good", "cut \ufffd", "🦜"]
    assert found[1]["m"] == {"a": "\ufffd"}
    raw = put(tmp_path / "raw.jsonl", b'{"text": "caf\xe9"}\n{"text": "\xed\xa0\xbd"}\n')
    assert [row["text"].rstrip("\ufffd") for row in rows_of(raw)] == ["caf", ""]


def test_columns_get_the_type_that_fits_all_values(tmp_path):
    lines: list[dict[str, Any]] = [
        {"text": "t", "int": i, "null": None, "nest": {"a": 1}, "list": [1]} for i in range(9)
    ]
    lines[1] |= {"int": 2**70, "some": True, "nan": 1, "empty": {}, "in": [{"e": {}}], "wide": 2**60 + 1, "l0": []}
    lines[2] |= {"nan": float("nan"), "some": "yes", "wide": 0.5, "nest": {"b": "x"}, "list": [0.5], "key": {"a": 1}}
    lines[3] |= {"nest": {"a": 2**53 + 1}, "list": [2**53 + 1, None], "key": 5}
    lines[4] |= {"nest": {"a": 0.5}}
    path = put(tmp_path / "in.jsonl", "\n".join(map(json.dumps, lines)))
    found = rows_of(path)
    assert len(found) == 9
    assert [row["int"] for row in found[:2]] == ["0", str(2**70)]
    assert [row["some"] for row in found[:3]] == [None, "true", "yes"]
    assert [row["key"] for row in found[2:4]] == ['{"a": 1}', "5"]
    assert (found[1]["empty"], found[1]["in"]) == ("{}", [{"e": "{}"}])
    assert found[1]["nan"] == 1.0
    assert found[2]["nan"] != found[2]["nan"]
    for row in found:
        pq.write_table(pa.Table.from_pylist([row], look(path)[2]), tmp_path / "out.parquet")


def test_types_that_only_another_chunk_of_the_file_tells(tmp_path, monkeypatch):
    monkeypatch.setattr("skllm_ray.batch.input.text_files.SCAN_BYTES", 7)
    values: list[Any] = [None, 1, 2**53 + 1, 0.5, None]
    path = put(tmp_path / "in.jsonl", "\n".join(json.dumps({"v": value, "text": "ü"}) for value in values))
    assert [row["v"] for row in rows_of(path)] == [None, "1", str(2**53 + 1), "0.5", None]
    assert {row["text"] for row in rows_of(path)} == {"ü"}


def test_lines_that_are_no_objects(tmp_path):
    deep = '{"text": ' + "[" * 100_000
    path = put(tmp_path / "in.jsonl", f'{deep}\n{{"text": "a"}}\n[1]\n7\nnull\n{{}}\n{{"text": "b"}}')
    assert [row["text"] for row in rows_of(path)] == [None, "a", None, None, None, None, "b"]
    assert "no JSON object" in error_of(put(tmp_path / "b.jsonl", "x\ny\n"))
    assert rows_of(put(tmp_path / "none.jsonl", "")) == []
    assert rows_of(put(tmp_path / "blank.jsonl", "\n\n")) == []
    assert "UTF-16" in error_of(put(tmp_path / "wide.jsonl", "{}".encode("utf-16")))


# --- Parquet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_texts_of_every_storage(tmp_path, kind):
    words = (
        pa.array(["a", None, "b", "a", ""]).cast(kind)
        if not pa.types.is_dictionary(kind)
        else pa.array(["a", None, "b", "a", ""]).dictionary_encode()
    )
    pq.write_table(pa.table({"text": words}), tmp_path / "in.parquet", row_group_size=2)
    assert [row["text"] for row in rows_of(tmp_path / "in.parquet")] == ["a", None, "b", "a", ""]


def test_other_columns_come_through(tmp_path):
    columns = {
        "text": pa.array(["a", "b"]),
        "none": pa.nulls(2),
        "bytes": pa.array([b"\xff", None]),
        "view": pa.array([b"\xff", None], pa.binary_view()),
        "nest": pa.array([{"a": [1, None]}, None]),
        "a.b": pa.array([1, 2]),
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    assert rows_of(tmp_path / "in.parquet") == pa.table(columns).to_pylist()


def test_no_row_groups_and_empty_ones(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pq.ParquetWriter(tmp_path / "none.parquet", pa.schema([("text", pa.string())])):
        pass
    assert rows_of(tmp_path / "empty.parquet", tmp_path / "none.parquet") == []
    with pq.ParquetWriter(tmp_path / "some.parquet", pa.schema([("text", pa.string())])) as writer:
        for texts in ([], ["a"], [], ["b", "c"], []):
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}))
    assert [row["text"] for row in rows_of(tmp_path / "some.parquet")] == ["a", "b", "c"]


def test_two_columns_of_one_name_are_told(tmp_path):
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["text", "x", "x"]), tmp_path / "in.parquet")
    assert error_of(tmp_path / "in.parquet") == "ValueError: two of its columns are called 'x'"


# --- several files ------------------------------------------------------------------------------------------------


def test_types_that_differ_become_texts_whatever_the_order(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "id": [7], "x": [{"k": "ü"}], "d": [0.5]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [5], "id": ["s"], "x": [[1]], "d": [2**53 + 1]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": pa.array(["c"]).dictionary_encode()}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.float64())}), tmp_path / "d.parquet")
    put(tmp_path / "e.csv", "id,text\n3,e\n")
    put(tmp_path / "f.csv", "d,text\n")
    paths = [tmp_path / f"{name}" for name in ("a.parquet", "b.parquet", "c.parquet", "d.parquet", "e.csv", "f.csv")]
    for some in (paths, paths[::-1]):
        found = {row["text"]: row for row in rows_of(*some)}
        assert {text: row["id"] for text, row in found.items()} == {"a": "7", "5": "s", "c": None, "e": "3"}
        assert (found["a"]["x"], found["5"]["x"]) == ('{"k": "ü"}', "[1]")
        assert (found["a"]["d"], found["5"]["d"]) == ("0.5", str(2**53 + 1))


def test_a_file_planned_before_is_cut_as_before():
    file = InputFile.load(InputFile("a.csv", 100, 5, index=(8, 50), n_rows=6, n_bytes=100).dump())
    assert [unit.key for unit in slices.cut([file], 4)] == ["00000-0000000000-0000003", "00000-0000000003-0000003"]
