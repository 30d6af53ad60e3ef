"""Templates: what can make no text is refused before anything starts."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from skllm_ray import batch
from skllm_ray.batch.input.text_template import check_formats, check_template, texts_of
from skllm_ray.errors import ConfigurationError
from tests.batch.worlds import classifier, write

DAY = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{text}: {price:.2f} EUR", "good: 1.50 EUR"),
        ("{text!r:>8}|{n:,}", "  'good'|1,234"),
        ("{when:%d.%m.%Y} {exact:.1f} {yes}", "01.05.2026 2.5 True"),
        ("{none:.2f}{none!r}{text:.2}", "go"),
        ("{{{text}}} {list} {nest}", "{good} [1] {'a': 1}"),
        ("{none:.2f}", None),
    ],
)
def test_columns_are_formatted_as_what_they_are(template, wanted):
    row = {"text": "good", "price": 1.5, "n": 1234, "when": DAY, "exact": Decimal("2.5"), "yes": True, "none": None}
    table = pa.Table.from_pylist([{**row, "list": [1], "nest": {"a": 1}}])
    table = table.set_column(table.column_names.index("none"), "none", pa.array([None], pa.float64()))
    check_template(template)
    check_formats(template, table.schema)
    assert texts_of(table, None, template) == [wanted]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text", "is no template"),
        ("none", "must name columns"),
        ("{}", "must name columns"),
        ("{text.upper}", "must name columns"),
        ("{text:{width}}", "has a column within a format"),
        ("{text:.2f}", "'text' is of type string, which takes no format '.2f'"),
        ("{n:%Y}", "'n' is of type int64, which takes no format"),
        ("{list:.1}", "'list' is of type list"),
        ("{bytes}", "'bytes' is of type binary, which has no text"),
        ("{word:.2f}", "'word' is of type dictionary"),
        ("{n:c}", "'n' is of type int64, which takes no format 'c'"),
        ("{text:>2000000000}", "the format of 'text' asks for more than 10,000 letters"),
        ("{text:.99999}", "the format of 'text' asks for more than 10,000 letters"),
        ("{text:>٢٠٠٠٠٠٠٠٠٠}", "the format of 'text' asks for more than 10,000 letters"),
        ("{text:" + "x" * 20_000 + "}", "the format of 'text' asks for more than 10,000 letters"),
        ("{text}" * 1001, "names 1,001 columns"),
        ("{text[0]}", "must name columns"),
        ("{text.__class__}", "must name columns"),
        ("{text!r.__class__}", "is no template"),
        ("{0}", "must name columns"),
    ],
)
def test_what_can_make_no_text_is_refused_at_the_start(tmp_path, template, message):
    more = {"n": [1], "list": [["a"]], "bytes": [b"a"], "word": pa.array(["a"]).dictionary_encode()}
    source = write(tmp_path / "in.parquet", ["good"], **more)
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        batch.run(classifier(), source, str(tmp_path / "out"), text_template=template)
    assert not list((tmp_path).glob("out/part-*"))


def test_csv_is_told_to_have_texts_alone(tmp_path):
    (tmp_path / "in.csv").write_text("text,price\ngood,1.5\n")
    with pytest.raises(ConfigurationError, match="CSV has texts alone"):
        batch.run(classifier(), str(tmp_path / "in.csv"), str(tmp_path / "out"), text_template="{price:.2f}")


def test_times_beyond_python_s_years_are_written_out():
    far = pa.array([253402300800, 0, None], pa.timestamp("s"))
    table = pa.table({"when": far, "text": ["a", "b", "c"], "day": pa.array([2932897, 0, None], pa.date32())})
    check_formats("{when:%Y} {day} {text}", table.schema)
    assert texts_of(table, None, "{when:%Y} {day} {text}") == [
        "10000-01-01 00:00:00 10000-01-01 a",
        "1970 1970-01-01 b",
        "  c",
    ]


def test_extension_types_are_told_as_texts():
    uuids = pa.array([b"0123456789abcdef"], pa.uuid())
    told = {b"ARROW:extension:name": b"pandas.period", b"ARROW:extension:metadata": b'{"freq": "M"}'}
    field = pa.field("p", pa.int64(), metadata=told)
    table = pa.table([uuids, pa.array([672])], schema=pa.schema([pa.field("u", pa.uuid()), field]))
    check_formats("{u:.8} {p:>8}", table.schema)
    assert texts_of(table, None, "{u:.8} {p:>8}") == ["30313233  2026-01"]
    shapes = field.with_metadata({b"ARROW:extension:name": b"geoarrow.wkb"})
    with pytest.raises(ConfigurationError, match="which has no text"):
        check_formats("{p}", pa.schema([shapes]))
