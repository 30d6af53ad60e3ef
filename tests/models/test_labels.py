"""Whether labels can work: what is told without asking, and from the answers to a sample."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from skllm_ray.classification import (
    CoTGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.cli import main
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import SkllmRayWarning
from skllm_ray.models._base.label_check import (
    LabelReport,
    answers_told,
    beyond_context,
    competing,
    given_together,
    meaningless,
    names_alike,
    report_of,
    truths_outside,
    undescribed,
)
from skllm_ray.testing import ChatServer

pytestmark = pytest.mark.usefixtures("local_mode")


def kinds(findings):
    return [(one.severity, one.kind) for one in findings]


def test_labels_that_cannot_be_told_apart_and_labels_that_look_alike():
    assert kinds(names_alike(["Refund", " refund", "delivery"])) == [("error", "duplicate")]
    assert "stands twice" in names_alike(["a", "b", "a"])[0].message
    near = names_alike(["card_payment_fee_charged", "card payment fees charged", "top_up_failed", "cash"])
    assert kinds(near) == [("warning", "alike")]
    assert near[0].labels == ("card_payment_fee_charged", "card payment fees charged")
    assert names_alike(["billing", "delivery", "product", "😀", "返金"]) == []
    assert names_alike([f"label {i:04d}" for i in range(1200)]) == []  # so many are not compared in pairs


def test_descriptions_that_are_missing():
    assert kinds(undescribed(["a", "b"], {})) == [("note", "description")]
    told = undescribed(["a", "b", "c"], {"a": "x", "b": " "})
    assert kinds(told) == [("warning", "description")] and told[0].labels == ("b", "c")
    assert undescribed(["a"], {"a": "x"}) == []


def test_true_labels_that_are_no_candidates():
    told = truths_outside(["refund", "delivery"], ["refund"] * 20 + ["refunds", "other", "other"])
    assert kinds(told) == [("warning", "truth"), ("note", "truth")]
    assert "3 of 23 true labels are no candidates" in told[0].message
    assert "'other' (2), 'refunds' (1; 'refund'?)" in told[0].message and told[1].labels == ("delivery",)
    assert kinds(truths_outside(["a"], ["b", "c"])) == [("error", "truth")]
    assert truths_outside(["a"], []) == []


def test_what_does_not_fit_into_the_context():
    assert beyond_context("m", None, 10**9, []) == []
    assert kinds(beyond_context("m", 1000, 1200, [1300])) == [("error", "context")]
    told = beyond_context("m", 1000, 200, [300, 1100, 2100])
    assert kinds(told) == [("warning", "context")] and "2 of 3 prompts are longer" in told[0].message
    assert kinds(beyond_context("m", 1000, 600, [700])) == [("note", "context")]
    assert beyond_context("m", 1000, 100, [200]) == []


def test_labels_between_which_a_model_wavers():
    rng = np.random.default_rng(0)
    sure = np.full((40, 4), 0.01)
    sure[np.arange(40), rng.integers(2, 4, 40)] = 0.97
    wavers = np.tile([0.5, 0.45, 0.03, 0.02], (20, 1))
    told = competing(["a", "b", "c", "d"], np.vstack([sure, wavers]))
    assert [one.labels for one in told] == [("a", "b")] and "90% of the first" in told[0].message
    assert competing(["a", "b"], np.zeros((0, 2))) == []
    pairs = given_together([("a", "b")] * 9 + [("c",)] * 9 + [("a", "b", "c")])
    assert [one.labels for one in pairs] == [("a", "b")]


def test_a_report_tells_the_gravest_first():
    report = report_of([*undescribed(["a", "b"], {}), *names_alike(["a", "A"])])
    assert [one.severity for one in report.findings] == ["error", "note"] and not report.ok
    assert str(report).startswith("error: 'a' and 'A' differ") and len(report.to_frame()) == 2
    assert str(LabelReport(())) == "Nothing speaks against them." and LabelReport(()).ok


def test_a_classifiers_labels_are_checked_with_and_without_a_sample():
    described = {"negative": "complains", "positive": "praises"}
    clf = ZeroShotGPTClassifier(model="gguf::demo", label_descriptions=described).fit(None, ["negative", "positive"])
    assert clf.check_labels().findings == ()
    texts = [f"{word} product, number {i}" for i in range(30) for word in ("Lovely", "Terrible")]
    report = clf.check_labels(texts, ["positive", "negative"] * 30, n_samples=40)
    assert (report.n_asked, report.findings) == (40, ())
    told = clf.check_labels(texts[::2], n_samples=30)
    assert [one.kind for one in told.findings] == ["one label"]
    assert clf.check_labels(texts, n_samples=0).n_asked == 0
    long = clf.check_labels(["word " * 5000], n_samples=0)
    assert [one.kind for one in long.findings] == ["context"]
    many = ZeroShotGPTClassifier(model="gguf::demo").fit(None, [f"topic {i} of zebras" for i in range(2000)])
    stopped = many.check_labels(texts)
    assert not stopped.ok and stopped.n_asked == 0  # nothing is asked where nothing can be answered


class Says(ChatServer):
    def __init__(self, answer):
        super().__init__(lambda body: json.dumps(answer(body["messages"][-1]["content"])))


def test_explanations_and_several_labels_are_checked_too():
    with Says(lambda text: {"explanation": "so", "label": "a" if "1" in text else "b"}) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = CoTGPTClassifier(model="custom_url::m").fit(None, ["a", "b", "c"])
        found = clf.check_labels([f"text {i}" for i in range(25)])
        assert [one.labels for one in found.findings if one.kind == "unused"] == [("c",)]
    with Says(lambda text: {"label": ["a", "b"] if "1" in text else ["c"]}) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = MultiLabelZeroShotGPTClassifier(model="custom_url::m", max_labels=2).fit(None, [["a", "b", "c"]])
        found = clf.check_labels([f"text {i}" for i in range(25)], y=[["a"], ["b", "z"]])
        assert [one.labels for one in found.findings if one.kind == "overlap"] == [("a", "b")]
        assert [one.labels for one in found.findings if one.kind == "truth"] == [("z",)]


def test_predict_warns_where_all_texts_get_one_label():
    clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["negative", "positive"])
    texts = [f"Lovely, and{' very' * i} great." for i in range(60)]
    with pytest.warns(SkllmRayWarning, match="All 60 texts were given the label 'positive', one of 2 candidates"):
        clf.predict(texts)
    clf.predict(texts[:40])
    clf.predict(texts[:1] * 100)  # one text has one label
    clf.predict([*texts, "Terrible"])


def test_the_command_tells_and_its_exit_code_says_whether_it_can_work(tmp_path):
    texts = [f"{word} product, number {i}" for i in range(30) for word in ("Lovely", "Terrible")]
    frame = pd.DataFrame({"text": texts, "label": ["positive", "negativ"] * 30})
    frame.to_csv(tmp_path / "in.csv", index=False)
    base = ["labels", "check", "classify", "--model", "gguf::demo", "--labels", "negative,positive"]
    bare = CliRunner().invoke(main, base)
    assert bare.exit_code == 0 and "No label has a description" in bare.output
    found = CliRunner().invoke(main, [*base, "--input", str(tmp_path / "in.csv"), "--sample", "20", "--json"])
    told = json.loads(found.output)
    assert found.exit_code == 0 and told["asked"] == 20
    truth = next(one for one in told["findings"] if one["kind"] == "truth")
    assert "30 of 60 true labels" in truth["message"] and "'negative'?" in truth["message"]
    twice = CliRunner().invoke(main, [*base[:-1], "a,b,a"])
    assert twice.exit_code == 1 and "stands twice" in twice.output
    case = CliRunner().invoke(main, [*base[:-1], "Refund,refund"])
    assert case.exit_code == 1
    nothing = CliRunner().invoke(main, base[:-2])
    assert nothing.exit_code == 1 and "labels is missing" in nothing.output


def test_labels_that_are_true_of_rows_and_given_to_none_are_warned_of_with_how_many():
    names, labels = ["a", "b", "c", "d"], ["a"] * 15 + ["b"] * 10
    found = {(one.severity, one.labels) for one in answers_told(names, labels, ["c"] * 7 + ["a"] * 20)}
    assert found == {("warning", ("c",)), ("note", ("d",))}
    (told,) = [one.message for one in answers_told(names, labels, ["c"] * 7 + ["a"] * 20) if one.labels == ("c",)]
    assert "'c' (7)" in told and "27 rows" in told


def test_a_label_that_nearly_all_texts_got_is_warned_of():
    (found,) = [one for one in answers_told(["a", "b", "c"], ["a"] * 85 + ["b"] * 15) if one.kind == "one label"]
    assert found.severity == "warning" and "85 of 100" in found.message and "label_prior" in found.message
    assert not [one for one in answers_told(["a", "b"], ["a"] * 85 + ["b"] * 15) if one.kind == "one label"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["refund", "misc b2", "late delivery"], ["misc b2"]),
        (["refund", "Miscellaneous", "other"], ["Miscellaneous"]),
        (["1", "2", "3"], []),  # grades
        (["top up by card", "pin blocked", "ärger"], []),
    ],
)
def test_names_that_say_nothing_are_told_of_unless_described(names, found):
    assert [label for one in meaningless(names, {}) for label in one.labels] == found
    assert meaningless(names, dict.fromkeys(names, "what it means")) == []


@pytest.mark.parametrize(
    ("given", "truths", "told"),
    [
        (28, ["a"] * 5 + ["b"] * 95, "'a' was given to 28 of 60 texts, and is true of 5% of the rows"),
        (28, ["a"] * 45 + ["b"] * 55, None),  # it is as common as that
        (12, ["a"] * 5 + ["b"] * 95, None),  # others get more
        (40, [], "'a' was given to 40 of 60 texts, one of 20"),
    ],
)
def test_a_label_that_a_model_likes_is_told_before_labels_are_renamed(given, truths, told):
    names = [*"abcdefghijklmnopqrst"]
    rest = [names[1 + i % 19] for i in range(60 - given)]
    found = answers_told(names, ["a"] * given + rest, truths)
    liked = [one.message for one in found if one.kind == "liked label"]
    assert bool(liked) == (told is not None)
    if told:
        assert liked[0].startswith(told) and "--label-prior uniform" in liked[0]
        assert found[0].kind == "liked label"
