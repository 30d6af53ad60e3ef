"""Students: what the teacher is asked, what they learn, their cascades, and what stands in their files."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from skllm_ray import trusted_types
from skllm_ray.classification import DistilledClassifier, MultiLabelZeroShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.errors import (
    ConfigurationError,
    InputError,
    JobFailedError,
    MissingExtraError,
    NotSupportedError,
    SkllmRayWarning,
)
from skllm_ray.models._base.student import WordCharacters, default_student, words_and_pairs

pytestmark = pytest.mark.usefixtures("local_mode")
WORDS = {"animal": ["cat", "dog", "horse", "cow"], "fruit": ["apple", "pear", "plum", "fig"], "tool": ["saw", "file"]}


class Teacher(ClassifierMixin, BaseEstimator):
    """Knows the words; fails for some texts."""

    def __init__(self, fails=()):
        self.fails = fails

    def fit(self, X, y=None):
        self.classes_ = np.asarray(sorted(WORDS))
        self.asked_ = []
        return self

    def predict(self, X):
        self.asked_ += list(X)
        return np.asarray([None if text in self.fails else label_of(text) for text in X], object)


def label_of(text):
    return next(label for label, words in WORDS.items() if any(word in text.split() for word in words))


def texts_of(n, seed=0):
    rng = np.random.default_rng(seed)
    words = [word for group in WORDS.values() for word in group]
    return [f"{words[rng.integers(len(words))]} of {rng.choice(['mine', 'yours'])}, no {i}" for i in range(n)]


def taught(n=400, **parameters):
    return DistilledClassifier(Teacher().fit(None), n_samples=100, **parameters).fit(texts_of(n))


# --- learning -----------------------------------------------------------------------------------------------------


def test_the_teacher_is_asked_about_a_sample_once_and_the_student_answers_alone():
    texts = texts_of(400)
    clf = taught()
    asked = list(clf.teacher_.asked_)
    assert len(asked) == len(set(asked)) == clf.n_taught_ == 100 and set(asked) <= set(texts)
    assert asked != texts[:100]
    found = clf.predict(texts)
    assert clf.teacher_.asked_ == asked and (found == [label_of(text) for text in texts]).mean() > 0.97
    assert clf.classes_.tolist() == sorted(WORDS)
    np.testing.assert_array_equal(clf.classes_[clf.predict_proba(texts).argmax(axis=1)], found)
    assert clf.score(texts, [label_of(text) for text in texts]) > 0.97


def test_texts_that_repeat_are_asked_about_once():
    teacher = Teacher().fit(None)
    DistilledClassifier(teacher, n_samples=50).fit(texts_of(30) * 5)
    assert len(teacher.asked_) == 30


def test_the_draw_depends_on_the_seed_alone():
    asked = [taught(random_state=seed).teacher_.asked_ for seed in (None, 0, 1)]
    assert asked[0] == asked[1] != asked[2]


def test_rows_that_the_teacher_fails_teach_nothing_and_it_is_said():
    texts = texts_of(60)
    with pytest.warns(SkllmRayWarning, match="no valid answer for 20 of 60 texts"):
        clf = DistilledClassifier(Teacher(frozenset(texts[:20])).fit(None)).fit(texts)
    assert clf.n_taught_ == 40
    with pytest.raises(JobFailedError, match="failed for all 60 texts"):
        DistilledClassifier(Teacher(frozenset(texts)).fit(None)).fit(texts)


def test_teachers_that_are_not_fitted_are_fitted_with_the_labels():
    texts = [f"{word} product, number {i}" for i in range(15) for word in ("Lovely", "Terrible")]
    clf = DistilledClassifier(ZeroShotGPTClassifier(model="gguf::demo")).fit(texts, ["negative", "positive"])
    assert clf.predict(["A lovely lamp"]).tolist() == ["positive"]
    with pytest.raises(ConfigurationError, match="is not fitted, and y is None"):
        DistilledClassifier(ZeroShotGPTClassifier(model="gguf::demo")).fit(texts)


def test_students_of_ones_own():
    clf = taught(student=make_pipeline(CountVectorizer(), MultinomialNB()))
    assert (clf.predict(texts_of(50, 3)) == [label_of(text) for text in texts_of(50, 3)]).mean() > 0.9


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_samples": 1}, ConfigurationError, "n_samples must be an int of at least 2"),
        ({"random_state": "0"}, ConfigurationError, "random_state"),
        ({"student": "logistic"}, ConfigurationError, "student must be a classifier"),
        ({"student": make_pipeline(TfidfVectorizer(), LinearSVC())}, NotSupportedError, "has no predict_proba"),
    ],
)
def test_bad_parameters_are_named_before_the_teacher_is_asked(parameters, error, message):
    teacher = Teacher().fit(None)
    with pytest.raises(error, match=message):
        DistilledClassifier(teacher, **parameters).fit(texts_of(50))
    assert teacher.asked_ == []


def test_what_nothing_can_be_learned_from_is_refused():
    teacher = Teacher().fit(None)
    with pytest.raises(InputError, match="missing"):
        DistilledClassifier(teacher).fit([*texts_of(5), None])
    several = MultiLabelZeroShotGPTClassifier(model="gguf::demo").fit(None, ["a", "b"])
    with pytest.raises(NotSupportedError, match="several labels"):
        DistilledClassifier(several).fit(texts_of(5))
    assert teacher.asked_ == []
    with pytest.raises(InputError, match="label 'animal': nothing can be learned"):
        DistilledClassifier(teacher).fit(["cat 1", "cat 2"])
    with pytest.raises(NotFittedError):
        DistilledClassifier(teacher).predict(["cat"])


def test_clones_and_pickles():
    clf = taught()
    copy = clone(clf)
    assert copy.get_params()["n_samples"] == 100 and not copy.__sklearn_is_fitted__()
    loaded = pickle.loads(pickle.dumps(clf))
    assert loaded.predict(texts_of(50)).tolist() == clf.predict(texts_of(50)).tolist()


# --- cascades -----------------------------------------------------------------------------------------------------


def test_a_cascade_counts_no_row_that_taught_the_student_and_pays_for_none_twice():
    texts = texts_of(2000)
    clf = DistilledClassifier(Teacher().fit(None), n_samples=200).fit(texts)
    cascade = clf.as_cascade(max_disagreement=0.04, random_state=3)
    details = cascade.predict_details(texts)
    assert cascade.certificate_.n_rows == 1800
    asked = clf.teacher_.asked_
    assert len(asked) == len(set(asked)) == 200 + (details["stage"] != "fast").sum() - 200
    assert (details["prediction"] != [label_of(text) for text in texts]).mean() <= 0.04
    of_taught = details[[text in set(asked[:200]) for text in texts]]
    assert set(of_taught["stage"]) == {"strong"} and of_taught["cost_usd"].sum() == 0 and of_taught["valid"].all()
    assert of_taught["attempts"].sum() == 0 and of_taught["error_kind"].isna().all()
    assert cascade.predict(asked[:5]).tolist() == [label_of(text) for text in asked[:5]]
    again = pickle.loads(pickle.dumps(cascade))
    assert again.predict(texts).tolist() == details["prediction"].tolist()
    assert len(again.strong.asked_) - len(asked) == (details["stage"] != "fast").sum() - 200


def test_what_taught_the_student_calibrates_nothing():
    texts = texts_of(1000)
    clf = DistilledClassifier(Teacher().fit(None), n_samples=200).fit(texts)
    with pytest.warns(SkllmRayWarning, match="200 of 1,000 rows taught the fast classifier"):
        cascade = clf.as_cascade().calibrate(texts)
    assert cascade.certificate_.n_sampled == 800


# --- the default student ------------------------------------------------------------------------------------------


def test_characters_are_those_that_scikit_learn_counts():
    texts = ["Lost my card again", "a card", "", "Überweisung, no. 5"]
    mine = WordCharacters().fit(texts)
    reference = CountVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), preprocessor=lambda text: " ".join(words(text))
    ).fit(texts)
    assert mine.get_feature_names_out().tolist() == reference.get_feature_names_out().tolist()
    new = [*texts, "cardigans are new here", "card card"]
    assert (mine.transform(new).toarray() == reference.transform(new).toarray()).all()


def words(text):
    return [word for word in words_and_pairs(text) if " " not in word]


def test_many_rows_are_hashed():
    student = default_student(2_000_000)
    texts = texts_of(300)
    found = student.fit(texts, [label_of(text) for text in texts])
    assert found[-1].loss == "log_loss" and found.predict_proba(texts).shape == (300, 3)


def test_words_alone():
    student = default_student(300, characters=False)
    texts = texts_of(300)
    assert (
        student.fit(texts, [label_of(text) for text in texts]).score(
            texts_of(50, 2), list(map(label_of, texts_of(50, 2)))
        )
        > 0.97
    )


# --- files --------------------------------------------------------------------------------------------------------


def test_a_saved_student_is_two_files_without_texts_or_keys(tmp_path):
    pytest.importorskip("skops.io")
    texts = texts_of(1500)
    clf = DistilledClassifier(Teacher().fit(None), n_samples=100).fit(texts)
    cascade = clf.as_cascade()
    cascade.predict(texts)
    clf.save(tmp_path / "things.skops", certificate=cascade.certificate_)
    about = json.loads((tmp_path / "things.json").read_text())
    assert about["teacher"] == "Teacher" and about["labels"] == sorted(WORDS) and about["n_taught"] == 100
    assert about["promise"] == str(cascade.certificate_) and "no 1" not in (tmp_path / "things.json").read_text()
    loaded = DistilledClassifier.load(tmp_path / "things.skops")
    assert loaded.predict(texts).tolist() == clf.predict(texts).tolist()
    assert loaded.classes_.tolist() == clf.classes_.tolist() and loaded.certificate_ == cascade.certificate_
    with pytest.raises(ConfigurationError, match="loaded without its teacher"):
        loaded.as_cascade()
    with_teacher = DistilledClassifier.load(tmp_path / "things.skops", teacher=clf.teacher_)
    again = with_teacher.as_cascade().predict_details(texts)
    assert (again["stage"] == "strong").sum() >= 100
    with pytest.raises(ConfigurationError, match="its teacher is 'LogisticRegression', not 'Teacher'"):
        DistilledClassifier.load(tmp_path / "things.skops", teacher=LogisticRegression())


def test_a_language_model_is_told_by_its_name_and_its_prompt(tmp_path):
    pytest.importorskip("skops.io")
    texts = [f"{word} product, number {i}" for i in range(15) for word in ("Lovely", "Terrible")]
    teacher = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["negative", "positive"])
    clf = DistilledClassifier(teacher).fit(texts)
    clf.save(tmp_path / "s.skops")
    assert json.loads((tmp_path / "s.json").read_text())["teacher"] == "ZeroShotGPTClassifier('gguf::demo')"
    assert DistilledClassifier.load(tmp_path / "s.skops", teacher).prompt_hash_ == clf.prompt_hash_ is not None
    other = clone(teacher).set_params(prompt_template="{labels} {x}").fit(None, ["negative", "positive"])
    with pytest.raises(ConfigurationError, match="its prompt_sha256 is"):
        DistilledClassifier.load(tmp_path / "s.skops", other)


def test_a_file_of_another_kind_is_refused(tmp_path):
    skops = pytest.importorskip("skops.io")
    with pytest.raises(InputError, match=r"nothing\.json tells nothing of the student"):
        DistilledClassifier.load(tmp_path / "nothing.skops")
    own = taught(student=make_pipeline(CountVectorizer(analyzer=words_of_mine), MultinomialNB()))
    own.save(tmp_path / "own.skops")
    with pytest.raises(Exception, match="words_of_mine"):
        DistilledClassifier.load(tmp_path / "own.skops")
    trusted = skops.get_untrusted_types(file=tmp_path / "own.skops")
    assert DistilledClassifier.load(tmp_path / "own.skops", trusted=trusted).predict(["cat"]).tolist() == ["animal"]


def words_of_mine(text):
    return text.split()


def test_whole_estimators_go_through_skops_too():
    skops = pytest.importorskip("skops.io")
    texts = [f"{word} product, number {i}" for i in range(200) for word in ("Lovely", "Terrible")]
    teacher = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["negative", "positive"])
    clf = DistilledClassifier(teacher, n_samples=50).fit(texts).as_cascade(n_samples=70)
    clf.predict(texts)
    loaded = skops.loads(skops.dumps(clf), trusted=trusted_types())
    assert loaded.certificate_ == clf.certificate_ and loaded.get_params()["n_samples"] == 70


def test_without_skops_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skops.io", None)
    with pytest.raises(MissingExtraError, match=r"skllm-ray\[skops\]"):
        taught().save(tmp_path / "s.skops")
