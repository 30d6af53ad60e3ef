"""A column has one type in all files, and every value an equal in it."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from pandas.core.arrays.arrow.extension_types import ArrowPeriodType

from skllm_ray.batch.input import files
from skllm_ray.batch.input.exact import converted
from skllm_ray.batch.input.extensions import stored
from skllm_ray.batch.input.files import Scanned, cut, read, scan
from skllm_ray.batch.input.json_types import json_array
from skllm_ray.batch.output.manifest import read_schema, schema_text
from skllm_ray.batch.storage import FileInfo, Folder

BIG = 9007199254740993
FAR = [datetime(1000, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)]


def put(folder: Path, *columns: Any, **options: Any) -> list[Path]:
    """Write each column to a file of its own."""
    paths = []
    for i, column in enumerate(columns):
        table = column if isinstance(column, pa.Table) else pa.table({"v": column})
        paths.append(folder / f"{i}.parquet")
        pq.write_table(table, paths[-1], **options)
    return paths


def look(paths: Sequence[Path], **options: Any) -> tuple[Folder, Scanned]:
    folder = Folder(pafs.LocalFileSystem(), str(paths[0].parent))
    infos = [FileInfo(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return folder, scan(folder, infos, **options)


def parts(folder: Folder, scanned: Scanned, unit_rows: int = 3) -> list[pa.Table]:
    """Return what a job reads, by way of the manifest and a Parquet part."""
    assert [file.error for file in scanned.files] == [None] * len(scanned.files)
    schema = read_schema(schema_text(scanned.schema))
    found = []
    for unit in cut(scanned.files, unit_rows):
        table = read(folder, unit, schema.names, schema)
        sink = io.BytesIO()
        pq.write_table(pa.table(table.columns, schema=pa.schema([stored(field) for field in schema])), sink)
        found.append(pq.read_table(io.BytesIO(sink.getvalue())))
    return found


def job(*columns: Any, folder: Path, **options: Any) -> tuple[pa.DataType, list[Any]]:
    """Return the type of a column that is given as several files hold it, and all values."""
    where, scanned = look(put(folder, *columns, **options))
    assert not scanned.clashes
    found = parts(where, scanned)
    return scanned.schema.field(0).type, [v for table in found for v in table.column(0).to_pylist()]


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "kind", "wanted"),
    [
        ([pa.array([1, None]), pa.array([0.5])], "double", [1.0, None, 0.5]),
        ([pa.array([BIG]), pa.array([0.5])], "string", [str(BIG), "0.5"]),
        ([pa.array([BIG]), pa.array([2.0, None])], "int64", [BIG, 2, None]),
        ([pa.array([BIG]), pa.array([-0.0])], "string", [str(BIG), "-0"]),
        ([pa.array([BIG]), pa.array([float("nan")])], "string", [str(BIG), "nan"]),
        ([pa.array([1], pa.uint64()), pa.array([-1])], "int64", [1, -1]),
        ([pa.array([2**64 - 1], pa.uint64()), pa.array([1])], "uint64", [2**64 - 1, 1]),
        ([pa.array([2**64 - 1], pa.uint64()), pa.array([-1])], "decimal128(20, 0)", [2**64 - 1, -1]),
        ([pa.array([1], pa.uint32()), pa.array([-1], pa.int32())], "int64", [1, -1]),
        ([pa.array([200], pa.uint8()), pa.array([-1], pa.int8())], "int16", [200, -1]),
        ([pa.array([0.1], pa.float32()), pa.array([0.1])], "double", [float(np.float32(0.1)), 0.1]),
        ([pa.array([0.5], pa.float16()), pa.array([7], pa.int8())], "double", [0.5, 7.0]),
        ([pa.array([Decimal("1.50")]), pa.array([10**15])], "decimal128(21, 2)", [Decimal("1.50"), 10**15]),
        (
            [pa.array([Decimal("1.5")]), pa.array([Decimal("1.2345")])],
            "decimal128(5, 4)",
            [Decimal("1.5"), Decimal("1.2345")],
        ),
        ([pa.array([Decimal("1")], pa.decimal128(38, 37)), pa.array([7])], "decimal128(38, 37)", [1, 7]),
        ([pa.array([Decimal("1")], pa.decimal128(38, 37)), pa.array([70])], "string", ["1." + "0" * 37, "70"]),
        ([pa.array([Decimal("0.1")]), pa.array([0.1])], "string", ["0.1", "0.1"]),
        (
            [pa.array([Decimal("0.1")], pa.decimal256(50, 1)), pa.array([Decimal("2")])],
            "decimal128(38, 1)",
            [Decimal("0.1"), 2],
        ),
        ([pa.array([True]), pa.array([1])], "string", ["true", "1"]),
        ([pa.array([True]), pa.array(["x"])], "string", ["true", "x"]),
        ([pa.nulls(1), pa.array([1])], "int64", [None, 1]),
        ([pa.array([], pa.string()), pa.array([1])], "int64", [1]),
    ],
)
def test_numbers_are_exact_or_texts(tmp_path, columns, kind, wanted):
    for i, some in enumerate((columns, columns[::-1])):
        folder = tmp_path / str(i)
        folder.mkdir()
        found, values = job(*some, folder=folder)
        assert str(found) == kind
        assert values in (wanted, wanted[1:] + wanted[:1], wanted[2:] + wanted[:2])


def test_bounds_come_from_the_footers_alone_where_they_tell(tmp_path, monkeypatch):
    paths = put(tmp_path, pa.array([BIG, 5]), pa.array([0.5]), pa.array([7], pa.uint64()))
    monkeypatch.setattr(files, "_values", lambda *_: pytest.fail("values were read"))
    _, scanned = look([paths[0], paths[2]])
    assert scanned.schema.types == [pa.int64()]
    _, scanned = look([paths[1], paths[2]])
    assert scanned.schema.types == [pa.float64()]


def test_files_without_statistics_are_looked_into(tmp_path):
    found = job(pa.array([1, BIG]), pa.array([0.5]), folder=tmp_path, write_statistics=False, row_group_size=1)
    assert found == (pa.string(), ["1", str(BIG), "0.5"])


# --- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ([pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))], "timestamp[ns]"),
        ([pa.array(FAR, pa.timestamp("us")), pa.array([2000], pa.timestamp("ns"))], "timestamp[us]"),
        ([pa.array(FAR, pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))], "string"),
        (
            [pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("us", "Asia/Tokyo"))],
            "timestamp[us, tz=UTC]",
        ),
        ([pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("us"))], "string"),
        ([pa.array([date(2026, 1, 1)]), pa.array([1], pa.timestamp("us"))], "timestamp[us]"),
        ([pa.array([date(2026, 1, 1)]), pa.array(["x"])], "string"),
        ([pa.array([1], pa.time32("s")), pa.array([1], pa.time64("ns"))], "time64[ns]"),
        ([pa.array([1], pa.time32("ms")), pa.array([1], pa.time64("us"))], "time64[us]"),
        ([pa.array([1], pa.duration("ms")), pa.array([1], pa.duration("ns"))], "duration[ns]"),
        ([pa.array([2**62], pa.duration("ms")), pa.array([1], pa.duration("ns"))], "string"),
        ([pa.array([1], pa.duration("ms")), pa.array(["x"])], "string"),
    ],
)
def test_times_of_every_unit(tmp_path, columns, kind):
    found, values = job(*columns, folder=tmp_path)
    assert str(found) == kind
    if kind != "string":
        assert values == [v for column in columns for v in column.cast(found).to_pylist()]


def test_texts_of_times_tell_them(tmp_path):
    beyond = pa.array([2**60], pa.timestamp("ms"))
    zoned = pa.array([datetime(2026, 1, 1, 12, tzinfo=UTC)], pa.timestamp("s", "Europe/Berlin"))
    _, values = job(
        beyond, zoned, pa.array([3], pa.duration("ms")), pa.array([2**31 - 1], pa.date32()), folder=tmp_path
    )
    assert values == [
        str(np.datetime64(2**60, "ms")).replace("T", " "),
        "2026-01-01 12:00:00.000Z",
        "3 ms",
        "5881580-07-11",
    ]


def test_far_dates_in_96_bits_are_what_spark_wrote(tmp_path):
    near = datetime(1969, 12, 31, 23, 59, 59, 1)
    column = pa.array([*FAR, None, near], pa.timestamp("us"))
    table = pa.table({"v": column, "l": pa.array([[t] for t in column.to_pylist()], pa.list_(pa.timestamp("us")))})
    folder, scanned = look(put(tmp_path, table, use_deprecated_int96_timestamps=True, row_group_size=2))
    assert scanned.schema.types == [pa.timestamp("us"), pa.list_(pa.timestamp("us"))]
    found = pa.concat_tables(parts(folder, scanned))
    assert found.column("v").to_pylist() == [*FAR, None, near]
    assert found.column("l").to_pylist() == [[FAR[0]], [FAR[1]], [None], [near]]


def test_nanoseconds_in_96_bits_are_kept(tmp_path):
    fine = pa.array([1_000_000_001, None, -1], pa.timestamp("ns"))
    table = pa.table({"v": fine, "w": fine.fill_null(0).cast(pa.int64()).cast(pa.timestamp("ns"))})
    folder, scanned = look(put(tmp_path, table, use_deprecated_int96_timestamps=True))
    assert scanned.schema.types == [pa.timestamp("ns")] * 2
    assert pa.concat_tables(parts(folder, scanned, 1)).column("v").cast(pa.int64()).to_pylist() == [
        1_000_000_001,
        None,
        -1,
    ]
    both = put(tmp_path, fine, pa.array(FAR, pa.timestamp("us")), use_deprecated_int96_timestamps=True)
    folder, scanned = look(both)
    assert scanned.schema.types == [pa.string()]
    assert [v for table in parts(folder, scanned) for v in table.column(0).to_pylist()] == [
        "1970-01-01 00:00:01.000000001",
        None,
        "1969-12-31 23:59:59.999999999",
        "1000-01-01 00:00:00.000000",
        "9999-12-31 23:59:59.999999",
    ]


# --- texts, bytes, nested -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "kind", "wanted"),
    [
        ([pa.array(["é"]), pa.array([b"\xc3\xa9"])], "string", ["é", "é"]),
        ([pa.array(["é"]), pa.array([b"\xff"])], "binary", ["é".encode(), b"\xff"]),
        ([pa.array([b"ab"], pa.binary(2)), pa.array([b"abc"], pa.binary(3))], "binary", [b"ab", b"abc"]),
        ([pa.array(["a"], pa.large_string()), pa.array(["b"], pa.string_view())], "large_string", ["a", "b"]),
        ([pa.array(["a"]).dictionary_encode(), pa.array([5])], "string", ["a", "5"]),
        ([pa.array([[1], None]), pa.array([[0.5]])], "list<element: double>", [[1.0], None, [0.5]]),
        ([pa.array([[BIG]]), pa.array([[0.5]])], "list<element: string>", [[str(BIG)], ["0.5"]]),
        (
            [pa.array([[1, 2], None], pa.list_(pa.int64(), 2)), pa.array([[3]])],
            "list<element: int64>",
            [[1, 2], None, [3]],
        ),
        (
            [pa.array([[1, 2], None], pa.list_(pa.int32(), 2)), pa.array([[3, 4]], pa.list_(pa.int64(), 2))],
            "fixed_size_list<element: int64>[2]",
            [[1, 2], None, [3, 4]],
        ),
        (
            [pa.array([{"a": 1}]), pa.array([{"b": "x"}, None])],
            "struct<a: int64, b: string>",
            [{"a": 1, "b": None}, {"a": None, "b": "x"}, None],
        ),
        ([pa.array([{"a": BIG}]), pa.array([{"a": 0.5}])], "struct<a: string>", [{"a": str(BIG)}, {"a": "0.5"}]),
        (
            [
                pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
                pa.array([[("k", 0.5)]], pa.map_(pa.string(), pa.float64())),
            ],
            "map<string, double>",
            [[("k", 1.0)], None, [("k", 0.5)]],
        ),
        ([pa.array([{"a": [1]}]), pa.array([7])], "string", ['{"a": [1]}', "7"]),
        (
            [pa.array([{"a": [datetime(2026, 1, 1)], "b": Decimal("1.5"), "c": b"x"}]), pa.array([7])],
            "string",
            ['{"a": ["2026-01-01 00:00:00.000000"], "b": "1.5", "c": "x"}', "7"],
        ),
    ],
)
def test_texts_bytes_and_what_is_nested(tmp_path, columns, kind, wanted):
    found, values = job(*columns, folder=tmp_path)
    assert (str(found), values) == (kind, wanted)


def test_bytes_that_are_no_text_go_with_texts_alone(tmp_path):
    _, scanned = look(put(tmp_path, pa.array([b"\xff"]), pa.array([1])))
    assert "binary" in scanned.clashes["v"]
    assert "int64" in scanned.clashes["v"]


def test_small_dictionaries_do_not_overflow(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    words = [pa.array([f"{letter}{i}" for i in range(100)]).dictionary_encode().cast(kind) for letter in "ab"]
    folder, scanned = look(put(tmp_path, *words))
    assert scanned.schema.types == [pa.dictionary(pa.int32(), pa.string())]
    found = [table.column(0) for table in parts(folder, scanned, 100)]
    assert [v for column in found for v in column.to_pylist()] == [
        f"{letter}{i}" for letter in "ab" for i in range(100)
    ]


# --- extension types ----------------------------------------------------------------------------------------------


def test_uuids_go_with_texts_as_texts(tmp_path):
    uuids = pa.array([b"0123456789abcdef", None], pa.uuid())
    kind, values = job(uuids, folder=tmp_path)
    assert (kind, values[0].bytes) == (pa.uuid(), b"0123456789abcdef")
    kind, values = job(uuids, pa.array(["x"]), folder=tmp_path)
    assert (kind, values) == (pa.string(), ["30313233-3435-3637-3839-616263646566", None, "x"])


@pytest.mark.parametrize("known", [False, True])
def test_extension_types_inside_of_others(tmp_path, known):
    with suppress(pa.ArrowKeyError):  # whether this process knows them is of no matter
        pa.unregister_extension_type("pandas.period")
    if known:
        pa.register_extension_type(ArrowPeriodType("D"))
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef", None], pa.binary(16)))
    text = "30313233-3435-3637-3839-616263646566"
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), uuids)
    assert job(lists, pa.array([["x"]]), folder=tmp_path)[1] == [[text, None], ["x"]]
    nulls = pa.ListArray.from_arrays(pa.array([0, 0, 2], pa.int32()), uuids, mask=pa.array([True, False]))
    assert job(nulls, pa.array(["x"]), folder=tmp_path)[1] == [None, f'["{text}", null]', "x"]
    assert job(lists, pa.array(["x"]), folder=tmp_path)[1] == [f'["{text}", null]', "x"]

    def periods(at: int, freq: bytes) -> pa.Array:
        told = {b"ARROW:extension:name": b"pandas.period", b"ARROW:extension:metadata": b'{"freq": "%s"}' % freq}
        return pa.StructArray.from_arrays([pa.array([at])], fields=[pa.field("p", pa.int64(), metadata=told)])

    months, days = periods(672, b"M"), periods(20454, b"D")
    assert job(months, months, folder=tmp_path)[1] == [{"p": 672}, {"p": 672}]
    assert job(months, days, folder=tmp_path)[1] == [{"p": "2026-01"}, {"p": "2026-01-01"}]
    assert job(months, pa.array([7]), folder=tmp_path)[1] == ['{"p": "2026-01"}', "7"]


def tensors(shape: list[int], n: int = 2) -> pa.Array:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(range(n * int(np.prod(shape)))), int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int64(), shape), flat)


def test_tensors_of_two_shapes_become_lists_in_lists(tmp_path):
    kind, _ = job(tensors([2, 3]), tensors([2, 3]), folder=tmp_path)
    assert kind == pa.fixed_shape_tensor(pa.int64(), [2, 3])
    kind, values = job(tensors([2, 3]), tensors([3, 1]), folder=tmp_path)
    assert kind == pa.list_(pa.list_(pa.int64()))
    assert values == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]], [[0], [1], [2]], [[3], [4], [5]]]


def test_pandas_periods_intervals_and_categories(tmp_path):
    frames = [
        pd.DataFrame(
            {
                "p": pd.period_range("2026-01", periods=2, freq="M"),
                "i": pd.interval_range(0, 2),
                "c": pd.Categorical(["a", "b"]),
            }
        ),
        pd.DataFrame(
            {
                "p": pd.period_range("2026-01-01", periods=2, freq="D"),
                "i": pd.interval_range(0.0, 2.0, closed="left"),
                "c": pd.Categorical(["b", "c"]),
            }
        ),
    ]
    for i, frame in enumerate(frames):
        frame.to_parquet(tmp_path / f"{i}.parquet")
    folder, scanned = look([tmp_path / "0.parquet"])
    (tmp_path / "out").mkdir()
    pq.write_table(
        read(folder, next(cut(scanned.files, 5)), ["p", "i", "c"], scanned.schema), tmp_path / "out/p.parquet"
    )
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out"), frames[0])
    folder, scanned = look([tmp_path / "0.parquet", tmp_path / "1.parquet"])
    found = pa.concat_tables(parts(folder, scanned)).to_pydict()
    assert found["p"] == ["2026-01", "2026-02", "2026-01-01", "2026-01-02"]
    assert found["i"] == ["(0, 1]", "(1, 2]", "[0, 1)", "[1, 2)"]
    assert found["c"] == ["a", "b", "b", "c"]


def test_a_process_without_pandas_sees_the_same_types(tmp_path):
    pd.DataFrame({"p": pd.period_range("2026-01", periods=2, freq="M")}).to_parquet(tmp_path / "a.parquet")
    _, scanned = look([tmp_path / "a.parquet"])
    text = """
