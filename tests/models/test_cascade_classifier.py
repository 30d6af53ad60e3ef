"""Cascades: what is asked of which model, what is delivered, what is promised, and what is refused before it costs."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

import skllm_ray.models._base.estimator
from skllm_ray.cascade import draw_sample
from skllm_ray.classification import (
    CascadeClassifier,
    CoTGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import (
    ConfigurationError,
    InputError,
    JobFailedError,
    NotSupportedError,
    PartialResultError,
    SkllmRayWarning,
)
from skllm_ray.tasks.base import Reply, RowError, Usage
from skllm_ray.testing import ChatServer, FakeBackend, FakeSpec
from skllm_ray.testing.chat_http import Response

pytestmark = pytest.mark.usefixtures("local_mode")
LABELS = ["blue", "green", "red"]


class Known(ClassifierMixin, BaseEstimator):
    """Says of the text "i: label p other" the label with the probability p; strong ones say the other label."""

    def __init__(self, strong=False, fails=(), classes=tuple(LABELS)):
        self.strong, self.fails, self.classes = strong, fails, classes

    def fit(self, X, y=None):
        self.classes_ = np.asarray(self.classes)
        self.asked_ = []
        return self

    def predict(self, X):
        self.asked_ += list(X)
        return np.asarray([None if text in self.fails else text.split()[3 if self.strong else 1] for text in X], object)

    def predict_proba(self, X):
        self.asked_ += list(X)
        found = np.zeros((len(X), len(self.classes_)))
        for row, text in enumerate(X):
            label, p = text.split()[1:3]
            found[row] = (1 - float(p)) / (len(self.classes_) - 1)
            found[row, list(self.classes_).index(label)] = float(p)
            if text in self.fails:
                found[row] = np.nan
        return found


def rows(n_rows, wrong_below=0.5, seed=0):
    """Return texts of which the unsure ones differ."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.4, 1, n_rows)
    label = rng.integers(0, 3, n_rows)
    other = np.where(sure < wrong_below, (label + 1) % 3, label)
    return [f"{i}: {LABELS[a]} {p:.6f} {LABELS[b]}" for i, (a, p, b) in enumerate(zip(label, sure, other, strict=True))]


def pair(**options):
    return Known(**options).fit(None), Known(strong=True, **options).fit(None)


def truth(texts):
    return np.array([text.split()[3] for text in texts])


# --- what is asked and delivered ----------------------------------------------------------------------------------


def test_each_row_is_asked_once_and_the_strong_one_about_the_sample_and_the_unsure():
    texts, (fast, strong) = rows(3000, 0.55), pair()
    clf = CascadeClassifier(fast, strong)
    details = clf.predict_details(texts)
    assert sorted(fast.asked_) == sorted(texts)
    sample = draw_sample(3000, 300, 0)
    assert np.flatnonzero(details["stage"] == "sample").tolist() == sample.tolist()
    escalated = [texts[i] for i in np.flatnonzero(details["stage"] != "fast")]
    assert sorted(strong.asked_) == sorted(escalated) and len(escalated) < 1500
    assert strong.asked_[:300] == [texts[i] for i in sample]
    assert (details.loc[details["stage"] != "fast", "prediction"] == truth(escalated)).all()
    assert details["prediction"].tolist() == clf.predict(texts).tolist()
    assert (details["prediction"] != truth(texts)).mean() <= 0.05
    kept = details[details["stage"] == "fast"]
    assert (kept["score"] > clf.certificate_.threshold).all() and kept["strong_label"].isna().all()
    unsure = details[details["stage"] == "strong"]
    assert (unsure["score"] <= clf.certificate_.threshold).all() and unsure["fast_label"].notna().all()
    assert details["fast_label"].tolist() == [text.split()[1] for text in texts]


def test_the_promise_is_kept_by_the_estimator():
    """Over many populations of which a plain cascade would deliver too much wrongly; the pure test has 2,000 seeds."""
    broken = 0
    for seed in range(100):
        texts, (fast, strong) = rows(900, 0.46, seed), pair()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = CascadeClassifier(fast, strong, random_state=seed).predict(texts)
        broken += (found != truth(texts)).mean() > 0.05
    assert broken <= 12  # binom.ppf(.999, 100, .05) is 13


