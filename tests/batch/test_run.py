"""Jobs from their first row to their last, in this process: what they read, write, skip, refuse and count."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.job import worker
from skllm_ray.batch.job.budget import Ledger
from skllm_ray.batch.output import fence
from skllm_ray.batch.output.holder import Holder
from skllm_ray.batch.output.lock import OutputLock
from skllm_ray.batch.storage import Folder, StorageOptions, open_folder
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError, OutputInUseError, OutputMismatchError
from skllm_ray.llm.open_models import ModelCache
from skllm_ray.tasks.base import Reply, RowError, Usage
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault, WireFault
from skllm_ray.text2text import GPTSummarizer
from tests.batch.worlds import LABELS, Local, api_classifier, asked, classifier, read, texts, write


@pytest.fixture(autouse=True)
def _world():
    SKLLMConfig.reset()
    skllm_ray.init(local_mode=True)
    asked.clear()
    ModelCache.clear()
    yield
    ModelCache.clear()
    skllm_ray.shutdown()
    SKLLMConfig.reset()


def test_every_row_gets_its_own_answer_beside_its_own_columns(tmp_path):
    source = write(tmp_path / "in.parquet", texts(250), extra=[f"x{i}" for i in range(250)])
    result = batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=40)
    found = read(tmp_path / "out")
    assert result.complete
    assert (result.rows_done, result.rows_failed, result.this_run.rows) == (250, 0, 250)
    assert result.this_run.asked == 250
    assert found["id"].tolist() == list(range(250))
    assert found["extra"].tolist() == [f"x{i}" for i in range(250)]
    assert found["prediction"].tolist() == ["good" if i % 3 else "bad" for i in range(250)]
    assert set(asked.values()) == {1}
    assert max(len(pq.read_table(p)) for p in (tmp_path / "out").glob("part-*")) <= 40


def test_an_input_without_rows_gives_an_output_with_columns(tmp_path):
    source = write(tmp_path / "in.parquet", [])
    for _ in range(2):
        result = batch.run(classifier(), source, str(tmp_path / "out"))
        assert (result.complete, result.rows_total) == (True, 0)
        assert {"id", "text", "prediction", "error_kind"} <= set(pd.read_parquet(tmp_path / "out").columns)


def test_a_second_run_asks_nothing(tmp_path):
    source = write(tmp_path / "in.parquet", texts(90))
    batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=20)
    asked.clear()
    result = batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=20)
    assert (result.complete, result.this_run.rows, sum(asked.values())) == (True, 0, 0)


def test_a_lost_part_is_done_again_and_a_damaged_one_too(tmp_path):
    source = write(tmp_path / "in.parquet", texts(90))
    batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=30)
    parts = sorted((tmp_path / "out").glob("part-*"))
    parts[0].unlink()
    asked.clear()
    assert batch.run(classifier(), source, str(tmp_path / "out")).complete
    assert sum(asked.values()) == 30
    for file in (tmp_path / "out" / worker.SYSTEM / "done").iterdir():
        file.unlink()
    parts[1].write_bytes(b"PAR1 cut off")
    asked.clear()
    assert batch.run(classifier(), source, str(tmp_path / "out")).complete
    assert sum(asked.values()) == 30
    assert len(read(tmp_path / "out")) == 90


def test_bad_rows_cost_nobody_else(tmp_path):
    rows: list[Any] = texts(60)
    rows[3], rows[7], rows[11], rows[20] = None, "   ", "POISON good", "é" * 50_000 + " good 🦜 {x} ```"
    result = batch.run(classifier(), write(tmp_path / "in.parquet", rows), str(tmp_path / "out"))
    found = read(tmp_path / "out").set_index("id")
    assert result.complete
    assert result.errors == {"missing_text": 2, "content_filter": 1}
    assert found.loc[[3, 7, 11], "error_kind"].tolist() == ["missing_text", "missing_text", "content_filter"]
    assert found.loc[[3, 7, 11], "prediction"].isna().all()
    assert found.loc[20, "prediction"] == "good"
    assert found["prediction"].notna().sum() == 57


def test_failed_rows_are_asked_again_on_request_and_the_others_are_not(tmp_path, monkeypatch):
    rows = texts(60)
    rows[11] = "POISON good"
    source = write(tmp_path / "in.parquet", rows)
    batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=20)
    assert batch.run(classifier(), source, str(tmp_path / "out")).this_run.rows == 0
    asked.clear()
    monkeypatch.setattr(Local, "script", staticmethod(lambda request: '{"label": "good"}'))
    ModelCache.clear()
    result = batch.run(classifier(), source, str(tmp_path / "out"), retry_errors=True)
    found = read(tmp_path / "out")
    assert (result.complete, result.errors, result.this_run.rows) == (True, {}, 1)
    assert found["id"].tolist() == list(range(60))
    assert found["prediction"].tolist() == ["good" if i % 3 or i == 11 else "bad" for i in range(60)]


def test_identical_texts_are_asked_once_in_a_unit(tmp_path):
    source = write(tmp_path / "in.parquet", ["good", "bad", "good", "good", "bad"] * 20)
    result = batch.run(classifier(), source, str(tmp_path / "out"))
    assert dict(asked) == {"good": 1, "bad": 1}
    assert result.this_run.duplicates == 98
    found = read(tmp_path / "out")
    assert found["prediction"].tolist() == ["good", "bad", "good", "good", "bad"] * 20
    assert found["attempts"].tolist()[:5] == [1, 1, 0, 0, 0]


def test_a_limit_goes_on_to_the_whole(tmp_path):
    source = write(tmp_path / "in.parquet", texts(300), row_group_size=120)
    first = batch.run(classifier(), source, str(tmp_path / "out"), limit=70)
    assert (first.complete, first.rows_done, sum(asked.values())) == (True, 70, 70)
    smaller = batch.run(classifier(), source, str(tmp_path / "out"), limit=50)
    assert (smaller.complete, smaller.this_run.rows) == (True, 0)
    larger = batch.run(classifier(), source, str(tmp_path / "out"), limit=130)
    assert (larger.rows_done, larger.this_run.rows) == (130, 60)
    whole = batch.run(classifier(), source, str(tmp_path / "out"))
    assert (whole.complete, whole.rows_done, whole.this_run.rows) == (True, 300, 170)
    assert set(asked.values()) == {1}
    assert read(tmp_path / "out")["id"].tolist() == list(range(300))


def test_csv_with_line_breaks_and_short_rows(tmp_path):
    rows = [(i, f'a good "thing"\r\nin {i} lines, all good' if i % 2 else f"awful {i}") for i in range(2500)]
    frame = pd.DataFrame(rows, columns=["id", "text"])
    path = tmp_path / "in" / "a.csv"
    path.parent.mkdir()
    frame.to_csv(path, index=False)
    with path.open("a") as file:
        file.write("9999\n\n10000,good,,\n")
    result = batch.run(classifier(), str(tmp_path / "in"), str(tmp_path / "out"), unit_rows=300)
    found = read(tmp_path / "out")
    assert result.complete
    assert len(found) == 2502
    assert found["text"].tolist()[:2500] == frame["text"].tolist()
    assert found["id"].tolist()[-2:] == ["9999", "10000"]
    assert found["error_kind"].fillna("").tolist()[-2:] == ["missing_text", ""]


def test_json_lines_of_mixed_types_and_a_broken_line(tmp_path):
    lines = [
        json.dumps({"text": f"good {i}", "n": i if i % 2 else i + 0.5, "tag": i if i == 7 else "t"})
        for i in range(1500)
    ]
    lines.insert(40, '{"text": "cut o')
    lines.append("")
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    result = batch.run(classifier(), str(tmp_path / "in.jsonl"), str(tmp_path / "out"), unit_rows=100)
    found = read(tmp_path / "out")
    assert result.complete
    assert len(found) == 1501
    assert found["error_kind"].tolist()[40] == "missing_text"
    assert (found["tag"].iloc[7], found["tag"].iloc[8]) == ("7", "t")
    assert found["n"].iloc[1] == 1.0
    assert result.errors == {"missing_text": 1}


def test_files_of_different_columns_give_one_schema(tmp_path):
    write(tmp_path / "in/a.parquet", texts(20), score=pa.array([1] * 20, pa.int32()))
    write(tmp_path / "in/b.parquet", texts(20), score=pa.array([0.5] * 20), more=["m"] * 20)
    batch.run(classifier(), str(tmp_path / "in"), str(tmp_path / "out"))
    schemas = {str(pq.read_schema(part).remove_metadata()) for part in (tmp_path / "out").glob("part-*")}
    assert len(schemas) == 1
    found = read(tmp_path / "out")
    assert found["score"].tolist() == [1.0] * 20 + [0.5] * 20
    assert found["more"].isna().sum() == 20


def test_an_unreadable_file_costs_itself_and_is_read_when_it_is_mended(tmp_path):
    write(tmp_path / "in/a.parquet", texts(20))
    good = Path(write(tmp_path / "b.parquet", texts(20))).read_bytes()
    (tmp_path / "in/b.parquet").write_bytes(good[: len(good) // 2])
    write(tmp_path / "in/c.parquet", texts(20))
    pq.write_table(pa.table({"other": ["x"]}), tmp_path / "in/d.parquet")
    result = batch.run(classifier(), str(tmp_path / "in"), str(tmp_path / "out"))
    assert not result.complete
    assert result.rows_done == 40
    assert sorted(Path(name).name for name in result.unreadable) == ["b.parquet", "d.parquet"]
    assert "no column 'text'" in result.unreadable[str(tmp_path / "in/d.parquet")]
    (tmp_path / "in/b.parquet").write_bytes(good)
    asked.clear()
    again = batch.run(classifier(), str(tmp_path / "in"), str(tmp_path / "out"))
    assert (again.rows_done, again.this_run.rows, len(again.unreadable)) == (60, 20, 1)


def test_a_damaged_row_group_costs_itself(tmp_path):
    path = Path(write(tmp_path / "in.parquet", texts(300), row_group_size=100))
    start = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 60] = b"\xff" * 60
    path.write_bytes(content)
    result = batch.run(classifier(), str(path), str(tmp_path / "out"), unit_rows=100)
    assert not result.complete
    assert result.rows_done == 200
    assert list(result.unreadable) == [f"{path} rows 100 to 199"]


def test_a_damaged_row_group_does_not_cost_those_that_share_its_unit(tmp_path):
    path = Path(write(tmp_path / "in.parquet", texts(100), row_group_size=10))
    start = pq.read_metadata(path).row_group(4).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 60] = b"\xff" * 60
    path.write_bytes(content)
    for _ in range(2):
        result = batch.run(classifier(), str(path), str(tmp_path / "out"), unit_rows=100)
        assert (result.complete, result.rows_done) == (False, 90)
        assert list(result.unreadable) == [f"{path} rows 40 to 49"]
    assert result.this_run.rows == 0
    assert read(tmp_path / "out")["id"].tolist() == [*range(40), *range(50, 100)]


def test_a_template_makes_texts_of_columns(tmp_path):
    source = write(tmp_path / "in.parquet", texts(5), title=["good {x}", None, "", "T", "T"])
    job = classifier()
    batch.run(job, source, str(tmp_path / "out"), text_template="{title}|{id}", keep_columns=["title"])
    assert set(asked) == {"good {x}|0", "|1", "|2", "T|3", "T|4"}
    assert "id" not in read(tmp_path / "out").columns


def test_raw_replies_are_kept_as_asked_for(tmp_path):
    rows = ["good", "POISON", "bad"]
    source = write(tmp_path / "in.parquet", rows)
    batch.run(classifier(), source, str(tmp_path / "all"), keep_replies="all")
    batch.run(classifier(), source, str(tmp_path / "errors"), keep_replies="errors")
    assert read(tmp_path / "all")["raw_reply"].fillna("").tolist() == ['{"label": "good"}', "", '{"label": "bad"}']
    assert read(tmp_path / "errors")["raw_reply"].isna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "nope"}, "no column 'nope'"),
        ({"text_column": "id"}, "of type int64"),
        ({"text_template": "{nope}"}, "no column 'nope'"),
        ({"text_template": "{id"}, "no template"),
        ({"text_template": "plain"}, "must name columns"),
        ({"keep_columns": ["nope"]}, "no column 'nope'"),
        ({"keep_replies": "some"}, "keep_replies"),
        ({"limit": 0}, "limit must be"),
        ({"budget_usd": -1}, "budget_usd must be"),
        ({"budget_usd": 1.0}, "price of fake is not known"),
        ({"workers": True}, "workers must be"),
        ({"wait_for_server_s": "x"}, "wait_for_server_s must be"),
        ({"retry_errors": "no"}, "retry_errors must be True or False"),
        ({"keep_going": 1}, "keep_going must be True or False"),
        ({"output_prefix": 5}, "output_prefix must be a str"),
        ({"storage_options": {"anon": True}, "output_uri": "nowhere://x"}, "nowhere:// cannot be opened"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(tmp_path, options, message):
    source = write(tmp_path / "in.parquet", texts(5))
    output = options.pop("output_uri", str(tmp_path / "out"))
    with pytest.raises((ConfigurationError, InputError), match=message):
        batch.run(classifier(), source, output, **options)
    assert not asked
    assert not (tmp_path / "out").exists()


def test_a_result_column_that_the_input_has_is_refused_and_a_prefix_mends_it(tmp_path):
    source = write(tmp_path / "in.parquet", texts(5), model=["mine"] * 5)
    with pytest.raises(InputError, match="'model', which is also"):
        batch.run(classifier(), source, str(tmp_path / "out"))
    batch.run(classifier(), source, str(tmp_path / "out"), output_prefix="llm_")
    found = read(tmp_path / "out")
    assert found["model"].tolist() == ["mine"] * 5
    assert found["llm_prediction"].notna().all()


def test_another_job_does_not_mix_with_the_output(tmp_path):
    source = write(tmp_path / "in.parquet", texts(30))
    output = str(tmp_path / "out")
    batch.run(classifier(), source, output, limit=10)
    asked.clear()
    with pytest.raises(OutputMismatchError, match="another params"):
        batch.run(classifier(default_label="good"), source, output)
    with pytest.raises(OutputMismatchError, match="another labels"):
        batch.run(Local(on_error="coerce").fit(None, ["good", "worse"]), source, output)
    with pytest.raises(OutputMismatchError, match="another text_column"):
        batch.run(classifier(), source, output, text_template="{text}!")
    with pytest.raises(OutputMismatchError, match="another unit_rows: 256; now: 5"):
        batch.run(classifier(), source, output, unit_rows=5)
    with pytest.raises(OutputMismatchError, match="another max_output_tokens: None; now: 5"):
        batch.run(classifier(), source, output, max_output_tokens=5)
    with pytest.raises(OutputMismatchError, match="another task: 'Local'; now: 'GPTSummarizer'"):
        batch.run(GPTSummarizer(model="gguf::demo").fit(), source, output)
    os.utime(source, (1, 1))
    with pytest.raises(OutputMismatchError, match="has changed files"):
        batch.run(classifier(), source, output)
    assert not asked


def test_the_parameter_that_changed_is_shown_where_it_differs(tmp_path):
    source = write(tmp_path / "in.parquet", texts(5))
    told = "Judge. " * 40 + "{labels} {x}"
    batch.run(classifier(prompt_template=told), source, str(tmp_path / "out"))
    with pytest.raises(
        OutputMismatchError, match=r"another params, prompt_template: .*Judge\. \{lab.*now: .*Sentence"
    ) as of:
        batch.run(
            classifier(prompt_template=told.replace("{labels}", "Sentence {labels}")), source, str(tmp_path / "out")
        )
    assert len(str(of.value)) < 500


def test_the_same_files_named_otherwise_are_the_same_input(tmp_path, monkeypatch):
    for name in "ab":
        write(tmp_path / f"in/{name}.parquet", texts(20))
    batch.run(classifier(), [str(tmp_path / "in/a.parquet"), str(tmp_path / "in/b.parquet")], str(tmp_path / "out"))
    asked.clear()
    monkeypatch.chdir(tmp_path)
    assert batch.run(classifier(), ["in/b.parquet", "in/a.parquet"], "out").complete
    assert batch.run(classifier(), "in/*.parquet", "out").complete
    assert not asked


def test_a_damaged_manifest_is_named(tmp_path):
    source = write(tmp_path / "in.parquet", texts(5))
    batch.run(classifier(), source, str(tmp_path / "out"))
    path = tmp_path / "out" / worker.SYSTEM / "manifest.json"
    for damaged in ("{", "[]", '{"format": 1}', "\xff"):
        path.write_text(damaged, "latin-1")
        with pytest.raises(OutputMismatchError, match=r"manifest\.json.* is damaged"):
            batch.run(classifier(), source, str(tmp_path / "out"))


def test_new_files_in_the_input_are_refused_with_advice(tmp_path):
    write(tmp_path / "in/a.parquet", texts(5))
    batch.run(classifier(), str(tmp_path / "in"), str(tmp_path / "out"))
    write(tmp_path / "in/b.parquet", texts(5))
    with pytest.raises(OutputMismatchError, match=r"has new files.*b.parquet.*another output"):
        batch.run(classifier(), str(tmp_path / "in"), str(tmp_path / "out"))


def test_a_later_version_with_another_prompt_uses_the_jobs_own(tmp_path, monkeypatch):
    source = write(tmp_path / "in.parquet", texts(30))
    batch.run(classifier(), source, str(tmp_path / "out"), limit=10)
    path = tmp_path / "out" / worker.SYSTEM / "manifest.json"
    told = json.loads(path.read_text())
    told["version"], told["template"] = "0.0.1", "Of old: {labels}\nText:\n{x}"
    path.write_text(json.dumps(told))
    seen = []
    monkeypatch.setattr(
        Local,
        "script",
        staticmethod(lambda request: seen.append(request.messages[-1]["content"]) or '{"label": "good"}'),
    )
    ModelCache.clear()
    batch.run(classifier(), source, str(tmp_path / "out"))
    assert len(seen) == 20
    assert all(prompt.startswith("Of old:") for prompt in seen)


def test_a_run_beside_another_is_refused_and_a_dead_ones_lock_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(fence, "HEARTBEAT_S", 0.1)
    folder = open_folder(str(tmp_path), StorageOptions(), {})
    with OutputLock(folder), pytest.raises(OutputInUseError, match=r"process \d+ on"), OutputLock(folder):
        pass
    dead = {"token": "t", "beat": 3, "host": "elsewhere", "pid": 1}
    folder.write("lock.json", json.dumps(dead).encode())
    with OutputLock(folder):
        assert json.loads((tmp_path / "lock.json").read_text())["token"] != "t"
    assert not (tmp_path / "lock.json").exists()


def test_only_one_of_many_takes_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(fence, "HEARTBEAT_S", 0.1)
    won, lost, together = [], [], threading.Barrier(6, timeout=60)

    def try_it() -> None:
        folder = open_folder(str(tmp_path), StorageOptions(), {})
        together.wait()
        try:
            with OutputLock(folder):
                won.append(1)
                together.wait()  # until all have tried
        except OutputInUseError:
            lost.append(1)
            together.wait()

    threads = [threading.Thread(target=try_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)


def test_a_job_in_vain_stops_early_with_the_first_reason(tmp_path):
    rows = [*texts(3), *([None] * 100), *(f"POISON {i}" for i in range(3000))]
    source = write(tmp_path / "in.parquet", rows[3:])
    result = batch.run(classifier(), source, str(tmp_path / "out"))
    assert 200 <= sum(asked.values()) <= 1400
    assert result.in_vain
    assert result.mostly_failed
    assert not result.complete
    assert re.search(
        r"all of the first [\d,]+ rows with a text failed. The first reason: content_filter: The model refused",
        result.stopped,
    )
    assert "--keep-going" in result.next_step
    asked.clear()
    kept = batch.run(classifier(), source, str(tmp_path / "out"), keep_going=True)
    assert (kept.complete, kept.in_vain, kept.mostly_failed) == (True, False, True)
    assert kept.errors == {"content_filter": 3000, "missing_text": 100}
    assert kept.reasons["content_filter"] == "The model refused to answer."
    assert "--retry-errors" in kept.next_step


def test_a_job_whose_rows_begin_to_fail_stops_as_well(tmp_path):
    rows = [*texts(2000), *(f"POISON {i}" if i % 40 else f"good {i}" for i in range(40_000))]
    source = write(tmp_path / "in.parquet", rows, row_group_size=50_000)
    result = batch.run(classifier(), source, str(tmp_path / "out"), unit_rows=2000)
    assert re.search(r"\d,\d\d\d of [56],\d\d\d rows in succession failed", result.stopped)
    assert 5000 <= sum(asked.values()) < 12_000


def test_half_a_job_that_fails_does_not_stop_and_missing_texts_are_no_failures(tmp_path):
    rows = [f"POISON {i}" if i % 2 else f"good {i}" for i in range(1000)]
    half = batch.run(classifier(), write(tmp_path / "in.parquet", rows), str(tmp_path / "out"))
    assert (half.complete, half.mostly_failed, half.stopped) == (True, False, "")
    empty = batch.run(classifier(), write(tmp_path / "e.parquet", [None] * 900 + ["good"]), str(tmp_path / "e"))
    assert (empty.complete, empty.mostly_failed) == (True, False)


@pytest.mark.parametrize("by", ["server", "labels"])
def test_half_a_character_costs_itself_alone(tmp_path, monkeypatch, by):
    odd = Reply('{"label": "good"}', model="m\ud800", usage=Usage(1, 1))
    if by == "server":
        monkeypatch.setattr("skllm_ray.testing.backend.FakeBackend._reply", lambda self, request: odd)

    class Odd(Local):
        script = staticmethod(lambda request: RowError("bad_request", "no \udfff \x1b[0m"))

    clf = Odd(on_error="coerce").fit(None, LABELS)
    source = write(tmp_path / "in.parquet", ["good", "bad", "ugly"])
    result = batch.run(clf, source, str(tmp_path / "out"), keep_replies="all")
    found = read(tmp_path / "out")
    assert result.complete
    assert len(found) == 3
    if by == "labels":
        assert found["error"].tolist() == ["no \ufffd \x1b[0m"] * 3
    again = batch.run(clf, source, str(tmp_path / "out"), retry_errors=True, keep_replies="all")
    assert again.complete


def test_a_run_that_was_overtaken_sends_and_writes_nothing_more(tmp_path):
    source = write(tmp_path / "in.parquet", texts(600))
    output = tmp_path / "out"
    after = []

    def answer(body: dict[str, Any]) -> str:
        after.append(time.monotonic())
        if len(after) == 100:
            folder = open_folder(str(output / worker.SYSTEM), StorageOptions(), {})
            folder.write(fence.LOCK_FILE, Holder.of_this_process("another", 0, locked=False).dump())
        return '{"label": "good"}'

    with ChatServer(answer, latency_s=0.01) as server:
        SKLLMConfig.set_rate_limit("custom_url::m", max_concurrency=8)
        with pytest.raises(OutputInUseError, match=rf"took over this output: process {os.getpid()}"):
            batch.run(api_classifier(server), source, str(output), unit_rows=100)
        assert server.n_requests <= 100 + 8
    parts = [path for path in output.glob("part-*") if path.stat().st_mtime_ns]
    assert len(parts) <= 1
    assert Holder.parse((output / worker.SYSTEM / fence.LOCK_FILE).read_bytes()).token == "another"


# --- an API, over real sockets -----------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_and_what_was_paid_for_is_kept(tmp_path, monkeypatch):
    source = write(tmp_path / "in.parquet", texts(200))
    whole = Folder.write

    def full(self: Folder, name: str, content: bytes) -> None:
        if name.startswith("part-") and full.on:
            raise OSError(28, "No space left on device")
        whole(self, name, content)

    full.on = True
    monkeypatch.setattr(Folder, "write", full)
    with ChatServer() as server:
        result = batch.run(api_classifier(server), source, str(tmp_path / "out"), unit_rows=100)
        assert not result.complete
        assert "No space left" in result.stopped
        before = server.n_requests
        assert before == 100
        full.on = False
        again = batch.run(api_classifier(server), source, str(tmp_path / "out"), unit_rows=100)
        assert again.complete
        assert server.n_requests == 200
        assert again.this_run.reused == 100


def test_a_dead_workers_reservation_is_spent_and_blocks_nobody():
    ledger = Ledger(budget_usd=10.0, spent_usd=0.01)
    assert ledger.reserve("unit-1 aa", [0.5] * 16).n == 16
    assert ledger.reserve("unit-2 bb", [0.5] * 16).wait
    ledger.forget("unit-1")
    last = ledger.reserve("unit-2 bb", [0.5] * 16)
    assert (last.wait, last.stop, last.n) == (False, True, 0)
    assert ledger.reserve("unit-2 bb", [0.1] * 16).n == 16


def test_a_wrong_key_stops_the_job_with_one_line(tmp_path):
    source = write(tmp_path / "in.parquet", texts(500))
    with ChatServer(lambda _: StatusFault(401, "wrong key")) as server:
        result = batch.run(api_classifier(server), source, str(tmp_path / "out"), unit_rows=100)
        assert result.stopped.startswith("fatal: authentication")
        assert result.next_step == "mend the cause, then run the same command again"
        assert server.n_requests < 200
    assert list((tmp_path / "out").glob("part-*")) == []


@pytest.fixture
def hasty(monkeypatch):
    """Rows are soon asked again, and their tries are soon over."""
    monkeypatch.setattr("skllm_ray.batch.job.journalled_backend._PAUSES_S", (0.1,))
    monkeypatch.setattr("skllm_ray.llm.api.request_runner.LONGEST_PAUSE_S", 0.05)


def test_a_server_that_is_down_for_a_while_is_waited_for(tmp_path, hasty):
    source = write(tmp_path / "in.parquet", texts(300))
    down_until = [0.0]
    seen = [0]

    def answer(body: dict[str, Any]) -> str | WireFault:
        seen[0] += 1
        if seen[0] == 150:
            down_until[0] = time.monotonic() + 2
        return WireFault.DROP if time.monotonic() < down_until[0] else '{"label": "good"}'

    with ChatServer(answer) as server:
        result = batch.run(api_classifier(server), source, str(tmp_path / "out"), unit_rows=100)
    assert result.complete
    assert result.errors == {}
    assert read(tmp_path / "out")["prediction"].tolist() == ["good"] * 300


def test_a_server_that_stays_down_ends_the_run_and_keeps_what_is_done(tmp_path, hasty, monkeypatch):
    monkeypatch.setattr("skllm_ray.llm.api.request_runner._LONGEST_SILENCE_S", 3.0)
    source = write(tmp_path / "in.parquet", texts(300))
    with ChatServer() as server:
        clf = api_classifier(server)
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        first = batch.run(clf, source, str(tmp_path / "out"), unit_rows=100, limit=100)
        assert first.complete
    result = batch.run(clf, source, str(tmp_path / "out"), unit_rows=100, wait_for_server_s=1.0)
    assert result.stopped.startswith("outage: ")
    assert result.rows_done == 100
    ModelCache.clear()
    with ChatServer(port=port) as server:
        assert batch.run(clf, source, str(tmp_path / "out"), unit_rows=100).complete
        assert server.n_requests == 200


def test_a_clock_that_jumps_a_day_at_each_look_changes_nothing(tmp_path, monkeypatch):
    real, jumps = time.time, itertools.cycle([86_400.0, -86_400.0, 0.0])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    source = write(tmp_path / "in.parquet", texts(300))
    late = RawAnswer(
        {}, 503, (("retry-after", "Sun, 06 Nov 1994 08:49:38 GMT"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT"))
    )
    first = iter([late])
    with ChatServer(lambda _: next(first, '{"label": "good"}')) as server:
        SKLLMConfig.set_rate_limit("custom_url::m", requests_per_minute=60_000)
        began = time.monotonic()
        result = batch.run(api_classifier(server), source, str(tmp_path / "out"), unit_rows=50)
        assert (result.complete, result.errors, server.n_requests) == (True, {}, 301)
        assert 0 < result.seconds <= time.monotonic() - began < 60
        assert batch.run(api_classifier(server), source, str(tmp_path / "out"), unit_rows=50).complete
        assert server.n_requests == 301


@pytest.mark.parametrize("n_rows", [1, 15, 40])
def test_a_server_that_never_answers_ends_a_run_of_any_size(tmp_path, n_rows, hasty):
    source = write(tmp_path / "in.parquet", texts(n_rows))
    with ChatServer() as server:
        clf = api_classifier(server)
        port = int(server.url.rpartition(":")[2].partition("/")[0])
    result = batch.run(clf, source, str(tmp_path / "out"), wait_for_server_s=0.0)
    assert result.stopped.startswith("outage: the model's server did not answer (connection: ")
    assert server.url in result.stopped
    assert (result.complete, result.rows_done, result.errors) == (False, 0, {})
    assert result.next_step == "run the same command again"
    if n_rows < 16:  # who wants a part whatever comes of it
        kept = batch.run(clf, source, str(tmp_path / "kept"), wait_for_server_s=0.0, keep_going=True)
        assert (kept.complete, kept.errors, kept.mostly_failed) == (True, {"connection": n_rows}, True)
    ModelCache.clear()
    with ChatServer(port=port) as server:
        assert batch.run(clf, source, str(tmp_path / "out")).complete
        assert server.n_requests == n_rows


def test_one_row_that_always_fails_does_not_stop_the_others(tmp_path, hasty):
    source = write(tmp_path / "in.parquet", [*texts(99), "POISON"])
    with ChatServer(lambda body: StatusFault(500) if "POISON" in str(body) else '{"label": "good"}') as server:
        result = batch.run(api_classifier(server), source, str(tmp_path / "out"))
    assert result.complete
    assert result.errors == {"server_error": 1}


def test_a_budget_is_never_passed_and_the_rest_is_told(tmp_path):
    source = write(tmp_path / "in.parquet", texts(300))
    prices = {"input_price": 1000.0, "output_price": 1000.0, "max_output_tokens": 20}
    with ChatServer() as server:
        clf = api_classifier(server)
        whole = batch.run(clf, source, str(tmp_path / "free"), unit_rows=50, **prices)
        cost = whole.total.cost_usd
        assert cost > 1
        n_all = server.n_requests
        budget = cost / 2
        result = batch.run(clf, source, str(tmp_path / "out"), unit_rows=50, budget_usd=budget, **prices)
        n_first = server.n_requests - n_all
        assert not result.complete
        assert "budget" in result.stopped
        assert 0 < n_first < 150
        assert n_first / n_all * cost <= budget
        again = batch.run(clf, source, str(tmp_path / "out"), unit_rows=50, budget_usd=budget, **prices)
        assert server.n_requests - n_all - n_first <= 20
        assert (server.n_requests - n_all) / n_all * cost <= budget
        assert not again.complete
        done = batch.run(clf, source, str(tmp_path / "out"), unit_rows=50, budget_usd=cost * 4, **prices)
        assert done.complete
        assert server.n_requests - n_all == 300
        assert done.total.cost_usd == pytest.approx(cost)


def test_labels_of_a_multi_label_job_and_of_other_tasks(tmp_path):
    from skllm_ray.classification import CoTGPTClassifier, MultiLabelZeroShotGPTClassifier
    from skllm_ray.vectorization import GPTVectorizer

    source = write(tmp_path / "in.parquet", texts(20))

    def answer(body: dict[str, Any]) -> str:
        prompt = str(body["messages"])
        if "explanation" in prompt:
            return '{"explanation": "because", "label": "good"}'
        return '{"label": ["good", "bad"]}' if "labels" in prompt.lower() else "short"

    with ChatServer(answer) as server:
        SKLLMConfig.set_gpt_url(server.url)
        model = {"model": "custom_url::m", "on_error": "coerce"}
        several = MultiLabelZeroShotGPTClassifier(**model).fit(None, [LABELS])
        batch.run(several, source, str(tmp_path / "several"))
        assert read(tmp_path / "several")["prediction"].iloc[0].tolist() == ["good", "bad"]
        batch.run(CoTGPTClassifier(**model).fit(None, LABELS), source, str(tmp_path / "cot"))
        assert read(tmp_path / "cot")["explanation"].tolist() == ["because"] * 20
        batch.run(GPTSummarizer(**model).fit(), source, str(tmp_path / "sum"))
        assert read(tmp_path / "sum").iloc[:, 2].tolist() == ["short"] * 20
        batch.run(GPTVectorizer(**model).fit(), source, str(tmp_path / "vec"))
        assert len(read(tmp_path / "vec")["embedding"].iloc[0]) > 1


@pytest.mark.parametrize(("how", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_keeps_what_is_in_flight(tmp_path, how, error):
    source = write(tmp_path / "in.parquet", texts(400))

    def answer(body: dict[str, Any]) -> str:
        if server.n_requests == 50:
            os.kill(os.getpid(), how)
        return '{"label": "good"}'

    SKLLMConfig.set_rate_limit("custom_url::m", max_concurrency=8)
    with ChatServer(answer, latency_s=0.1) as server:
        with pytest.raises(error) as raised:
            batch.run(api_classifier(server), source, str(tmp_path / "out"), unit_rows=400)
        if how == signal.SIGTERM:
            assert raised.value.code == 143
        n = server.n_requests
        assert 50 <= n < 400  # a busy machine hands the signal over late
        result = batch.run(api_classifier(server), source, str(tmp_path / "out"), unit_rows=400)
        assert (result.complete, result.this_run.reused, server.n_requests) == (True, n, 400)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_values_of_request_options_stand_in_no_file(tmp_path):
    hidden = ["tok-7f3a9c1e55", "p4ssw0rd of mine"]
    options = {"reasoning_effort": "low", "user": hidden[0], "metadata": {"deep": [hidden[1], 5]}}
    source = write(tmp_path / "in.parquet", texts(5))
    with ChatServer() as server:
        clf = api_classifier(server, request_options=options)
        assert batch.run(clf, source, str(tmp_path / "out"), limit=3).complete
        assert server.received[-1].body["user"] == hidden[0]
        path = tmp_path / "out" / worker.SYSTEM / "manifest.json"
        texts_written = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
        assert not any(one.encode() in text for one in hidden for text in texts_written)
        assert '\\"reasoning_effort\\": \\"low\\"' in path.read_text()
        with pytest.raises(OutputMismatchError, match="another params, request_options") as raised:
            batch.run(
                api_classifier(server, request_options={**options, "user": "other-1"}), source, str(tmp_path / "out")
            )
        assert hidden[0] not in str(raised.value)
        told = json.loads(path.read_text())  # as the first release wrote it
        params = json.loads(told["params"])
        told["params"] = json.dumps({**params, "request_options": options}, sort_keys=True)
        identity = [one for one in json.loads(told["identity"]) if "=" not in one]
        told["identity"] = json.dumps(
            [*identity, *(f"{k}={json.dumps(options[k], sort_keys=True)}" for k in sorted(options))]
        )
        path.write_text(json.dumps(told))
        assert batch.run(clf, source, str(tmp_path / "out")).complete
        assert hidden[0] not in path.read_text()
