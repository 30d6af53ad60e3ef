"""An evaluation's figures, against scikit-learn's and by simulation, and what is written of them."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from skllm_ray.batch.tools import scores
from skllm_ray.testing import ChatServer
from tests.batch.test_cli import call
from tests.batch.worlds import texts, write


def sets(labels):
    return [None if label is None else frozenset([label]) for label in labels]


def test_labels_are_scored_as_scikit_learn_does():
    chance = random.Random(3)
    truth = [chance.choice("aaabbcd") for _ in range(300)]
    answers = [chance.choice([label, label, *"abce"]) for label in truth]
    found = {one.label: one for one in scores.label_scores(scores.pairs_of(sets(truth), sets(answers)))}
    names = sorted(set(truth) | set(answers))
    precision, recall, f1, support = precision_recall_fscore_support(truth, answers, labels=names, zero_division=0)
    for i, name in enumerate(names):
        one = found[name]
        assert (one.precision or 0, one.recall or 0, one.f1, one.rows) == pytest.approx(
            (precision[i], recall[i], f1[i], support[i])
        )
    assert scores.macro_f1(list(found.values())) == pytest.approx(f1_score(truth, answers, average="macro"))
    assert next(iter(found)) == "a"


def test_an_answer_that_is_missing_is_wrong_and_no_label():
    found = scores.label_scores(scores.pairs_of(sets("aab"), sets(["a", None, None])))
    assert [(one.label, one.precision, one.recall, one.f1) for one in found] == [
        ("a", 1.0, 0.5, pytest.approx(2 / 3)),
        ("b", None, 0.0, 0.0),
    ]
    assert scores.top_confusions(scores.pairs_of(sets("aab"), sets(["a", None, "a"]))) == [
        scores.Confusion("a", None, 1),
        scores.Confusion("b", "a", 1),
    ]


def test_certainty_leaves_out_what_is_not_known_and_holds_both_ends():
    found = scores.certainty([0.0, 0.5, 0.99, 1.0, float("-inf"), float("nan")], [False, True, True, True, True, True])
    assert [(one.low, one.rows, one.accuracy) for one in found] == [(0.0, 1, 0.0), (0.5, 1, 1.0), (0.95, 2, 1.0)]
    assert scores.calibration_error(found) == pytest.approx((0.0 + 0.5 + 2 * abs(0.995 - 1)) / 4)
    assert scores.calibration_error([]) is None


@pytest.mark.parametrize(("ours", "theirs", "overlap"), [(0.9, 0.8, 0.75), (0.6, 0.6, 0.5), (0.98, 0.95, 0.94)])
def test_the_interval_of_a_difference_holds_it_as_often_as_it_says(ours, theirs, overlap):
    """95% of 2,000 samples, less what chance takes: three standard errors are 1.5 points."""
    chance = np.random.default_rng(0)
    cells = [overlap, ours - overlap, theirs - overlap, 1 - ours - theirs + overlap]
    held = 0
    for drawn in chance.multinomial(200, cells, size=2000):
        both, mine, yours, neither = drawn.tolist()
        right = [True] * both + [True] * mine + [False] * yours + [False] * neither
        other = [True] * both + [False] * mine + [True] * yours + [False] * neither
        found = scores.paired_difference("x", other, right)
        held += found.low <= ours - theirs <= found.high
    assert held / 2000 >= 0.935


@pytest.fixture
def compared(tmp_path):
    """Two prompts of one model: the one that says "careful" is right, the other has half of the rows right."""
    truth = ["good", "bad"] * 30
    source = write(tmp_path / "in.parquet", [f"{label} {i}" for i, label in enumerate(truth)], truth=truth)
    (tmp_path / "plain.txt").write_text("Label: {labels}. Text: {x}")
    (tmp_path / "careful.txt").write_text("Be careful. Label: {labels}. Text: {x}")

    def answer(body):
        prompt = str(body["messages"][-1]["content"])
        label = "bad" if "careful" in prompt and "Text: bad" in prompt else "good"
        return json.dumps({"label": label})

    with ChatServer(answer) as server:
        where = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--labels", "good,bad"]
        prompts = ["--prompts", f"{tmp_path / 'plain.txt'},{tmp_path / 'careful.txt'}", "--label-column", "truth"]
        yield lambda *more: call("evaluate", "classify", *where, *prompts, *more)


def test_prompts_are_compared_and_their_difference_has_an_interval(compared):
    done = compared("--json")
    assert done.exit_code == 0, done.output
    plain, careful = json.loads(done.stdout.splitlines()[-1])
    assert plain["model"].endswith("plain.txt") and careful["model"].endswith("careful.txt")
    assert (plain["accuracy"], careful["accuracy"], plain["baseline"]) == (0.5, 1.0, 0.5)
    assert plain["confusions"] == [{"truth": "bad", "answer": "good", "rows": 30}]
    assert plain["macro_f1"] == pytest.approx(f1_score(["a", "b"], ["a", "a"], average="macro"))
    assert plain["against_first"] is None
    against = careful["against_first"]
    assert (against["difference"], against["better"], against["worse"]) == (0.5, 30, 0)
    assert 0.3 < against["low"] < 0.5 < against["high"] < 0.7


def test_the_screen_shows_what_decides(compared):
    shown = compared().output
    for words in ("vs first", "macro-F1", "precision", "recall", "commonest label", "is clear"):
        assert words in " ".join(shown.split())


def test_figures_and_rows_are_written_and_markup_is_shown(compared, tmp_path):
    page, figures, rows = (tmp_path / name for name in ("page.html", "figures.csv", "rows.csv"))
    done = compared("--html", page, "--csv", figures, "--rows", rows)
    assert done.exit_code == 0, done.output
    html = page.read_text("utf-8")
    assert "careful.txt" in html and "src=" not in html and "href=" not in html
    lines = list(csv.DictReader(figures.open(encoding="utf-8")))
    assert [line["label"] for line in lines] == ["", "bad", "good"] * 2
    written = list(csv.DictReader(rows.open(encoding="utf-8")))
    assert len(written) == 60
    assert all(line["truth"] == line["text"].partition(" ")[0] for line in written)


def test_labels_with_markup_are_shown_on_the_page(tmp_path):
    label = "<script>alert(1)</script>"
    source = write(tmp_path / "in.parquet", texts(6), truth=[label, "good"] * 3)
    page = tmp_path / "page.html"
    with ChatServer(lambda body: json.dumps({"label": label})) as server:
        where = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--label-column", "truth"]
        (tmp_path / "labels.txt").write_text(f"{label}\ngood\n")
        done = call("evaluate", "classify", *where, "--labels-file", tmp_path / "labels.txt", "--html", page)
    assert done.exit_code == 0, done.output
    assert "<script>" not in page.read_text("utf-8")
    assert "&lt;script&gt;" in page.read_text("utf-8")


def test_a_prompt_that_cannot_be_read_is_refused_before_it_costs(tmp_path):
    source = write(tmp_path / "in.parquet", texts(4), truth=["good"] * 4)
    with ChatServer() as server:
        where = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--label-column", "truth"]
        done = call("evaluate", "classify", *where, "--labels", "good,bad", "--prompts", tmp_path / "none.txt")
        assert (done.exit_code, server.n_requests) == (1, 0)
    assert "none.txt" in done.output and "prompts" in done.output


@pytest.mark.parametrize("flag", ["--html", "--csv", "--rows"])
def test_a_file_that_cannot_be_written_is_told_before_it_costs(tmp_path, flag):
    source = write(tmp_path / "in.parquet", texts(4), truth=["good"] * 4)
    with ChatServer() as server:
        where = ["--input", source, "--gpt-url", server.url, "--model", "custom_url::m", "--label-column", "truth"]
        done = call("evaluate", "classify", *where, "--labels", "good,bad", flag, tmp_path / "none" / "file")
        assert (done.exit_code, server.n_requests) == (1, 0)
    assert "cannot be written" in done.output


def test_a_label_of_few_rows_tells_little_of_its_recall():
    a, b = frozenset("a"), frozenset("b")
    few, many = scores.label_scores(scores.pairs_of([a] * 4 + [b] * 400, [b] * 4 + [b] * 300 + [a] * 100))[::-1]
    assert (few.label, few.recall, few.recall_low) == ("a", 0.0, 0.0)
    assert few.recall_high == pytest.approx(0.49, abs=0.01)
    assert many.recall_low == pytest.approx(0.705, abs=0.01) and many.recall_high == pytest.approx(0.79, abs=0.01)
    (alone,) = (one for one in scores.label_scores(scores.pairs_of([b], [a])) if one.label == "a")
    assert (alone.recall, alone.recall_low, alone.recall_high) == (None, None, None)