def test_certificates_and_samples_depend_on_the_seed_alone():
    texts = rows(2000)
    one, again, other = (CascadeClassifier(*pair(), random_state=seed) for seed in (None, 0, 1))
    stages = [clf.predict_details(texts)["stage"].tolist() for clf in (one, again, other)]
    assert stages[0] == stages[1] != stages[2]
    assert one.certificate_ == again.certificate_
    assert (one.certificate_.n_rows, one.certificate_.n_sampled, one.certificate_.population) == (2000, 300, "finite")


def test_few_rows_are_all_asked_of_the_strong_one_and_it_is_said():
    texts, (fast, strong) = rows(100), pair()
    with pytest.warns(SkllmRayWarning, match="All 100 rows were sampled"):
        found = CascadeClassifier(fast, strong).predict(texts)
    assert found.tolist() == truth(texts).tolist() and sorted(strong.asked_) == sorted(texts)


def test_a_fast_one_that_is_no_help_is_told():
    texts = [f"{i}: blue 0.9{i:05d} red" for i in range(1000)]
    with pytest.warns(SkllmRayWarning, match="of 1,000 fast labels were kept"):
        found = CascadeClassifier(*pair()).predict(texts)
    assert 0 < (found != "red").mean() <= 0.05  # so many may differ, and they do


def test_equal_scores_are_kept_by_chance_and_not_by_their_place():
    texts = [f"{i}: blue 0.900000 {'red' if i < 300 else 'blue'}" for i in range(3000)]
    details = CascadeClassifier(*pair()).predict_details(texts)
    kept = np.flatnonzero(details["stage"] == "fast")
    assert 500 < len(kept) < 2500 and abs(np.median(kept) - 1500) < 200
    assert (details["prediction"] != truth(texts)).mean() <= 0.05


def test_failed_fast_rows_are_escalated_and_failed_strong_rows_are_disagreements():
    texts = rows(1000, 0.0)
    fast, strong = Known(fails=frozenset(texts[100:200])).fit(None), Known(strong=True).fit(None)
    details = CascadeClassifier(fast, strong).predict_details(texts)
    assert set(details["stage"][100:200]) == {"strong", "sample"}
    assert details["prediction"].tolist() == truth(texts).tolist()
    sample = draw_sample(1000, 300, 0)
    strong = Known(strong=True, fails=frozenset(texts[i] for i in sample[:40])).fit(None)
    clf = CascadeClassifier(Known().fit(None), strong)
    with pytest.warns(SkllmRayWarning, match="no valid answer for 40 of 300 sampled rows"):
        details = clf.predict_details(texts)
    assert clf.certificate_.n_disagreed == 40
    assert details["prediction"][sample[:40]].isna().all()  # no fast label stands in for them
    with pytest.warns(SkllmRayWarning), pytest.raises(PartialResultError, match="40 of 1000 rows failed") as caught:
        clf.predict(texts)
    assert len(caught.value.details) == 1000 and caught.value.details["prediction"].notna().sum() == 960
    with pytest.warns(SkllmRayWarning):
        assert [label is None for label in clf.predict(texts, on_error="coerce")].count(True) == 40


def test_models_that_answer_nothing_are_found_out_with_the_sample():
    texts = rows(1000)
    fast, strong = Known(fails=frozenset(texts)).fit(None), Known(strong=True).fit(None)
    with pytest.raises(JobFailedError, match="fast classifier gave no label with a probability for any of 300"):
        CascadeClassifier(fast, strong).predict(texts)
    assert (len(fast.asked_), strong.asked_) == (300, [])
    fast, strong = Known().fit(None), Known(strong=True, fails=frozenset(texts)).fit(None)
    with pytest.raises(JobFailedError, match="strong classifier failed for all 300"):
        CascadeClassifier(fast, strong).predict(texts)
    assert (len(fast.asked_), len(strong.asked_)) == (300, 300)


def test_missing_texts_are_no_rows():
    texts = [*rows(1000), None, " "]
    fast, strong = pair()
    clf = CascadeClassifier(fast, strong)
    with pytest.raises(InputError, match="2 missing"):
        clf.predict(texts)
    assert fast.asked_ == []
    found = clf.predict_details(pd.Series(texts, index=range(5, 1007)))
    assert found.index.tolist() == list(range(5, 1007))
    assert found["error_kind"].tolist()[-2:] == ["missing_text"] * 2 and found["stage"].isna().sum() == 2
    assert clf.certificate_.n_rows == 1000
    assert clf.predict([None, None], on_error="coerce").tolist() == [None, None]


