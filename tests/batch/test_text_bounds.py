"""CSV and JSON lines from the wild: what is kept exactly, and what is refused with its line and what would work."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from skllm_ray.batch.input.files import Scanned, cut, read, scan
from skllm_ray.batch.storage import FileInfo, Folder

BIG = 9007199254740993


def look(*paths: Path) -> tuple[Folder, Scanned]:
    folder = Folder(pafs.LocalFileSystem(), str(paths[0].parent))
    return folder, scan(folder, [FileInfo(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths])


def put(path: Path, *lines: Any, end: str = "\n") -> Path:
    text = end.join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def rows(*paths: Path, unit_rows: int = 3) -> list[dict[str, Any]]:
    """Return all rows as they read back from Parquet parts, which polars reads, too."""
    folder, scanned = look(*paths)
    assert [file.error for file in scanned.files] == [None] * len(paths)
    found = []
    for unit in cut(scanned.files, unit_rows):
        sink = io.BytesIO()
        pq.write_table(read(folder, unit, scanned.schema.names, scanned.schema), sink)
        table = pq.read_table(io.BytesIO(sink.getvalue()))
        assert pl.read_parquet(io.BytesIO(sink.getvalue())).height == table.num_rows
        found += table.to_pylist()
    return found


def error(path: Path) -> str:
    (file,) = look(path)[1].files
    return str(file.error)


# --- JSON lines ---------------------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


@pytest.mark.parametrize("depth", [1, 19, 20, 21, 50, 200, 400])
def test_values_of_any_depth_are_kept(tmp_path, depth):
    given = [{"text": "a", "x": nested(depth)}, {"text": "b", "x": None}, {"text": "c", "x": nested(depth)}]
    found = rows(put(tmp_path / "a.jsonl", *given))
    for row, one in zip(found, given, strict=True):
        value = json.loads(row["x"]) if isinstance(row["x"], str) else row["x"]
        assert {**row, "x": value} == one
    assert isinstance(found[0]["x"], str) == (depth > 20)


def test_a_line_that_nests_beyond_all_use_is_a_row_without_columns(tmp_path):
    found = rows(put(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "x": nested(600)}, {"text": "c"}))
    assert [row["text"] for row in found] == ["a", None, "c"]


@pytest.mark.parametrize("depth", [600, 5000])
def test_a_file_of_lines_that_nest_beyond_all_use_says_so(tmp_path, depth):
    told = error(put(tmp_path / "a.jsonl", '{"text": "a", "x": ' + "[" * depth + "]" * depth + "}"))
    assert "no JSON object in any of its 1 lines (line 1 nests deeper than 500 levels)" in told


def test_objects_keyed_by_data_are_kept_as_texts_in_linear_time(tmp_path):
    lines = [{"text": "a", "m": {f"user{i}": i}, "in": {"deep": [{f"key{i}": {"a": 1}}]}} for i in range(20_000)]
    path = put(tmp_path / "a.jsonl", *lines)
    began = time.process_time()
    folder, scanned = look(path)
    assert time.process_time() - began < 60  # minutes where each key makes a column for all rows
    assert scanned.schema.types == [pa.string()] * 3
    table = read(folder, next(cut(scanned.files, 5)), ["m", "in"], scanned.schema)
    assert [json.loads(v) for v in table.column("m").to_pylist()] == [line["m"] for line in lines[:5]]
    assert json.loads(table.column("in")[0].as_py()) == lines[0]["in"]


def test_too_many_columns_are_told(tmp_path):
    path = put(tmp_path / "a.jsonl", *({"text": "a", f"user{i}": i} for i in range(2001)))
    assert "by line 2,000 its rows have more than 2,000 different keys" in error(path)
    assert "one nested object, which is kept as a text" in error(path)


def test_a_line_without_an_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("skllm_ray.batch.input.jsonl_files.MOST_BYTES", 1000)
    monkeypatch.setattr("skllm_ray.batch.input.text_files.SCAN_BYTES", 300)
    path = put(tmp_path / "a.jsonl", {"text": "a"}, {"text": "x" * 5000})
    assert "line 2 is longer than 1,000 bytes" in error(path)


def test_two_different_values_for_a_key_are_told(tmp_path):
    path = put(tmp_path / "a.jsonl", {"text": "a"}, '{"text": "b", "n": {"id": 1, "id": 2}}')
    assert "line 2 has two different values for the key 'id'" in error(path)
    assert rows(put(tmp_path / "b.jsonl", '{"text": "b", "text": "b"}')) == [{"text": "b"}]


def test_numbers_of_any_size(tmp_path):
    first = '{"i": 1, "b": 18446744073709551616, "f": 1, "n": NaN, "m": 1}'
    second = f'{{"i": {BIG}, "b": -5, "f": 0.5, "n": -Infinity, "m": "x"}}'
    found = rows(put(tmp_path / "a.jsonl", first, second, f'{{"f": {BIG}, "m": true}}'))
    assert [row["i"] for row in found] == [1, BIG, None]
    assert [row["b"] for row in found] == ["18446744073709551616", "-5", None]
    assert [row["f"] for row in found] == ["1", "0.5", str(BIG)]
    assert [str(row["n"]) for row in found] == ["nan", "-inf", "None"]
    assert [row["m"] for row in found] == ["1", "x", "true"]


@pytest.mark.parametrize("size", [7, 100, 10**6])
def test_types_do_not_depend_on_how_the_file_is_cut(tmp_path, monkeypatch, size):
    monkeypatch.setattr("skllm_ray.batch.input.text_files.SCAN_BYTES", size)
    lines = [
        {"a": 1, "n": {"x": [1]}},
        {"a": 0.5, "n": {"y": {}}},
        {"a": None, "n": {"x": [0.5, None]}},
        {"n": {"x": []}},
    ]
    found = rows(put(tmp_path / "a.jsonl", *lines))
    assert [row["a"] for row in found] == [1.0, 0.5, None, None]
    assert [row["n"] for row in found] == [
        {"x": [1.0], "y": None},
        {"x": None, "y": "{}"},
        {"x": [0.5, None], "y": None},
        {"x": [], "y": None},
    ]


def test_types_that_differ_between_files(tmp_path):
    first = put(tmp_path / "a.jsonl", {"i": BIG, "m": {"a": 1}, "t": "x"})
    second = put(tmp_path / "b.jsonl", {"i": 0.5, "m": {"a": 0.5, "b": [1]}, "t": {"a": None}})
    pq.write_table(pa.table({"i": pa.array([7], pa.int32()), "t": [b"z"]}), tmp_path / "c.parquet")
    assert rows(first, second, tmp_path / "c.parquet") == [
        {"i": str(BIG), "m": {"a": 1.0, "b": None}, "t": "x"},
        {"i": "0.5", "m": {"a": 0.5, "b": [1]}, "t": '{"a": null}'},
        {"i": "7", "m": None, "t": "z"},
    ]


def test_whole_floats_go_with_large_whole_numbers(tmp_path):
    first = put(tmp_path / "a.jsonl", {"i": BIG, "l": [BIG]}, {"i": None})
    second = put(tmp_path / "b.jsonl", {"i": 2.0, "l": [3.0, None]})
    assert [(row["i"], row["l"]) for row in rows(first, second)] == [(BIG, [BIG]), (None, None), (2, [3, None])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \r\n"])
def test_ends_of_lines_marks_and_control_characters(tmp_path, end):
    path = put(tmp_path / "a.jsonl", '\ufeff{"text": "a\\u0000b"}', {"text": "c\x85d"}, {"text": ""}, end=end)
    assert [row["text"] for row in rows(path)] == ["a\0b", "c\x85d", ""]


@pytest.mark.parametrize(
    "text",
    [
        '[\n{"text": "a"},\n{"text": "b"},\n{"text": "c"},\n{"text": "d"}\n]',
        '{\n  "text": "a",\n  "n": 1\n}\n',
        '[{"text": "a"}, {"text": "b"}]',
    ],
)
def test_json_that_is_not_in_lines_is_told(tmp_path, text):
    assert "object" in error(put(tmp_path / "a.jsonl", text))
    assert "lines hold" in error(tmp_path / "a.jsonl") or "no JSON object" in error(tmp_path / "a.jsonl")


# --- encodings, both ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le"])
def test_other_encodings_are_told(tmp_path, name, encoding):
    lines = [f"{i},ein schöner Tag" for i in range(9)]
    if name.endswith("jsonl"):
        lines = [json.dumps({"text": line}, ensure_ascii=False) for line in lines]
    (tmp_path / name).write_bytes("\n".join(["id,text"] * name.endswith("csv") + lines).encode(encoding))
    told = error(tmp_path / name)
    assert "UTF-16" in told if encoding.startswith("utf-16") else "iconv -f WINDOWS-1252" in told


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_few_broken_characters_cost_themselves(tmp_path, name):
    lines = [f"schön {i}" for i in range(50)]
    if name.endswith("jsonl"):
        lines = [json.dumps({"text": line}, ensure_ascii=False) for line in lines]
    text = "\n".join(["text"] * name.endswith("csv") + lines).encode().replace(b"\xc3\xb6n 7", b"\xc3n 7")
    (tmp_path / name).write_bytes(text)
    found = [row["text"] for row in rows(tmp_path / name)]
    assert found == [f"schön {i}" if i != 7 else "sch\ufffdn 7" for i in range(50)]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_packed_files_are_told(tmp_path, name):
    import gzip

    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "a"}' * 100))
    assert "compressed (gzip); unpack it first" in error(tmp_path / name)


# --- CSV ----------------------------------------------------------------------------------------------------------


def test_csv_values_are_what_stands_there(tmp_path):
    path = put(tmp_path / "a.csv", "id,text,x", '007,"a\nb, c",NA', '1e5,null,"NULL"', "1.0,,nan", '" a ",,""')
    assert [tuple(row.values()) for row in rows(path)] == [
        ("007", "a\nb, c", "NA"),
        ("1e5", "null", "NULL"),
        ("1.0", None, "nan"),
        (" a ", None, None),
    ]


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_other_separators_are_found_by_the_header(tmp_path, sign):
    path = put(tmp_path / "a.csv", f"id{sign}text", f'1{sign}"a{sign}, b"', f"2{sign}1,5", end="\r\n")
    assert rows(path, unit_rows=1) == [{"id": "1", "text": f"a{sign}, b"}, {"id": "2", "text": "1,5"}]


def test_one_column_has_no_separator(tmp_path):
    assert rows(put(tmp_path / "a.csv", "text", "a;b", '"a,b"')) == [{"text": "a;b"}, {"text": "a,b"}]


def test_rows_that_are_too_long_are_told(tmp_path):
    told = error(put(tmp_path / "a.csv", "id,text", "1,good", "2,oh, well"))
    assert "row 2 has 3 fields, and the header 2; fields that hold ',' must stand in quotes" in told
    assert rows(put(tmp_path / "b.csv", "id,text", "1,good,,", "2"))[1] == {"id": "2", "text": None}


def test_what_spreadsheets_put_before_the_header_is_told(tmp_path):
    assert "take that line out" in error(put(tmp_path / "a.csv", "sep=;", "id;text", "1;a"))


def test_a_quote_in_a_row_that_is_too_long_is_told_as_such(tmp_path):
    assert "never closed" in error(put(tmp_path / "a.csv", "text", 'a, "b', "c", '"d'))