import sys
import pyarrow.fs as pafs
from skllm_ray.batch.input.files import cut, read, scan
from skllm_ray.batch.output.manifest import read_schema
from skllm_ray.batch.storage import FileInfo, Folder
for name in [name for name in sys.modules if name.startswith("pandas.core.arrays.arrow")]:
    del sys.modules[name]
import pyarrow as pa
for name in ("pandas.period", "pandas.interval"):
    try:
        pa.unregister_extension_type(name)
    except KeyError:
        pass
folder = Folder(pafs.LocalFileSystem(), sys.argv[1])
files = scan(folder, [FileInfo(sys.argv[1] + "/a.parquet", int(sys.argv[3]), 0)]).files
table = read(folder, next(cut(files, 9)), ["p"], read_schema(sys.argv[2]))
print(table.schema.field(0).type, table.column(0).to_pylist())
"""
    told = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path), schema_text(scanned.schema), str(scanned.files[0].size)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["int64", "[672,", "673]"]


def test_unknown_extensions_that_differ_are_told(tmp_path):
    def shapes(crs: str) -> pa.Table:
        told = {
            b"ARROW:extension:name": b"geoarrow.wkb",
            b"ARROW:extension:metadata": json.dumps({"crs": crs}).encode(),
        }
        return pa.table([pa.array([b"\x01"])], schema=pa.schema([pa.field("g", pa.binary(), metadata=told)]))

    folder, scanned = look(put(tmp_path, shapes("a"), shapes("a")))
    assert not scanned.clashes
    assert parts(folder, scanned)[0].schema.field("g").metadata[b"ARROW:extension:name"] == b"geoarrow.wkb"
    _, scanned = look(put(tmp_path, shapes("a"), shapes("b")))
    assert "geoarrow.wkb" in scanned.clashes["g"]


# --- any types ----------------------------------------------------------------------------------------------------


WORDS = ["", "é", "NaN", "🦜", "null", '{"a": 1}']


def _random_column(draw: random.Random, level: int = 0) -> pa.Array:
    n = draw.randrange(1, 6)

    def some(value: Any) -> list[Any]:
        return [None if draw.random() < 0.2 else value() for _ in range(n)]

    moment = lambda: datetime(2026, 1, 1) + timedelta(microseconds=draw.randrange(-(10**15), 10**15))  # noqa: E731
    whole = lambda: draw.choice([draw.randrange(-128, 128), draw.randrange(-(2**63), 2**63), 0])  # noqa: E731
    makers = [
        lambda: pa.array(some(whole), pa.int64()),
        lambda: pa.array(some(lambda: draw.randrange(256)), pa.uint8()),
        lambda: pa.array(some(lambda: draw.randrange(2**64)), pa.uint64()),
        lambda: pa.array(some(lambda: draw.choice([0.1, 2.0, -0.0, 1e300, float("inf")])), pa.float64()),
        lambda: pa.array(some(lambda: 0.5), pa.float32()),
        lambda: pa.array(some(lambda: draw.random() < 0.5), pa.bool_()),
        lambda: pa.array(some(lambda: draw.choice(WORDS)), draw.choice([pa.string(), pa.large_string()])),
        lambda: pa.array(some(lambda: b"\xc3\xa9"), pa.binary()),
        lambda: pa.array(some(moment), pa.timestamp(draw.choice(["us", "ns"]), draw.choice([None, "UTC"]))),
        lambda: pa.array(some(lambda: moment().date()), pa.date32()),
        lambda: pa.array(some(lambda: time(1, 2, 3)), draw.choice([pa.time32("s"), pa.time64("us"), pa.time64("ns")])),
        lambda: pa.array(some(lambda: draw.randrange(10**9)), pa.duration(draw.choice(["ms", "us", "ns"]))),
        lambda: pa.array(
            some(lambda: Decimal(draw.randrange(10**9)).scaleb(-3)), pa.decimal128(draw.randrange(12, 38), 3)
        ),
        lambda: pa.nulls(n),
        lambda: pa.array(some(lambda: draw.choice("ab")), pa.string()).dictionary_encode(),
    ]
    if level < 2 and draw.random() < 0.4:
        inside = _random_column(draw, level + 1)
        mask = pa.array([draw.random() < 0.2 for _ in range(len(inside))])
        if draw.random() < 0.5:
            return pa.StructArray.from_arrays([inside], names=[draw.choice("ab")], mask=mask)
        return pa.ListArray.from_arrays(pa.array(range(len(inside) + 1), pa.int32()), inside, mask=mask)
    return draw.choice(makers)()


def _same(value: Any, found: Any) -> bool:
    """Return whether a value in the output is one of the input: the same, or a text or a wider form that tells it."""
    if value is None or found is None:
        return value is found or (isinstance(found, dict) and not any(found.values()) and value is None)
    if isinstance(value, list) and isinstance(found, list):
        return len(value) == len(found) and all(map(_same, value, found))
    if isinstance(value, dict) and isinstance(found, dict):
        return all(_same(value.get(name), one) for name, one in found.items()) and set(value) <= set(found)
    if isinstance(value, (list, dict)) and isinstance(found, str):
        return found == "null" or type(json.loads(found)) is type(value)
    if isinstance(value, bool):
        return found is value or found == str(value).lower()
    if isinstance(value, datetime) and isinstance(found, str):
        return pd.Timestamp(found) == pd.Timestamp(value)
    if isinstance(value, timedelta) and isinstance(found, str):
        return pd.Timedelta(found) == pd.Timedelta(value)
    if isinstance(value, bytes) and isinstance(found, str):
        return value.decode() == found
    if isinstance(value, str) and isinstance(found, bytes):
        return value.encode() == found
    if type(value) is date and isinstance(found, datetime):
        return found == datetime.combine(value, time())
    if isinstance(found, str) and not isinstance(value, str):
        return found.startswith(str(value)) or (isinstance(value, float) and value in {float(found), np.float32(found)})
    return bool(value == found)


@pytest.mark.parametrize("seed", range(150))
def test_any_types_in_any_files_keep_every_value(tmp_path, seed):
    draw = random.Random(seed)
    columns = [_random_column(draw) for _ in range(draw.choice([1, 2, 2, 3]))]
    folder, scanned = look(put(tmp_path, *columns, row_group_size=draw.choice([1, 2, 100])))
    assert not scanned.clashes
    tables = parts(folder, scanned, draw.choice([1, 3, 100]))
    assert len({table.schema.field(0).type for table in tables}) == 1
    given = [v for column in columns for v in column.to_pylist()]
    found = [v for table in tables for v in table.column(0).to_pylist()]
    assert len(given) == len(found)
    for value, one in zip(given, found, strict=True):
        assert _same(value, one), (value, one, scanned.schema.types, [column.type for column in columns])


@pytest.mark.parametrize("seed", range(40))
def test_parts_read_back_equal_in_polars_and_pandas(tmp_path, seed):
    draw = random.Random(seed)
    column = _random_column(draw)
    put(tmp_path, column)
    folder, scanned = look([tmp_path / "0.parquet"])
    (part,) = parts(folder, scanned, 100)
    pq.write_table(part, tmp_path / "part.parquet")
    assert pl.read_parquet(tmp_path / "part.parquet").equals(pl.read_parquet(tmp_path / "0.parquet"))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "part.parquet"), pd.read_parquet(tmp_path / "0.parquet"))


def test_what_polars_writes(tmp_path):
    frame = pl.DataFrame(
        {
            "c": pl.Series(["a", "b"], dtype=pl.Categorical),
            "e": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])),
            "s": ["x", None],
            "l": [["x"], None],
            "st": [{"a": "x", "b": [b"1"]}, {"a": "y", "b": None}],
            "a": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)),
            "d": pl.Series([1, 2], dtype=pl.Duration("ms")),
            "t": pl.Series([1, 2], dtype=pl.Time),
            "n": [None, None],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    folder, scanned = look([tmp_path / "a.parquet"])
    (part,) = parts(folder, scanned)
    pq.write_table(part, tmp_path / "part.parquet")
    assert (
        pl.read_parquet(tmp_path / "part.parquet")
        .with_columns(pl.col("c", "e").cast(pl.String))
        .equals(frame.with_columns(pl.col("c", "e").cast(pl.String)))
    )


def test_columns_in_another_order_missing_and_oddly_named(tmp_path):
    first = pa.table({"": [1], "a.b": [1], "a": [{"b": 1}], "Text": ["x"], "text": ["y"]})
    second = pa.table({"text": ["z"], "a": [{"b": 2}], "more": [True]})
    folder, scanned = look(put(tmp_path, first, second))
    found = [row for table in parts(folder, scanned) for row in table.to_pylist()]
    assert found == [
        {"": 1, "a.b": 1, "a": {"b": 1}, "Text": "x", "text": "y", "more": None},
        {"": None, "a.b": None, "a": {"b": 2}, "Text": None, "text": "z", "more": True},
    ]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (pa.array(["7"]), pa.int64()),
        (pa.array(["07"]), pa.date32()),
        (pa.array([True]), pa.int64()),
        (pa.array([1]), pa.bool_()),
        (pa.array([1]), pa.timestamp("us")),
        (pa.array([1], pa.timestamp("us")), pa.int64()),
        (pa.array([datetime(2026, 1, 1, 5)]), pa.date32()),
        (pa.array([1], pa.timestamp("us")), pa.timestamp("us", "UTC")),
        (pa.array([date(2026, 1, 1)]), pa.timestamp("us", "UTC")),
        (pa.array([2.5]), pa.int64()),
        (pa.array([-0.0]), pa.int64()),
        (pa.array([0.5]), pa.decimal128(20, 2)),
        (pa.array([Decimal("0.1")]), pa.float64()),
        (pa.array([Decimal("1.5")]), pa.int64()),
        (pa.array([BIG]), pa.float64()),
        (pa.array([{"a": 1, "b": 2}]), pa.struct([("a", pa.int64())])),
        (pa.array([[1, 2, 3]]), pa.list_(pa.int64(), 2)),
        (pa.array([b"\xff"]), pa.string()),
        (pa.array([[b"\xff"]]), pa.string()),
    ],
    ids=str,
)
def test_what_has_no_equal_is_refused(given, kind):
    """Arrow's own casts, and its way from Python's values, let most of these through."""
    with pytest.raises(ValueError, match=r"."):
        converted(given, kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2.5, pa.int64()),
        (-0.0, pa.int64()),
        ([2.5], pa.list_(pa.int64())),
        (True, pa.float64()),
        (5, pa.timestamp("us")),
        (5, pa.date32()),
        ("x", pa.int64()),
        ({"a": 1}, pa.list_(pa.int64())),
        (BIG, pa.float64()),
        (0.1, pa.decimal128(20, 2)),
    ],
    ids=str,
)
def test_json_values_that_have_no_equal_are_refused(value, kind):
    with pytest.raises(ValueError, match=r"."):
        json_array([None, value], kind)


def test_a_file_that_is_mended_later_does_not_change_the_columns(tmp_path):
    """Its values were not looked at when the types were decided."""
    put(tmp_path, pa.array([1]))
    folder, scanned = look([tmp_path / "0.parquet"])
    for text in ('{"v": 2.5}', '{"v": "x"}', '{"v": true}'):
        (tmp_path / "b.jsonl").write_text(text)
        later = look([tmp_path / "b.jsonl"])[1].files
        with pytest.raises(ValueError, match="int64"):
            read(folder, next(cut(later, 9)), ["v"], scanned.schema)
    (tmp_path / "b.csv").write_text("v\n07\n")
    later = look([tmp_path / "b.csv"])[1].files
    with pytest.raises(ValueError, match="column 'v' of type string holds a value that has no equal in int64"):
        read(folder, next(cut(later, 9)), ["v"], scanned.schema)


def test_files_of_spark_are_read_once(tmp_path):
    table = pa.table({"v": pa.array(FAR, pa.timestamp("us"))}).replace_schema_metadata(
        {"org.apache.spark.version": "3.5.0"}
    )
    folder, scanned = look(put(tmp_path, table, use_deprecated_int96_timestamps=True))
    assert parts(folder, scanned)[0].column("v").to_pylist() == FAR