def test_tables_and_arrays_are_rows_too():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 4))
    y = np.where(X.sum(axis=1) > 0, 1, 0)
    strong, fast = LogisticRegression().fit(X, y), RandomForestClassifier(5, random_state=0).fit(X[:200], y[:200])
    expected = CascadeClassifier(fast, strong).predict(X)
    assert expected.dtype == y.dtype and (expected != strong.predict(X)).mean() <= 0.05
    for form in (csr_array(X), pd.DataFrame(X)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, of names of columns
            assert CascadeClassifier(fast, strong).predict(form).tolist() == expected.tolist()


@pytest.mark.parametrize("given", [{"fast": None}, {"fast": "gpt-5.4-mini"}, {"strong": 7}])
def test_what_is_no_classifier_is_named_and_not_merely_not_fitted(given):
    fast, strong = pair()
    with pytest.raises(ConfigurationError, match=f"{next(iter(given))} must be a classifier"):
        CascadeClassifier(**{"fast": fast, "strong": strong, **given}).predict(rows(500))


def test_a_classifier_that_does_not_answer_for_every_row_is_named():
    class Short(Known):
        def predict(self, X):
            return super().predict(X)[:-1]

        def predict_proba(self, X):
            return super().predict_proba(X)[:-1]

    fast, strong = pair()
    for given in ({"fast": Short().fit(None)}, {"strong": Short(strong=True).fit(None)}):
        with pytest.raises(JobFailedError, match="Short gave 299 answers for 300 rows"):
            CascadeClassifier(**{"fast": fast, "strong": strong, **given}).predict(rows(1000))


# --- streams ------------------------------------------------------------------------------------------------------


def test_calibrate_certifies_once_and_predict_then_samples_nothing():
    fast, strong = pair()
    clf = CascadeClassifier(fast, strong).calibrate(rows(2000, 0.55))
    assert (clf.certificate_.population, clf.certificate_.n_sampled, len(strong.asked_)) == ("stream", 2000, 2000)
    before, later = clf.certificate_, rows(1000, 0.55, seed=7)
    details = clf.predict_details(later)
    assert set(details["stage"]) == {"fast", "strong"} and clf.certificate_ == before
    assert (details["prediction"] != truth(later)).mean() < 0.05
    one_by_one = [clf.predict([text])[0] for text in later[:50]]
    assert one_by_one == details["prediction"].tolist()[:50]  # a row's stage depends on its text alone
    few = CascadeClassifier(*pair(), n_samples=100).calibrate(rows(2000))
    assert few.certificate_.n_sampled == 100
    assert few.fit(None, None).predict(rows(500)).shape == (500,) and few.certificate_.population == "finite"


def test_texts_that_repeat_in_a_calibration_are_kept_together():
    texts = [f"{i}: blue 0.900000 {'red' if i < 3 else 'blue'}" for i in range(10)] * 40
    clf = CascadeClassifier(*pair()).calibrate(texts)
    details = clf.predict_details(texts)
    assert details.groupby("fast_label").size().sum() == 400
    assert pd.Series(details["stage"].to_numpy()).groupby(pd.Series(texts)).nunique().max() == 1
    assert (details["prediction"] != truth(texts)).mean() <= 0.05


def test_a_stream_of_equal_rows_needs_enough_of_them():
    fast, strong = pair()
    with pytest.raises(InputError, match="takes at least 59"):
        CascadeClassifier(fast, strong).calibrate(rows(50))
    assert fast.asked_ == strong.asked_ == []


def test_kept_rows_are_audited_for_ever_and_a_change_of_the_rows_is_an_alarm():
    fast, strong = pair()
    clf = CascadeClassifier(fast, strong, audit_share=0.1).calibrate(rows(2000, 0.5))
    before, later = len(strong.asked_), rows(2000, 0.5, seed=7)
    details = clf.predict_details(later)
    audited = details["stage"] == "audit"
    assert 80 < audited.sum() < 250 and (details["prediction"][audited] == truth(later)[audited]).all()
    assert len(strong.asked_) - before == (details["stage"] != "fast").sum()
    told = clf.audit_
    assert (told.n_rows, told.n_audited) == (2000, audited.sum())
    assert told.n_kept == details["stage"].isin(["fast", "audit"]).sum() and not told.alarm
    assert told.n_disagreed == (details["fast_label"] != details["strong_label"])[audited].sum()
    with pytest.warns(SkllmRayWarning, match="More differ than was promised: certify anew"):
        clf.predict(rows(2000, 0.9, seed=8))  # the fast one is wrong now where it was right
    assert clf.audit_.n_rows == 4000
    assert "audit_" not in vars(clf.calibrate(rows(2000, 0.9)))


def test_a_failed_audit_tells_nothing():
    texts = rows(2000, 0.0)
    fast, strong = pair()
    clf = CascadeClassifier(fast, strong, audit_share=0.1).calibrate(rows(1000, 0.0, seed=3))
    strong.fails = frozenset(texts)
    details = clf.predict_details(texts, on_error="coerce")
    assert (details["stage"] == "audit").sum() > 100 and (clf.audit_.n_audited, clf.audit_.n_disagreed) == (0, 0)


def test_audits_travel_as_they_stand_and_there_are_none_before_any():
    clf = CascadeClassifier(*pair(), audit_share=0.1).calibrate(rows(1000))
    with pytest.raises(AttributeError, match="No label was audited yet"):
        _ = clf.audit_
    clf.predict(rows(500, seed=2))
    assert pickle.loads(pickle.dumps(clf)).audit_ == clf.audit_
    assert not hasattr(clone(clf), "audit_")


# --- how far the strong one agrees with itself, and how often these rows were certified ---------------------------


class Fickle(ChatServer):
    """Answers by the text, and otherwise when it is asked a second time about one of the first texts."""

    def __init__(self):
        self.seen = {}
        super().__init__(self.say)

    def say(self, body):
        text = body["messages"][-1]["content"].rpartition("\n```\n")[2].removesuffix("\n```")
        n = self.seen[text] = self.seen.get(text, 0) + 1
        i, label, _, other = text.split()
        return json.dumps({"label": label if n > 1 and i[-2] in "012" and label != other else other})


def test_a_strong_model_is_asked_again_and_it_is_told_how_often_it_agrees_with_itself(tmp_path):
    texts = rows(300, 0.6)
    with Fickle() as server:
        SKLLMConfig.set_gpt_url(server.url)
        strong = ZeroShotGPTClassifier(model="custom_url::m").fit(None, LABELS)
        clf = CascadeClassifier(pair()[0], strong, n_repeats=50, n_samples=100)
        details = clf.predict_details(texts)
        twice = {text for text, n in server.seen.items() if n == 2}
        assert len(twice) == 50 and twice <= {texts[i] for i in draw_sample(300, 100, 0)}
        assert server.n_requests == (details["stage"] != "fast").sum() + 50
        told = clf.certificate_
        n_changed = sum(t.split()[0][-2] in "012" and t.split()[1] != t.split()[3] for t in twice)
        assert (told.n_repeated, told.n_changed) == (50, n_changed) and n_changed > 0
        assert f"Asked again about 50 sampled rows, it gave {100 - 2 * n_changed}% of them the same label" in str(told)
        assert details["attempts"].sum() == server.n_requests  # what was asked twice is paid twice, and shown
        SKLLMConfig.set_reply_cache(tmp_path / "replies")
        strong = ZeroShotGPTClassifier(model="custom_url::m").fit(None, LABELS)
        clf = CascadeClassifier(pair()[0], strong, n_repeats=50).calibrate(texts[:60])
        assert clf.certificate_.n_repeated == 0  # a cache says the same again, and costs nothing
        SKLLMConfig.set_reply_cache(None)
    still = CascadeClassifier(*pair(), n_repeats=50, n_samples=100)
    still.predict(texts)
    assert still.certificate_.n_repeated == 0 and len(still.strong.asked_) == len(set(still.strong.asked_))


def test_certificates_for_the_same_rows_are_counted():
    texts = rows(1500, seed=11)
    told = []
    for given in ({}, {}, {"random_state": 1}, {"max_disagreement": 0.1}):
        clf = CascadeClassifier(*pair(), **given)
        clf.predict(texts)
        told.append(clf.certificate_)
    assert [one.n_attempts for one in told] == [1, 1, 2, 3]  # the same certificate again is no other attempt
    assert "certificates" not in str(told[0])
    assert "one of 3 certificates for these rows: each holds by itself, and one that is picked" in str(told[3])
    assert "holds with 85% at least" in str(told[3])
    assert "promises nothing" in str(replace(told[3], n_attempts=20))
    clf.predict(rows(1500, seed=12))
    assert clf.certificate_.n_attempts == 1
    clf.calibrate(texts)
    assert clf.certificate_.n_attempts == 1  # a promise about others, and not about these rows


# --- a learned score ----------------------------------------------------------------------------------------------


def test_a_learned_score_sees_what_the_probability_does_not():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 8000)  # the fast one is sure of "red", and always wrong about it
    sure = np.where(label == 2, rng.uniform(0.8, 1, 8000), rng.uniform(0.5, 0.9, 8000))
    other = np.where((label == 2) & (np.arange(8000) % 2 == 0), 0, label)
    texts = [
        f"{i}: {LABELS[a]} {p:.5f} {LABELS[b]}" for i, (a, p, b) in enumerate(zip(label, sure, other, strict=True))
    ]
    asked = {}
    for score in ("probability", "learned"):
        fast, strong = pair()
        clf = CascadeClassifier(fast, strong, score=score, n_samples=600)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = clf.predict(texts)
        assert (found != truth(texts)).mean() <= 0.05
        asked[score] = len(strong.asked_)
    assert asked["learned"] < 0.7 * asked["probability"]
    assert (clf.certificate_.n_sampled, clf.certificate_.n_rows) == (300, 7700)


