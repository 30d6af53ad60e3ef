"""The report: numbers that pandas counts too, and a page that holds whatever a row holds."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.metrics import f1_score

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.input.slices import Unit
from skllm_ray.batch.output.timeline import Event, first_row_parts, read_timeline, save_timeline
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.batch.tools.explorer import RowSample
from skllm_ray.batch.tools.part_rows import PartColumns, PartRows
from skllm_ray.batch.tools.report import write_report
from skllm_ray.batch.tools.tally import Tally
from skllm_ray.classification import MultiLabelZeroShotGPTClassifier
from skllm_ray.cli import main
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError, SkllmRayWarning
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
        self.scripts += tag == "script" and ("type", "application/json") not in attrs
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
    assert found.scripts <= 1
    assert [url for url in re.findall(r'(?:src|href)="([^"]*)"', source) if not url.startswith("#")] == []
    return found


def test_the_page_holds_whatever_a_row_holds(tmp_path):
    rows: list[Any] = texts(300)
    rows[4], rows[5], rows[6], rows[7] = None, "<script>alert('good')</script>", "POISON <b>", "good 🦜 " * 20_000
    source = write(tmp_path / "in.parquet", rows)
    batch.run(classifier(), source, str(tmp_path / "out"), limit=200)
    page = page_of(tmp_path / "out", tmp_path / "r.html")
    assert "200of 300 (66.7%) are done" in page.text
    assert "Not done yet: 100 rows in 1 part." in page.text
    assert "POISON <b>" in page.text
    assert "content_filter" in page.text
    assert (tmp_path / "r.html").stat().st_size < 500_000


def test_the_counts_are_those_of_the_table(tmp_path):
    source = write(tmp_path / "in.parquet", [*texts(500), "POISON", None])
    batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=100)
    table = read(tmp_path / "out")
    columns = PartColumns("", "text", None, "prediction", ("bad", "good"))
    tally = Tally(columns)
    for part in (tmp_path / "out").glob("part-*"):
        tally.add(PartRows(pq.read_table(part), columns))
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


def rows_in(page: Path) -> dict[str, Any]:
    """Return the rows that a page's script reads."""
    source = page.read_text("utf-8")
    return json.loads(re.search(r'<script type="application/json" id="rows">(.*?)</script>', source, re.DOTALL)[1])


def labelled(tmp_path: Path, truth: list[Any], rows: list[Any] | None = None, **params: Any) -> Path:
    rows = rows or texts(len(truth))
    source = write(tmp_path / "in.parquet", rows, truth=truth)
    batch.run(classifier(), source, str(tmp_path / "out"), **params)
    return tmp_path / "out"


def test_answers_are_counted_against_the_truth_as_scikit_learn_does(tmp_path):
    chance = random.Random(1)
    truth = [chance.choice(["good", "bad", "bad", None]) for _ in range(300)]
    rows = texts(300)
    rows[7] = "POISON"
    output = labelled(tmp_path, truth, rows, unit_rows=90)
    table = read(output)
    table = table[table["truth"].notna()]
    answers = table["prediction"].where(table["valid"], "no answer").fillna("no answer")
    to = Path(write_report(str(output), str(tmp_path / "r.html"), label_column="truth"))
    page = Balance()
    page.feed(to.read_text("utf-8"))
    assert f"{(answers == table['truth']).mean():.1%}of {len(table):,} rows with a true label" in page.text
    assert f"{f1_score(table['truth'], answers, labels=['bad', 'good'], average='macro'):.1%}macro-F1" in page.text
    assert f"Without a true label, and counted nowhere: {300 - len(table):,} rows." in page.text
    for label in ("good", "bad"):
        hits = ((table["truth"] == label) & (answers == label)).sum()
        assert f'data-truth="{label}" data-answer="{label}">{hits:,}<' in to.read_text("utf-8")


def test_what_a_page_s_rows_say_is_what_the_parts_say(tmp_path):
    truth = ["good", "bad", None, "zebra"] * 30
    rows: list[Any] = [*texts(118), None, "</script><img src=x onerror=alert(1)> good & more\u2028"]
    output = labelled(tmp_path, truth, rows, unit_rows=50)
    with pytest.warns(SkllmRayWarning, match=r"30 of 90 rows have .* no candidate, and count as wrong: 'zebra' \(30\)"):
        to = Path(write_report(str(output), str(tmp_path / "r.html"), label_column="truth"))
    found, table = rows_in(to), read(output).astype(object).where(lambda column: column.notna(), None)
    names = found["names"]
    assert names["extra"] == ["id"]
    assert [cells[0] for cells in found["extra"]] == [str(i) for i in range(120)]
    assert found["row"] == list(range(1, 121))
    assert [None if i < 0 else names["labels"][i] for i in found["answer"]] == table["prediction"].tolist()
    assert [None if i < 0 else names["labels"][i] for i in found["truth"]] == truth
    assert [None if i < 0 else names["errors"][i] for i in found["error"]] == table["error_kind"].tolist()
    right = [-1 if true is None else int(true == one) for true, one in zip(truth, table["prediction"], strict=True)]
    assert found["verdict"] == right
    assert found["text"][-1] == "</script><img src=x onerror=alert(1)> good & more\\u2028"
    source = to.read_text("utf-8")
    assert source.count("</script>") == 2
    assert "so that no answer can be right: 30 rows: &#39;zebra&#39; (30)" in source


