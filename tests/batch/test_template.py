"""Templates: what can make no text is refused before anything starts."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from skllm_ray import batch
from skllm_ray.batch.template import check_formats, check_template
from skllm_ray.batch.work import filled, template_fields
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
    assert filled(template, table.to_pylist()[0], template_fields(template)) == wanted


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