def test_a_learned_score_without_disagreements_stays_the_probability():
    texts, (fast, strong) = rows(1000, 0.0), pair()
    clf = CascadeClassifier(fast, strong, score="learned")
    clf.predict(texts)
    assert not clf.agreement_.weights and len(strong.asked_) == 300


def test_the_parameter_and_the_method_share_a_name():
    texts = rows(1000)
    clf = CascadeClassifier(*pair(), score="learned")
    assert clf.get_params(deep=False)["score"] == clone(clf).get_params()["score"] == "learned"
    assert clf.set_params(score="probability").get_params()["score"] == "probability"
    assert "score" not in repr(clf) and "learned" in repr(CascadeClassifier(*pair(), score="learned"))
    assert clf.score(texts, truth(texts)) >= 0.95
    with pytest.raises(InputError, match="1000 rows but y has 1"):
        clf.score(texts, ["blue"])


# --- scikit-learn -------------------------------------------------------------------------------------------------


def student():
    return make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression(C=100))


def test_fit_fits_copies_of_what_is_not_fitted_and_leaves_the_fitted_alone():
    texts = rows(1500, 0.0)
    y = truth(texts)
    fast, strong = student(), Known(strong=True)
    clf = CascadeClassifier(fast, strong).fit(texts, y)
    assert clf.fast_ is not fast and clf.strong_ is not strong and clf.classes_.tolist() == LABELS
    with pytest.raises(NotFittedError):
        CascadeClassifier(fast, strong).predict(texts)
    fitted = student().fit(texts, y)
    clf = CascadeClassifier(fitted, Known(strong=True)).fit(None, y)
    assert clf.fast_ is fitted
    assert cross_val_score(CascadeClassifier(student(), Known(strong=True), n_samples=100), texts, y, cv=3).min() > 0.9
    piped = Pipeline([("lower", FunctionTransformer(list)), ("cascade", clf)])
    assert piped.predict(texts).tolist() == y.tolist()
    assert is_classifier(clf) and is_classifier(piped)