def test_nothing_but_the_page_s_own_script_may_run(tmp_path):
    to = Path(write_report(str(labelled(tmp_path, ["good"] * 20)), str(tmp_path / "r.html")))
    source = to.read_text("utf-8")
    code = re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1]
    told = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{told}'" in source
    assert "innerHTML" not in code
    assert "truth" not in rows_in(to)["names"]["extra"][:1]


def test_of_many_rows_the_page_holds_a_sample_in_the_input_s_order(tmp_path):
    output = labelled(tmp_path, ["good"] * 400, unit_rows=60)
    to = Path(write_report(str(output), str(tmp_path / "r.html"), rows=50))
    assert "50 of 400 rows, drawn at random" in to.read_text("utf-8")
    kept = rows_in(to)["row"]
    assert len(kept) == 50
    assert kept == sorted(set(kept))
    assert min(kept) < 100 < 300 < max(kept)
    none = Path(write_report(str(output), str(tmp_path / "r.html"), rows=0))
    assert "<script" not in none.read_text("utf-8")


def test_a_sample_leaves_no_row_out_more_often_than_others():
    columns = PartColumns("", "text", None, "prediction", ("a",))
    names = {"error_kind": pa.string(), "error": pa.string(), "probability": pa.float64(), "valid": pa.bool_()}
    nulls = {name: pa.nulls(100, kind) for name, kind in names.items()}
    table = pa.table({"text": ["x"] * 100, "prediction": ["a"] * 100, **nulls})
    found = RowSample(columns, 1000)
    for number in range(200):
        found.add(Unit("f", 0, 100 * number, 100), PartRows(table, columns), ["text"], None)
    places = np.array(json.loads(found.data())["row"])
    assert len(places) == 1000
    assert np.histogram(places, bins=4, range=(0, 20_000))[0] == pytest.approx([250] * 4, abs=60)


def test_several_labels_are_compared_as_sets(tmp_path):
    clf = MultiLabelZeroShotGPTClassifier(model="gguf::demo", max_labels=2, on_error="coerce")
    clf.fit(None, [["positive", "negative"]])
    truth = ["positive", '["negative"]', "negative, positive", None]
    source = write(tmp_path / "in.parquet", ["I love it!", "It is broken and awful.", "So so.", "Fine."], truth=truth)
    batch.run(clf, source, str(tmp_path / "out"))
    answers = [sorted(filter(None, labels)) for labels in read(tmp_path / "out")["prediction"]]
    true = [["positive"], ["negative"], ["negative", "positive"]]
    right = sum(one == other for one, other in zip(answers, true, strict=False))
    to = Path(write_report(str(tmp_path / "out"), str(tmp_path / "r.html"), label_column="truth"))
    assert f"{right / 3:.1%}" in to.read_text("utf-8")
    assert [rows_in(to)["names"]["labels"][i] for i in rows_in(to)["truth"][:3]] == [
        "positive", "negative", "negative, positive"
    ]  # fmt: skip


def test_a_label_column_that_cannot_be_is_told_with_what_works(tmp_path):
    output = labelled(tmp_path, [" ", None] * 5)
    with pytest.raises(InputError, match=r"no column 'y' of the input; they have: id, text, truth\."):
        write_report(str(output), str(tmp_path / "r.html"), label_column="y")
    with pytest.raises(InputError, match="'truth' is empty in all 10 rows"):
        write_report(str(output), str(tmp_path / "r.html"), label_column="truth")
    with pytest.raises(ConfigurationError, match="rows must be an int of at least 0; got -1"):
        write_report(str(output), str(tmp_path / "r.html"), rows=-1)


def test_texts_that_are_not_in_the_parts_are_explained(tmp_path):
    output = labelled(tmp_path, ["good"] * 10, keep_columns=["id", "truth"])
    page = page_of(output, tmp_path / "r.html")
    assert "The parts do not hold the texts" in page.text
    assert "The least certain rows" not in page.text
    assert "Some rows of each answer" not in page.text


