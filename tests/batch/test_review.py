"""Rows of an output that a person looks at: which ones, and what becomes of the corrections."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import skllm_ray
from skllm_ray import batch
from skllm_ray.batch.report import write_report
from skllm_ray.batch.review import correct, labelled_texts, review
from skllm_ray.batch.tools.neighbours import nearest
from skllm_ray.classification import (
    DistilledClassifier,
    FewShotGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.cli import main
from skllm_ray.errors import ConfigurationError, InputError
from tests.batch.worlds import read, write

WORDS = ["Lovely", "Terrible", "Fine", "Awful", "Great", "Odd"]
TEXTS = [f"{word} {thing}, number {i}" for i in range(20) for word in WORDS for thing in ("lamp", "soup")]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """An output of 242 rows in two parts, one of them without a text."""
    folder = tmp_path_factory.mktemp("review")
    skllm_ray.init(local_mode=True)
    write(folder / "in.parquet", [*TEXTS, None, TEXTS[0]])
    clf = ZeroShotGPTClassifier(model="gguf::demo", on_error="coerce").fit(None, ["negative", "positive"])
    batch.run(clf, str(folder / "in.parquet"), str(folder / "out"), unit_rows=128)
    skllm_ray.shutdown()
    return folder / "out"


@pytest.fixture
def own(output, tmp_path):
    """A copy of it, to which corrections are made."""
    import shutil

    return shutil.copytree(output, tmp_path / "out")


def test_of_a_small_output_a_part_is_worth_a_look_unless_more_is_asked_for(output):
    n_texts = len(read(output))
    kinds = review(str(output))["why"].value_counts().to_dict()
    assert kinds == {"uncertain": n_texts // 5, "random": n_texts // 20}
    assert review(str(output), n_random=7)["why"].value_counts().to_dict() == {**kinds, "random": 7}


def test_uncertain_rows_and_random_ones_are_shown_with_what_is_like_them(output):
    table = review(str(output), n_rows=30, n_random=10)
    assert table["why"].value_counts().to_dict() == {"uncertain": 30, "random": 10}
    assert table["row"].is_unique and (table["correct_label"] == "").all() and (table["text"] != "").all()
    parts = read(output).drop_duplicates("text")
    unsure = table[table["why"] == "uncertain"]
    drawn = set(table["text"][table["why"] == "random"])
    lowest = parts[~parts["text"].isin(drawn)].nsmallest(30, "probability")
    assert set(unsure["text"]) == set(lowest["text"])
    near = unsure["neighbours"].iloc[0]
    assert near.count(" | ") == 2 and near.split(" (")[0] in {"negative", "positive"}
    again = review(str(output), n_rows=30, n_random=10)
    assert again.equals(table) and not review(str(output), n_rows=0, n_random=10, seed=1).equals(table)
    assert review(str(output), n_rows=0, n_random=0).empty
    assert len(review(str(output), n_rows=10_000, n_random=5)) == len(set(TEXTS))  # each text once, none missing


def test_corrections_come_back_are_kept_and_tell_how_good_the_answers_are(own):
    table = review(str(own), n_rows=20, n_random=30)
    assert correct(str(own)).rows == []
    other = {"positive": "negative", "negative": "positive"}
    table["correct_label"] = ["=" if i % 5 else other[label] for i, label in enumerate(table["label"])]
    table.loc[3, "correct_label"] = " "  # nobody looked
    table["text"] = "a spreadsheet has changed it"
    found = correct(str(own), table)
    assert len(found.rows) == 49 and found.n_changed == 10
    share, low, high, n = found.accuracy
    assert (n, share) == (30, 24 / 30) and low < share < high
    assert "24 of 30" in found.facts()["right, random"] and "80.0%" in found.facts()["right in all"]
    assert set(found.texts) <= set(TEXTS) and sum(found.shares.values()) == pytest.approx(1)
    assert sum(n for _, _, n in found.changes) == 10 and all(one != label for one, label, _ in found.changes)
    page = Path(write_report(str(own), str(own.parent / "report.html"))).read_text("utf-8")
    assert "What people found" in page and "24 of 30" in page and page.count('"corrected by people"') == 1
    rows = json.loads(page.partition('id="rows">')[2].partition("</script>")[0])
    assert sum(extra[-1] != "" for extra in rows["extra"]) == 49
    parts = read(own).drop_duplicates("text").set_index("text")
    right = [label == parts["prediction"][text] for text, label in zip(found.texts, found.labels, strict=True)]
    assert right.count(False) == 10
    assert correct(str(own)) == found  # they stand beside the output
    later = review(str(own), n_rows=20, n_random=30)
    assert not set(later["row"]) & set(found.rows)
    later["correct_label"] = "="
    assert len(correct(str(own), later).rows) == 99
    changed = later.head(1).assign(correct_label="negative")
    more = correct(str(own), changed)
    assert len(more.rows) == 99 and more.labels[more.rows.index(changed["row"][0])] == "negative"


def test_corrections_feed_examples_a_prior_and_a_student(own, tmp_path):
    skllm_ray.init(local_mode=True)
    table = review(str(own), n_rows=30, n_random=20)
    table["correct_label"] = ["positive" if "soup" in text else "negative" for text in table["text"]]
    found = correct(str(own), table)
    FewShotGPTClassifier(model="gguf::demo").fit(found.texts, found.labels)
    prior = ZeroShotGPTClassifier(model="gguf::demo", label_prior="uniform").fit(found.texts, found.labels)
    assert set(prior.prior_texts_) <= set(found.texts) and prior.predict(["Odd soup"]).shape == (1,)
    texts, labels = labelled_texts(str(own), found)
    assert len(texts) == len(TEXTS) + 1
    by_text = dict(zip(texts, labels, strict=True))
    assert [by_text[text] for text in found.texts if text != TEXTS[0]] == [
        label for text, label in zip(found.texts, found.labels, strict=True) if text != TEXTS[0]
    ]
    few, _ = labelled_texts(str(own), found, most=60)
    assert len(few) == 60 and set(found.texts) <= set(few)
    student = DistilledClassifier.of_labels(texts, labels)
    assert (student.predict(texts) == labels).mean() > 0.7 and student.teacher_ is None
    with pytest.raises(ConfigurationError, match="without its teacher"):
        student.as_cascade()
    skllm_ray.shutdown()


def test_a_student_needs_a_label_for_each_text():
    for texts, labels in ((["a", "b"], ["x"]), (["a", "b"], ["x", "x"])):
        with pytest.raises(InputError, match="labels must hold one label for each"):
            DistilledClassifier.of_labels(texts, labels)


def test_several_labels_have_commas_between_them(tmp_path):
    skllm_ray.init(local_mode=True)
    write(tmp_path / "in.parquet", [f"Late and dear, number {i}" for i in range(30)])
    clf = MultiLabelZeroShotGPTClassifier(model="gguf::demo", max_labels=2, on_error="coerce")
    clf.fit(None, [["delivery", "price", "quality"]])
    batch.run(clf, str(tmp_path / "in.parquet"), str(tmp_path / "out"))
    table = review(str(tmp_path / "out"), n_rows=5, n_random=10)
    table["correct_label"] = "price, delivery"
    found = correct(str(tmp_path / "out"), table)
    assert found.labels[0] == ["delivery", "price"] and found.shares["price"] == 1.0
    with pytest.raises(InputError, match="no candidate"):
        correct(str(tmp_path / "out"), table.assign(correct_label="price, speed"))
    with pytest.raises(InputError, match="a student learns one"):
        labelled_texts(str(tmp_path / "out"), found)
    skllm_ray.shutdown()


def test_what_cannot_be_taken_back_is_told_and_keeps_nothing(own, tmp_path):
    table = review(str(own), n_rows=5, n_random=0)
    for changed, message in (
        (table.assign(correct_label="neutral"), "'neutral' of the row .* is no candidate"),
        (table.assign(correct_label="=", row="part-9.parquet:0"), "the output has no row 'part-9.parquet:0'"),
        (table.drop(columns="row"), "no column 'row'"),
        (str(tmp_path / "nowhere.csv"), "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            correct(str(own), changed)
    assert correct(str(own)).rows == []
    with pytest.raises(InputError, match="holds no job"):
        review(str(tmp_path))
    with pytest.raises(ConfigurationError, match="n_rows must be an int"):
        review(str(own), n_rows=-1)


def test_an_output_without_its_texts_or_without_labels_cannot_be_reviewed(tmp_path):
    skllm_ray.init(local_mode=True)
    write(tmp_path / "in.parquet", TEXTS[:5])
    clf = ZeroShotGPTClassifier(model="gguf::demo", on_error="coerce").fit(None, ["negative", "positive"])
    batch.run(clf, str(tmp_path / "in.parquet"), str(tmp_path / "out"), keep_columns=[])
    with pytest.raises(InputError, match="do not hold the texts"):
        review(str(tmp_path / "out"))
    skllm_ray.shutdown()


def test_a_cascades_disputed_rows_come_first(tmp_path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from skllm_ray.classification import CascadeClassifier

    skllm_ray.init(local_mode=True)
    write(tmp_path / "in.parquet", TEXTS)
    y = np.where(["lamp" in text for text in TEXTS], "negative", "positive")
    fast = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, y)
    strong = ZeroShotGPTClassifier(model="gguf::demo", on_error="coerce").fit(None, ["negative", "positive"])
    cascade = CascadeClassifier(fast, strong, n_samples=100)
    batch.run(cascade, str(tmp_path / "in.parquet"), str(tmp_path / "out"))
    table = review(str(tmp_path / "out"), n_rows=40, n_random=0)
    disputed = table[table["why"] == "disputed"]
    assert len(disputed) == 20 and (disputed["fast_label"] != disputed["label"]).all()
    skllm_ray.shutdown()


def test_neighbours_are_the_texts_that_share_rare_words():
    others = ["the card was lost", "the card is late", "a refund please", "the lost card", ""]
    found = nearest(["the lost card"], others, n=2)
    assert next(place for place, _ in found[0]) == 0 and 3 not in dict(found[0])
    assert nearest([], others) == [] and nearest(["a"], []) == [[]] and nearest(["", "😀"], others) == [[], []]


def test_the_command_writes_rows_and_takes_corrections(own, tmp_path):
    to = tmp_path / "review.csv"
    done = CliRunner().invoke(main, ["review", str(own), "--to", str(to), "--rows", "20", "--random", "30"])
    assert done.exit_code == 0 and "20 uncertain" in done.output and "30 random" in done.output
    table = pd.read_csv(to, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    table["correct_label"] = ["positive" if "soup" in text else "negative" for text in table["text"]]
    table.to_csv(to, index=False)
    examples, student = tmp_path / "examples.csv", tmp_path / "student.skops"
    back = ["review", str(own), "--corrections", str(to), "--examples", str(examples), "--student", str(student)]
    done = CliRunner().invoke(main, back)
    assert done.exit_code == 0, done.output
    assert "50 rows" in done.output and "right in all" in done.output
    assert len(pd.read_csv(examples)) == 50
    assert set(DistilledClassifier.load(student).classes_) == {"negative", "positive"}
    nothing = CliRunner().invoke(main, ["review", str(own)])
    assert nothing.exit_code == 1 and "Nothing is to be done" in nothing.output