def test_pickles_keep_the_certificate_and_clones_forget_it():
    texts, (fast, strong) = rows(1000, 0.55), pair()
    clf = CascadeClassifier(fast, strong).calibrate(texts)
    loaded = pickle.loads(pickle.dumps(clf))
    assert loaded.certificate_ == clf.certificate_
    assert loaded.predict(texts).tolist() == clf.predict(texts).tolist()
    assert "certificate_" not in vars(clone(clf))
    with pytest.raises(NotFittedError):
        clone(clf).predict(texts)
    assert CascadeClassifier(FrozenEstimator(fast), FrozenEstimator(strong)).predict(texts).shape == (1000,)


EXPECTED = {
    "check_classifier_data_not_an_array": "an object of an unknown type is taken for a column of texts",
    "check_dict_unchanged": "predict certifies, and keeps the certificate",
    "check_fit2d_predict1d": "one dimension is taken for texts, and the message says so",
}


def test_scikit_learns_own_checks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = CascadeClassifier(LogisticRegression(), GaussianNB())
        found = check_estimator(clf, on_fail=None, on_skip=None)
    failed = {check["check_name"] for check in found if check["status"] == "failed"}
    assert failed == set(EXPECTED)
    assert sum(check["status"] == "passed" for check in found) > 40
    tags = get_tags(CascadeClassifier(ZeroShotGPTClassifier(), ZeroShotGPTClassifier())).input_tags
    assert (tags.string, tags.two_d_array) == (True, False)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_disagreement": 0}, "max_disagreement must be a number between 0 and 1, both excluded; got 0"),
        ({"max_disagreement": 1.0}, "max_disagreement"),
        ({"max_disagreement": "5%"}, "max_disagreement"),
        ({"confidence": 95}, "confidence must be a number between 0 and 1"),
        ({"confidence": float("nan")}, "confidence"),
        ({"n_samples": 0}, "n_samples must be an int of at least 1"),
        ({"n_samples": 40}, "n_samples=40: 40 sampled rows of 1,000 are too few.*takes at least 56"),
        ({"n_samples": 100, "score": "learned"}, "takes at least 57 in the half that certifies"),
        ({"max_disagreement": 0.001}, "n_samples=None: 300 sampled rows of 1,000 are too few"),
        ({"score": "margin"}, "score must be 'probability' or 'learned'"),
        ({"random_state": -1}, "random_state"),
        ({"fast": "gpt"}, "fast must be a classifier; got 'gpt'"),
        ({"strong": Known}, "strong must be a classifier"),
    ],
)
def test_bad_parameters_are_named_before_anything_is_asked(parameters, message):
    fast, strong = pair()
    with pytest.raises(ConfigurationError, match=message):
        clf = CascadeClassifier(**{"fast": fast, "strong": strong, **parameters})
        clf.fit(None, None)
        clf.predict(rows(1000))
    assert fast.asked_ == strong.asked_ == []