def test_whole_numbers_that_stand_for_labels_meet_their_truth(tmp_path):
    clf = Local(on_error="coerce", label_names=["bad", "good"]).fit(None, [0, 1])
    source = write(tmp_path / "in.parquet", texts(9), truth=[0.0, 1.0, None] * 3)  # as pandas writes a column with gaps
    batch.run(clf, source, str(tmp_path / "out"))
    table = read(tmp_path / "out").dropna(subset=["truth"])
    to = Path(write_report(str(tmp_path / "out"), str(tmp_path / "r.html"), label_column="truth"))
    assert f"{(table['truth'] == table['prediction']).mean():.1%}" in to.read_text("utf-8")
    assert "no candidate" not in to.read_text("utf-8")


def test_when_replicas_came_and_went_is_shown_with_what_the_first_rows_took(tmp_path):
    batch.run(classifier(), write(tmp_path / "in.parquet", texts(100)), str(tmp_path / "out"))
    assert "Replicas" not in page_of(tmp_path / "out", tmp_path / "r.html").text
    told = [(0, "asked"), (0, "asked"), (41, "placed"), (45, "fetched"), (50, "loaded"), (52, "answered")]
    told += [(60, "lost"), (61, "?")]
    output = open_folder(str(tmp_path / "out"), StorageOptions.of(None), {})
    save_timeline(output, [(time.time() + at, "gguf::<b>", what, 1) for at, what in told])
    (tmp_path / "out" / "_skllm_ray" / "timeline" / "0.jsonl").write_text('torn\n[1, "m"]\n')
    assert len(read_timeline(output)) == len(told)
    page = page_of(tmp_path / "out", tmp_path / "r.html")
    assert "Replicas" in page.text
    told_first = "The first rows took 52 s: 41 s waiting for a node, 4 s for the model's files, 5 s loading the model"
    assert f"{told_first}, 2 s for the first block." in " ".join(page.text.split())


def test_replicas_that_never_answered_are_no_part_of_what_the_first_rows_took():
    failed = [(0, "asked"), (1, "placed"), (2, "fetched"), (3, "loaded"), (4, "died")]
    came = [(60, "asked"), (63, "placed"), (64, "fetched"), (66, "loaded"), (67, "answered"), (70, "asked")]
    assert first_row_parts([Event(at, "m", what, 1) for at, what in failed]) == []
    parts = first_row_parts([Event(at, "m", what, 1) for at, what in failed + came])
    assert [seconds for _, seconds in parts] == [3, 1, 2, 1]
    other = Event(62, "another", "asked", 1)
    assert first_row_parts([*(Event(at, "m", what, 1) for at, what in came), other]) == parts


def test_a_model_that_no_provider_charges_for_costs_no_charge(tmp_path):
    from skllm_ray.classification import ZeroShotGPTClassifier

    clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    source = write(tmp_path / "in.parquet", texts(20))
    batch.run(clf, source, str(tmp_path / "out"))
    text = page_of(tmp_path / "out", tmp_path / "r.html").text
    assert "cost, USDno charge" in text
    assert re.search(r"begun \d{4}-\d\d-\d\d \d\d:\d\d UTC", text)
    assert "0.0% of the rows have no result" in text


@pytest.mark.filterwarnings("default::skllm_ray.errors.SkllmRayWarning")
def test_labels_that_the_column_calls_otherwise_are_named(tmp_path):
    source = write(tmp_path / "in.parquet", texts(6), truth=["code b2", "good", "code b2", "bad", "good", "code b2"])
    with ChatServer(lambda _: '{"label": "good"}') as server:
        batch.run(api_classifier(server), source, str(tmp_path / "out"))
    flags = [str(tmp_path / "out"), "--label-column", "truth", "--to", str(tmp_path / "r.html")]
    renamed = ["--renamed-labels", '{"code b2": "good"}']
    found = {}
    for name, more in {"as it is": [], "renamed": renamed}.items():
        done = CliRunner().invoke(main, ["report", *flags, *more])
        assert done.exit_code == 0, done.output
        assert ("count as wrong: 'code b2' (3). If labels were renamed" in " ".join(done.output.split())) == (not more)
        found[name] = (tmp_path / "r.html").read_text()
    assert "code b2" in found["as it is"]
    assert "code b2" not in found["renamed"].replace(str(tmp_path), "")
    assert "83.3%" in found["renamed"] and "83.3%" not in found["as it is"]


@pytest.mark.parametrize("renamed", ["[1]", '"x"', '{"a": 1}', '{"a": null}'])
def test_renamed_labels_that_cannot_be_are_told_with_what_works(tmp_path, renamed):
    flags = [str(tmp_path / "out"), "--label-column", "truth", "--to", str(tmp_path / "r.html")]
    done = CliRunner().invoke(main, ["report", *flags, "--renamed-labels", renamed])
    assert done.exit_code == 1
    assert "renamed_labels must map what the column holds to labels" in done.output
    done = CliRunner().invoke(main, ["report", str(tmp_path / "out"), "--renamed-labels", '{"a": "b"}'])
    assert "renamed_labels is given without label_column" in done.output
