"""The labels' prior, taken out of the probabilities."""

from __future__ import annotations

import json
import math
import pickle
import threading

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skllm_ray.batch.output.manifest import question_hash
from skllm_ray.classification import (
    CoTGPTClassifier,
    DynamicFewShotGPTClassifier,
    DynamicFewShotVertexClassifier,
    FewShotGPTClassifier,
    FewShotVertexClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
    ZeroShotVertexClassifier,
)
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, JobFailedError, NotSupportedError
from skllm_ray.execution.plan import Step
from skllm_ray.tasks.base import UNSEEN_PROBABILITY, Reply, Row, RowError
from skllm_ray.tasks.classification import ZeroShotTask
from skllm_ray.tasks.prior import CONTENT_FREE, LabelPrior, estimate_prior
from skllm_ray.testing import ChatServer, FakeSpec
from skllm_ray.text2text import GPTSummarizer

LABELS = ["negative", "neutral", "positive"]
TEXTS = ["I love it, works like a charm.", "Broke after two days.", "It is a box.", "Great sound, great price."]
MANY = [f"Good {i}." if i % 2 else f"Bad {i}." for i in range(20)]
pytestmark = pytest.mark.usefixtures("local_mode")


def demo(cls=ZeroShotGPTClassifier, **parameters):
    return cls(model="gguf::demo", label_prior="uniform", **parameters)


def plain(cls=ZeroShotGPTClassifier, **parameters):
    return cls(model="gguf::demo", **parameters)


def without(probabilities, prior):
    corrected = probabilities / prior
    return corrected / corrected.sum(axis=1, keepdims=True)


# --- what is taken out --------------------------------------------------------------------------------------------