def test_pairs_that_make_no_cascade_are_refused_before_anything_is_asked():
    texts = rows(1000)
    fast, strong = Known(classes=("blue", "green", "violet")).fit(None), Known(strong=True).fit(None)
    with pytest.raises(ConfigurationError, match="fast=Known knows 'violet', which strong=Known does not"):
        CascadeClassifier(fast, strong).predict(texts)
    numbers = Known(classes=(0, 1)).fit(None)
    with pytest.raises(ConfigurationError, match="fast=Known knows 0"):
        CascadeClassifier(numbers, strong).predict(texts)
    support = make_pipeline(TfidfVectorizer(), LinearSVC()).fit(texts[:100], truth(texts)[:100])
    with pytest.raises(NotSupportedError, match=r"fast=Pipeline gives no probabilities.*CalibratedClassifierCV"):
        CascadeClassifier(support, strong).predict(texts)
    assert fast.asked_ == strong.asked_ == []
    fewer = Known(classes=("blue", "green")).fit(None)  # a student that never saw a rare label
    CascadeClassifier(fewer, strong).fit(None, None)


# --- language models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoringSpec(FakeSpec):
    """Answers with a label and the probabilities of all."""

    tells: bool = True
    log_probs: bool = False

    @property
    def capabilities(self):
        return replace(super().capabilities, gives_log_probs=self.tells)

    def asked_for(self, wanted):
        return replace(self, log_probs=self.log_probs or wanted == "log_probs")


