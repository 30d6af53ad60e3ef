"""The report: numbers that pandas counts too, and a page that holds whatever a row holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.tools.report import write_report
from skllm_ray.batch.tools.report_page import Tally
from skllm_ray.cli import main
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import InputError
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.tasks.base import RowError
from skllm_ray.testing import ChatServer
from tests.batch.worlds import Local, api_classifier, classifier, read, texts, write

VOID = {"meta", "br", "input", "img", "hr", "link"}


@pytest.fixture(autouse=True)
def _world():
    SKLLMConfig.reset()
    skllm_ray.init(local_mode=True)
    ModelCache.clear()
    yield
    ModelCache.clear()
    skllm_ray.shutdown()


class Balance(HTMLParser):
    """Checks that tags close as they open, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(output: Path, to: Path) -> Balance:
    source = Path(write_report(str(output), str(to))).read_text("utf-8")
    found = Balance()
    found.feed(source)
    assert found.open == []
    assert found.scripts == 0
    assert [url for url in re.findall(r'(?:src|href)="([^"]*)"', source) if not url.startswith("#")] == []
    return found


def test_the_page_holds_whatever_a_row_holds(tmp_path):
    rows: list[Any] = texts(300)
    rows[4], rows[5], rows[6], rows[7] = None, "<script>alert('good')</script>", "POISON <b>", "good 🦜 " * 20_000
    source = write(tmp_path / "in.parquet", rows)
    batch.run(classifier(), source, str(tmp_path / "out"), limit=200)
    page = page_of(tmp_path / "out", tmp_path / "r.html")
    assert "200of 300 (66.7%)" in page.text
    assert "100 rows in" in page.text
    assert "POISON <b>" in page.text
    assert "content_filter" in page.text
    assert (tmp_path / "r.html").stat().st_size < 500_000


def test_the_counts_are_those_of_the_table(tmp_path):
    source = write(tmp_path / "in.parquet", [*texts(500), "POISON", None])
    batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=100)
    table = read(tmp_path / "out")
    tally = Tally(
        {"output_prefix": "", "text_column": "text", "text_template": None, "prediction_columns": ["prediction"]}
    )
    import pyarrow.parquet as pq

    for part in (tmp_path / "out").glob("part-*"):
        tally.add(pq.read_table(part))
    assert tally.rows == 502
    assert dict(tally.labels) == table["prediction"].value_counts().to_dict()
    assert dict(tally.errors) == table["error_kind"].value_counts().to_dict()


def test_texts_that_a_template_made_are_shown(tmp_path):
    source = write(tmp_path / "in.parquet", ["good one", "POISON", None], price=[0.5, 2.25, None])
    template = "It says: {text} for {price:.2f} EUR"
    batch.run(classifier(), source, str(tmp_path / "kept"), text_template=template)
    shown = page_of(tmp_path / "kept", tmp_path / "r.html").text
    assert "It says: good one for 0.50 EUR" in shown
    assert "It says: POISON for 2.25 EUR" in shown
    batch.run(classifier(), source, str(tmp_path / "without"), text_template=template, keep_columns=["id"])
    assert "It says" not in page_of(tmp_path / "without", tmp_path / "r.html").text.replace(template, "")


def test_a_job_of_a_model_with_probabilities_shows_them(tmp_path):
    from skllm_ray.classification import ZeroShotGPTClassifier

    clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    batch.run(clf, write(tmp_path / "in.parquet", texts(40)), str(tmp_path / "out"))
    page = page_of(tmp_path / "out", tmp_path / "r.html")
    assert "How sure the model was" in page.text
    assert "The least certain rows" in page.text


def test_a_job_without_a_part_has_a_page_too(tmp_path):
    source = write(tmp_path / "in.parquet", texts(10))
    batch.run(classifier(), source, str(tmp_path / "out"))
    for part in (tmp_path / "out").glob("part-*"):
        part.unlink()
    assert "0of 10" in page_of(tmp_path / "out", tmp_path / "r.html").text


def test_a_folder_without_a_job_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no job"):
        write_report(str(tmp_path))


def test_the_command_writes_the_page(tmp_path):
    source = write(tmp_path / "in.parquet", texts(10))
    batch.run(classifier(), source, str(tmp_path / "out"))
    done = CliRunner().invoke(main, ["report", str(tmp_path / "out"), "--to", str(tmp_path / "r.html")])
    assert (done.exit_code, done.output) == (0, f"wrote {tmp_path / 'r.html'}\n")
    assert pd.read_parquet(tmp_path / "out").shape[0] == 10


def test_rows_without_a_price_are_not_in_the_price_of_a_thousand(tmp_path):
    source = write(tmp_path / "in.parquet", texts(100))
    with ChatServer() as server:
        clf = api_classifier(server)
        batch.run(clf, source, str(tmp_path / "out"), limit=80)
        prices = {"input_price": 1000.0, "output_price": 1000.0}
        done = batch.run(clf, source, str(tmp_path / "out"), **prices)
    each = 1000 * done.total.cost_usd / 20
    assert f"{each:,.4f} per 1,000 rows" in page_of(tmp_path / "out", tmp_path / "r.html").text


def test_control_characters_of_servers_are_written_out(tmp_path):
    odd = "\x1b[31m \x00 \ud800 $x$ [/red]"

    class Odd(Local):
        script = staticmethod(lambda request: RowError("bad_request", odd))

    clf = Odd(on_error="coerce").fit(None, ["good", "\x07bad"])
    batch.run(clf, write(tmp_path / "in.parquet", texts(20)), str(tmp_path / "out"))
    page = page_of(tmp_path / "out", tmp_path / "r.html")
    assert "\\x1b[31m" in page.text
    assert not set("\x1b\x00\x07") & set((tmp_path / "r.html").read_text("utf-8"))