def test_the_prior_of_the_texts_of_fit_is_taken_out():
    raw = plain().fit(None, LABELS)
    clf = demo().fit(MANY, (LABELS * 8)[: len(MANY)])
    assert "label_prior_" not in vars(clf)  # fit asks nothing
    found = clf.predict_proba(TEXTS)
    expected = np.exp(np.log(raw.predict_proba(MANY)).mean(axis=0))
    np.testing.assert_allclose(clf.label_prior_, expected / expected.sum(), rtol=1e-9)
    np.testing.assert_allclose(found, without(raw.predict_proba(TEXTS), expected), rtol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert clf.predict(TEXTS).tolist() == clf.classes_[found.argmax(axis=1)].tolist()
    details = clf.predict_details(TEXTS)
    np.testing.assert_allclose(details["probability"], found.max(axis=1))
    assert details["prediction"].tolist() == clf.predict(TEXTS).tolist()
    np.testing.assert_allclose(details["label_mass"], raw.predict_details(TEXTS)["label_mass"])


@pytest.mark.parametrize("X", [None, TEXTS[:3]])
def test_where_there_are_few_texts_those_without_content_are_taken(X):
    clf = demo().fit(X, LABELS)
    assert clf.prior_texts_ == CONTENT_FREE
    clf.predict(TEXTS[:1])
    assert clf.label_prior_.sum() == pytest.approx(1)


def test_examples_in_the_prompt_are_no_texts_for_their_own_prior():
    y = [*LABELS, LABELS[0]]
    assert demo(FewShotGPTClassifier).fit(MANY, (LABELS * 8)[: len(MANY)]).prior_texts_ == CONTENT_FREE
    few = demo(FewShotGPTClassifier).fit(TEXTS, y)
    raw = plain(FewShotGPTClassifier).fit(TEXTS, y)
    np.testing.assert_allclose(few.predict_proba(TEXTS), without(raw.predict_proba(TEXTS), few.label_prior_), rtol=1e-6)
    dynamic = demo(DynamicFewShotGPTClassifier, vectorizer=TfidfVectorizer(), n_examples=1).fit(TEXTS, y)
    assert dynamic.predict_proba(TEXTS).shape == (4, 3)
    assert dynamic.label_prior_.sum() == pytest.approx(1)
    assert "" not in dynamic.prior_texts_


def test_200_texts_at_most_chosen_by_the_seed():
    texts = [f"text {i}" for i in range(1000)] + [None, "", "text 1"]
    y = (LABELS * 400)[: len(texts)]
    one, other = demo(random_state=1).fit(texts, y), demo(random_state=2).fit(texts, y)
    assert len(one.prior_texts_) == len(set(one.prior_texts_)) == 200
    assert one.prior_texts_ == demo(random_state=1).fit(texts, y).prior_texts_ != other.prior_texts_
    assert None not in one.prior_texts_


# --- it is an estimator like any other ----------------------------------------------------------------------------


def test_copies_keep_the_prior_and_clones_and_fits_forget_it():
    clf = demo().fit(None, LABELS)
    expected = clf.predict_proba(TEXTS)
    copy = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(copy.label_prior_, clf.label_prior_)
    np.testing.assert_array_equal(copy.predict_proba(TEXTS), expected)
    assert clone(clf).get_params()["label_prior"] == "uniform"
    assert "label_prior_" not in vars(clone(clf).fit(None, LABELS))
    assert "label_prior_" not in vars(clf.fit(None, LABELS[:2]))
    assert clf.predict_proba(TEXTS).shape == (4, 2)
    assert "prior_texts_" not in vars(clf.set_params(label_prior=None).fit(None, LABELS))


def test_pipelines_and_searches():
    y = (LABELS * 8)[: len(MANY)]
    search = GridSearchCV(plain(), {"label_prior": [None, "uniform"]}, cv=2, error_score="raise").fit(TEXTS * 2, y[:8])
    assert search.best_params_["label_prior"] in (None, "uniform")
    assert make_pipeline(demo()).fit(None, LABELS).predict(TEXTS).shape == (4,)


@pytest.mark.parametrize("cls", [CoTGPTClassifier, MultiLabelZeroShotGPTClassifier])
def test_what_has_no_probability_for_each_label_is_refused_at_fit(cls):
    with pytest.raises(ConfigurationError, match=r"label_prior='uniform'.*no probability for each label"):
        demo(cls).fit(None, LABELS)


def test_what_cannot_work_is_refused_at_fit():
    with pytest.raises(ConfigurationError, match="label_prior must be 'uniform' or None"):
        plain(label_prior="flat").fit(None, LABELS)
    with pytest.raises(ConfigurationError, match="label_prior='uniform': model='gguf::demo' gives no probabilities"):
        demo(request_options={"decoding": "compat"}).fit(None, LABELS)
    for cls in (ZeroShotVertexClassifier, FewShotVertexClassifier, DynamicFewShotVertexClassifier):
        assert cls(label_prior="uniform").get_params()["label_prior"] == "uniform"
    with pytest.raises(TypeError, match="label_prior"):
        GPTSummarizer(label_prior="uniform")


# --- API models ---------------------------------------------------------------------------------------------------


def api(server, **parameters):
    SKLLMConfig.set_gpt_url(server.url)
    return ZeroShotGPTClassifier(model="custom_url::m", key="sk-test", label_prior="uniform", **parameters)


def test_an_api_model_is_asked_for_the_prior_once():
    with ChatServer(lambda body: json.dumps({"label": "positive"})) as server:
        clf = api(server).fit(None, LABELS)
        assert server.n_requests == 0
        found = clf.predict_proba(TEXTS)
        assert server.n_requests == len(TEXTS) + len(CONTENT_FREE)
        prior = clf.label_prior_.copy()
        assert clf.predict(TEXTS).tolist() == clf.classes_[found.argmax(axis=1)].tolist()
        assert server.n_requests == 2 * len(TEXTS) + len(CONTENT_FREE)
        np.testing.assert_array_equal(clf.label_prior_, prior)


def test_an_api_model_without_probabilities_is_an_error_before_the_rows_are_paid_for():
    with ChatServer(lambda body: json.dumps({"label": "positive"}), log_probs=False) as server:
        clf = api(server).fit(None, LABELS)
        with pytest.raises(NotSupportedError, match=r"label_prior='uniform'.*most gave no probabilities"):
            clf.predict(TEXTS * 50)
        assert server.n_requests <= 2 * len(CONTENT_FREE)


def test_texts_that_name_no_label_give_no_prior():
    told = pytest.raises(JobFailedError, match="named none of the labels")
    with ChatServer(lambda body: "I cannot tell.") as server, told:
        api(server).fit(None, LABELS).predict(TEXTS)


# --- the arithmetic -----------------------------------------------------------------------------------------------


def row(*probabilities, error=None):
    if error is not None:
        return Row(None, False, Reply(error=error))
    told = tuple(math.log(max(p, UNSEEN_PROBABILITY)) for p in probabilities)
    label = "abc"[int(np.argmax(told))]
    return Row(label, True, Reply(json.dumps({"label": label}), told))


def test_a_label_that_a_server_never_tells_of_does_not_win():
    prior = LabelPrior((), estimate_prior([row(0.9, 0.1, 0)] * 4))
    assert prior.probabilities == pytest.approx(((3.6 + 1 / 3) / 5, (0.4 + 1 / 3) / 5, (1 / 3) / 5))
    often, seldom, seen = prior.take_out([row(0.9, 0.1, 0), row(0.6, 0.4, 0), row(0.5, 0.25, 0.25)], "abc")
    assert (often.value, seldom.value, seen.value) == ("a", "b", "c")
    assert math.exp(often.reply.log_probs[2]) < 1e-8
    for one in (often, seldom, seen):
        assert np.exp(one.reply.log_probs).sum() == pytest.approx(1)


def test_exact_probabilities_have_the_mean_of_their_logarithms():
    found = estimate_prior([row(0.8, 0.2), row(0.2, 0.8), row(0.5, 0.5)])
    assert found == pytest.approx((0.5, 0.5))
    found = estimate_prior([row(0.9, 0.1), row(0.6, 0.4)])
    assert found[0] / found[1] == pytest.approx(math.sqrt(9 * 1.5))


def test_a_few_failures_are_left_out_and_many_are_told():
    failed = row(error=RowError("timeout", "too slow"))
    assert estimate_prior([row(0.8, 0.2), row(0.8, 0.2), failed]) == pytest.approx((0.8, 0.2))
    assert estimate_prior([row(0.8, 0.2), failed, failed]) == failed.error
    assert estimate_prior([]).kind == "invalid_answer"


def test_rows_without_an_answer_stay_as_they_are():
    prior = LabelPrior((), (0.7, 0.2, 0.1))
    invalid = Row(None, False, Reply("?"))
    failed = row(error=RowError("timeout", "too slow"))
    assert prior.take_out([invalid, failed], "abc") == [invalid, failed]
    assert LabelPrior(("x",)).take_out([row(0.9, 0.1, 0)], "abc") == [row(0.9, 0.1, 0)]


def test_the_prior_identifies_a_question_by_its_texts_alone():
    def question(prior: LabelPrior | None = None) -> str:
        return question_hash((Step(ZeroShotTask(("a", "b"), prior=prior), FakeSpec(str)),))

    one, same, other = LabelPrior(("x",)), LabelPrior(("x",), (0.5, 0.5)), LabelPrior(("y",))
    assert question(one) == question(same)
    assert question(one) not in {question(), question(other)}


def test_the_prior_of_one_estimator_is_asked_for_while_that_of_another_is(monkeypatch):
    asking, go_on = threading.Event(), threading.Event()

    def slow(texts, *rest, **options):
        if texts == ("slow",):
            asking.set()
            assert go_on.wait(30)
        return [Row("negative", True, Reply("x", [math.log(0.5), math.log(0.5)]))] * len(texts)

    monkeypatch.setattr("skllm_ray.execution.runner.run", slow)
    first, second = (demo().fit(None, LABELS[:2]) for _ in range(2))
    first.prior_texts_, second.prior_texts_ = ("slow",), ("fast",)
    threads = [threading.Thread(target=lambda: first._ready(first._plan(first._spec()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert asking.wait(30)
    second._ready(second._plan(second._spec()))
    assert "label_prior_" in vars(second)
    assert "label_prior_" not in vars(first)
    go_on.set()
    for thread in threads:
        thread.join()
    assert first.label_prior_.tolist() == [0.5, 0.5]