@pytest.fixture
def models(monkeypatch):
    """Models by name, each with the number of requests it got; "fast" tells probabilities."""
    asked = {"fast": [], "strong": []}
    script = {"fast": lambda text: None, "strong": lambda text: None}

    class Fake(FakeBackend):
        def __init__(self, model, tells):
            self.model, self.tells = model, tells

        def complete(self, requests):
            return [self.reply(request) for request in requests]

        def reply(self, request):
            text = request.messages[-1]["content"].rpartition("\n```\n")[2].removesuffix("\n```")
            asked[self.model].append(text)
            error = script[self.model](text)
            if error is not None:
                return Reply(error=error, model=self.model)
            label, p, other = text.split()[1:]
            named = other if self.model == "strong" else label
            labels = request.choices.labels if request.choices else tuple(LABELS)
            rest = np.log((1 - float(p)) / 2)
            told = tuple(np.log(float(p)) if one == named else rest for one in labels) if self.tells else None
            usage = Usage(10, 1, cost_usd=0.01 if self.model == "strong" else 0.001)
            return Reply(json.dumps({"explanation": "why", "label": named}), told, usage, model=self.model)

        def close(self):
            pass

    numbers = count()

    class Spec(ScoringSpec):
        def open(self, resolve_secret):
            return Fake(self.answer, self.log_probs)

    def resolve(model, *rest):
        return Spec(model, key=f"fake-{model}-{next(numbers)}", tells=model == "fast")

    monkeypatch.setattr(skllm_ray.models._base.estimator, "resolve", resolve)
    return asked, script


def language_models(**options):
    return (
        ZeroShotGPTClassifier(model="fast").fit(None, LABELS),
        ZeroShotGPTClassifier(model="strong", **options).fit(None, LABELS),
    )


def test_language_models_are_asked_once_and_their_costs_are_summed(models):
    (asked, _), texts = models, rows(2000, 0.55)
    details = CascadeClassifier(*language_models()).predict_details(texts)
    assert sorted(asked["fast"]) == sorted(texts)
    assert sorted(asked["strong"]) == sorted(np.array(texts)[details["stage"] != "fast"])
    both = details["stage"] != "fast"
    assert details["cost_usd"].to_numpy() == pytest.approx(np.where(both, 0.011, 0.001))
    assert details["attempts"].tolist() == np.where(both, 2, 1).tolist()
    assert details["model"].tolist() == np.where(both, "strong", "fast").tolist()
    assert (details["prediction"] != truth(texts)).mean() <= 0.05


def test_a_strong_model_that_explains_gives_its_label_and_a_fast_one_is_refused(models):
    texts = rows(1000)
    explains = CoTGPTClassifier(model="strong").fit(None, LABELS)
    fast, _ = language_models()
    found = CascadeClassifier(fast, explains).predict(texts)
    assert set(found) == set(LABELS)
    with pytest.raises(NotSupportedError, match="fast=CoTGPTClassifier"):
        CascadeClassifier(explains, explains).predict(texts)
    silent = ZeroShotGPTClassifier(model="strong").fit(None, LABELS)
    models[0]["strong"].clear()
    with pytest.raises(NotSupportedError, match=r"fast=ZeroShotGPTClassifier\(model='strong'\) gives no probabilities"):
        CascadeClassifier(silent, silent).predict(texts)
    assert models[0]["strong"] == []


def test_a_model_that_refuses_every_row_ends_the_call_after_the_sample(models):
    (asked, script), texts = models, rows(1000)
    script["strong"] = lambda text: RowError("authentication", "no", fatal=True)
    with pytest.raises(JobFailedError, match="refused every row"):
        CascadeClassifier(*language_models()).predict(texts)
    assert len(asked["fast"]) == 300


def test_what_was_answered_is_kept_where_the_strong_model_is_lost_later(models):
    (_, script), texts = models, rows(2000, 0.55)
    sample = {texts[i] for i in draw_sample(2000, 300, 0)}
    script["strong"] = lambda text: None if text in sample else RowError("insufficient_quota", "empty", fatal=True)
    with pytest.raises(PartialResultError, match="refused every row") as caught:
        CascadeClassifier(*language_models()).predict(texts)
    table = caught.value.details
    assert table["prediction"].notna().sum() == (table["stage"] != "strong").sum() > 300
    found = CascadeClassifier(*language_models(on_error="default", default_label="none")).predict(texts)
    assert (found == "none").sum() == (table["stage"] == "strong").sum()


def test_a_pipeline_around_a_language_model_is_asked_once(models):
    (asked, script), texts = models, rows(1000)
    script["fast"] = lambda text: RowError("timeout", "no") if text.endswith("7") else None
    fast, strong = language_models()
    texts = [f"{text}" for text in texts]
    piped = make_pipeline(FunctionTransformer(lambda X: [text.strip() for text in X]), fast)
    clf = CascadeClassifier(piped, FrozenEstimator(strong))
    found = clf.predict_details([f" {text} " for text in texts])
    assert sorted(asked["fast"]) == sorted(texts)
    assert (found["prediction"] != truth(texts)).mean() <= 0.05
    assert pickle.loads(pickle.dumps(CascadeClassifier(fast, strong))).predict(texts).shape == (1000,)


# --- several labels -----------------------------------------------------------------------------------------------


class Several(ChatServer):
    """Says all labels that a text names; the strong one leaves "red" out where the fast one is unsure."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def _answer_to(self, path, body, key):
        text = body["messages"][-1]["content"].rpartition("\n```\n")[2].removesuffix("\n```")
        self.asked.append((body["model"], text))
        found = [label for label in LABELS if label in text.split()]
        if body["model"] == "strong":
            found = [label for label in reversed(found) if label != "red" or "sure" in text]
        tokens = ['{"label": [', *[f'"{label}",' for label in found[:-1]], f'"{found[-1]}"', "]}"]
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "".join(tokens)}}
        p = 0.99 if "sure" in text else 0.6
        if body.get("logprobs"):
            told = [{"token": one, "logprob": math.log(p if one[0] == '"' else 1.0)} for one in tokens]
            choice["logprobs"] = {"content": told}
        return Response(200, json.dumps({"model": body["model"], "choices": [choice], "usage": {}}).encode())


def test_sets_of_labels_are_compared_and_kept_by_their_probability():
    texts = [
        f"{i}: {'sure' if i % 4 else 'perhaps'} {' '.join(LABELS[: 1 + i % 3])} {LABELS[2] if i % 2 else ''}".strip()
        for i in range(400)
    ]
    with Several() as server:
        SKLLMConfig.set_gpt_url(server.url)
        fast, strong = (
            MultiLabelZeroShotGPTClassifier(model=f"custom_url::{name}", max_labels=3).fit(None, LABELS)
            for name in ("fast", "strong")
        )
        clf = CascadeClassifier(fast, strong, n_samples=150, random_state=1)
        details = clf.predict_details(texts)
        found = clf.predict(texts)
        expected = strong.predict(texts)
    assert found.shape == (400, 3) and details["stage"].value_counts()["fast"] > 200
    differ = [set(one) != set(other) for one, other in zip(found, expected, strict=True)]
    assert np.mean(differ) <= 0.05
    two = np.array(
        [len(labels) == 2 and "sure" in text for labels, text in zip(details["fast_label"], texts, strict=True)]
    )
    sure = details[(details["stage"] == "fast") & two]
    assert sure["score"].to_numpy() == pytest.approx(0.99**2)
    with pytest.raises(ConfigurationError, match="both give one label for each row, or both give several"):
        CascadeClassifier(Known().fit(None), strong).predict(texts)


def test_a_local_model_tells_the_probability_of_a_set():
    texts = ["The parcel came late.", "Too dear, and it broke."]
    clf = MultiLabelZeroShotGPTClassifier(model="gguf::demo", max_labels=2).fit(None, ["delivery", "price", "quality"])
    found = clf.predict_details(texts)["probability"]
    assert ((found > 0) & (found <= 1)).all()


def test_an_audit_whose_ray_has_ended_is_empty_and_hinders_nothing(monkeypatch):
    from skllm_ray.cascade import Audit
    from skllm_ray.execution import tally
    from skllm_ray.execution.tally import Tally
    from skllm_ray.models._base.cascade_dataset import RunningAudit

    clf = CascadeClassifier(*pair(), audit_share=0.1).calibrate(rows(1000))
    # Another test of this process may have started a Ray.
    monkeypatch.setattr(tally.ray, "is_initialized", lambda: False)
    clf._running = [RunningAudit(Tally(None), Audit(0, 0, 0, 0, 0.05, 0.95), "m")]
    assert clf.audit_.n_rows == 0 and pickle.loads(pickle.dumps(clf)).audit_ == clf.audit_
