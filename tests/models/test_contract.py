"""scikit-learn's contract, held by every estimator."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from dataclasses import replace
from typing import Any, get_type_hints

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import skllm_ray.models._base.estimator
from skllm_ray import trusted_types
from skllm_ray.classification import (
    DynamicFewShotGPTClassifier,
    FewShotGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.config import Secret, SKLLMConfig
from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.models.gpt.extraction import GPTExtractor
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.testing import FakeSpec
from skllm_ray.text2text import GPTSummarizer, VertexTranslator
from skllm_ray.vectorization import GPTVectorizer
from tests.models.estimators import ALL, CLASSIFIERS, EXTRACTORS, TRANSFORMERS, VECTORIZERS, X, labels_for, make

KEY = "sk-planted-0123456789abcdef"
pytestmark = pytest.mark.usefixtures("local_mode")


def answer(request):
    """Answer any task about a text of X."""
    text = request.messages[-1]["content"].rpartition("\n```\n")[2]
    label = "good" if "good" in text else "bad"
    several = "["[: request.messages[-1]["content"].count('{"label": [')]
    return json.dumps(
        {
            "explanation": "why",
            "label": [label] if several else label,
            "entities": [{"reasoning": "eaten", "tag": "FOOD", "value": "food"}],
            "item": text.removesuffix("\n```"),
            "quantity": 2,
        }
    )


@pytest.fixture
def fake(monkeypatch):
    spec = FakeSpec(answer)
    monkeypatch.setattr(skllm_ray.models._base.estimator, "resolve", lambda *arguments: spec)


def fitted(cls, **parameters):
    return make(cls, **parameters).fit(X, labels_for(cls))


def results(estimator, texts=X):
    return (estimator.predict if is_classifier(estimator) else estimator.transform)(texts)


@pytest.mark.parametrize("cls", ALL)
def test_parameters_go_round_and_init_does_nothing(cls):
    given = {name: object() for name in make(cls).get_params(deep=False)}  # nothing of it would pass a check
    estimator = cls(**given)
    assert all(getattr(estimator, name) is value for name, value in given.items())
    assert set(vars(estimator)) == set(given)
    assert set(clone(make(cls)).get_params()) == set(given)
    assert make(cls).set_params(on_error="coerce").get_params()["on_error"] == "coerce"
    assert not hasattr(estimator, "n_features_in_")


@pytest.mark.parametrize("cls", ALL)
def test_copies_give_the_same(fake, cls):
    estimator = fitted(cls)
    expected = results(estimator)
    for copy in (pickle.loads(pickle.dumps(estimator)), clone(estimator).fit(X, labels_for(cls))):
        np.testing.assert_array_equal(results(copy), expected)
    np.testing.assert_array_equal(results(estimator, X[2:]), expected[2:])


@pytest.mark.parametrize("cls", [cls for cls in ALL if "key" in make(cls).get_params()])
def test_a_key_is_in_no_pickle_and_on_no_page(fake, cls, tmp_path):
    estimator = fitted(cls, key=KEY)
    joblib.dump(estimator, tmp_path / "estimator")
    shown = repr(estimator) + estimator._repr_html_() + repr(vars(estimator))
    assert "sk-planted" not in shown
    assert b"sk-planted" not in (tmp_path / "estimator").read_bytes()
    assert estimator.key.reveal() == clone(estimator).key.reveal() == KEY


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(
    "container", [list, tuple, np.array, pd.Series, pa.array, pl.Series, lambda X: pd.DataFrame({"text": X})]
)
def test_all_containers_give_the_same(fake, cls, container):
    estimator = fitted(cls)
    found, expected = results(estimator, container(X)), results(estimator)
    if isinstance(container(X), pd.DataFrame) and not is_classifier(estimator):
        assert found.ndim == 2
        found = found.reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("cls", ALL)
def test_bad_inputs_are_refused(fake, cls):
    estimator = fitted(cls)
    with pytest.raises(TypeError, match=r"Write list\(X\)"):
        results(estimator, (text for text in X))
    with pytest.raises(TypeError, match=r"Write \[X\]"):
        results(estimator, "one text")
    with pytest.raises(InputError, match="must hold strings"):
        results(estimator, [1.5])
    with pytest.raises(InputError, match="missing or blank"):
        results(estimator, ["good", None])
    with pytest.raises(ConfigurationError, match="on_error"):
        make(cls, on_error="ignore").fit(X, labels_for(cls))
    if "key" in estimator.get_params():
        with pytest.raises(ConfigurationError, match="key must be a str"):
            make(cls, key=5).fit(X, labels_for(cls))


@pytest.mark.parametrize("cls", ALL)
def test_a_missing_text_can_be_coerced(fake, cls):
    found = results(fitted(cls, on_error="coerce"), ["good food", None])
    assert len(found) == 2
    assert pd.isna(found[1]).all() if np.ndim(found[1]) else found[1] is None
    details = fitted(cls).predict_details(["good food", None])
    assert details["error_kind"].tolist() == [None, "missing_text"]


@pytest.mark.parametrize("cls", ALL)
def test_prompts_and_replies_can_be_seen(fake, cls):
    estimator = fitted(cls)
    assert all("good food" in prompt for prompt in estimator.render_prompt(["good food"]))
    details = estimator.predict_details(pd.Series(["good food"], index=["a"]), include_io=True)
    assert details.index.tolist() == ["a"]
    assert details["prompt"].tolist() == estimator.render_prompt(["good food"])
    assert (details["raw_reply"].iloc[0] is None) == (cls in VECTORIZERS)


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_scores_take_weights(fake, cls):
    y = ["good", "bad", "bad", "bad"]
    y = [[label] for label in y] if "MultiLabel" in cls.__name__ else y
    assert fitted(cls).score(X, y) == 0.75
    assert fitted(cls).score(X, y, sample_weight=[1, 1, 0, 1]) == 1


@pytest.mark.parametrize(
    ("y", "weights", "message"),
    [
        ([["good"], ["bad"], ["bad"], ["bad"]], [1, 2], r"sample_weight has the shape \(2,\)"),
        ([["good"], ["bad"], ["bad"], ["bad"]], ["a", 1, 1, 1], "sample_weight must hold a number"),
        ([["good"], ["bad"], ["bad"], ["bad"]], [1, -1, 1, 1], "finite numbers of at least 0"),
        ([["good"], ["bad"], ["bad"], ["bad"]], [0, 0, 0, 0], "not all of them 0"),
        (["good", None, "bad", "bad"], None, "y has 1 missing labels, the first at position 1"),
        (["good", float("nan"), "bad", "bad"], None, "y has 1 missing labels"),
        ([1, 0, 1, 0], None, "y cannot be compared with the classes"),
    ],
)
@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_what_no_score_can_be_of_is_refused_before_anything_is_asked(fake, cls, y, weights, message, monkeypatch):
    classifier = fitted(cls)
    many = "MultiLabel" in cls.__name__
    if many and not isinstance(y[0], list):
        pytest.skip("lists of labels are checked by themselves")
    y = y if many or not isinstance(y[0], list) else [labels[0] for labels in y]
    monkeypatch.setattr(cls, "_results", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(cls, "predict", lambda *_: pytest.fail("asked"))
    with pytest.raises(InputError, match=message):
        classifier.score(X, y, sample_weight=weights)


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_the_unfitted_are_refused(fake, cls):
    for method in ("predict", "predict_details", "render_prompt", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(make(cls), method)(X)
    with pytest.raises(NotFittedError):
        make(cls).score(X, [["good"]] * 4 if "MultiLabel" in cls.__name__ else ["good"] * 4)


# --- transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", TRANSFORMERS)
def test_output_can_be_a_frame_with_names(fake, cls):
    estimator = fitted(cls).set_output(transform="pandas")
    frame = estimator.transform(pd.DataFrame({"text": X}, index=list("abcd")))
    assert frame.index.tolist() == list("abcd")
    assert frame.columns.tolist() == estimator.get_feature_names_out().tolist()
    np.testing.assert_array_equal(frame.to_numpy().reshape(len(X), -1), results(fitted(cls)).reshape(len(X), -1))


def test_a_vectorizer_knows_its_width_after_use(fake):
    vectorizer = GPTVectorizer()
    with pytest.raises(NotFittedError, match="first transform"):
        vectorizer.get_feature_names_out()
    found = vectorizer.fit_transform(X)
    assert found.dtype.kind == "f"
    assert vectorizer.get_feature_names_out().tolist() == [f"gptvectorizer{i}" for i in range(found.shape[1])]
    assert np.isnan(vectorizer.transform(["good", None], on_error="coerce")[1]).all()


def test_vectorizers_stand_in_unions_and_column_transformers(fake):
    union = FeatureUnion([("ours", GPTVectorizer()), ("theirs", TfidfVectorizer())]).fit(X)
    assert union.transform(X).shape == (4, 64 + 4)
    frame = pd.DataFrame({"text": X, "number": [1.0, 2.0, 3.0, 4.0]})
    columns = ColumnTransformer([("text", GPTVectorizer(), "text")], remainder="passthrough")
    assert columns.fit_transform(frame).shape == (4, 65)
    for text_to_text in (GPTSummarizer(), VertexTranslator(), make(GPTExplainableNER)):
        columns = ColumnTransformer([("text", text_to_text, ["text"])], remainder="passthrough")
        assert columns.fit_transform(frame).shape == columns.transform(frame).shape == (4, 2)
        named = ColumnTransformer([("text", text_to_text, "text")]).set_output(transform="pandas").fit_transform(frame)
        assert named.columns.tolist() == [f"text__{name}" for name in text_to_text.get_feature_names_out()]
    classes = make_pipeline(GPTVectorizer(), LogisticRegression()).fit(X, labels_for(ZeroShotGPTClassifier)).predict(X)
    assert classes.tolist() == ["good", "bad", "good", "bad"]


# --- meta-estimators ----------------------------------------------------------------------------------------------


def test_pipelines_searches_and_validation(fake):
    y = labels_for(ZeroShotGPTClassifier)
    assert make_pipeline(GPTSummarizer(), ZeroShotGPTClassifier()).fit(X, y).predict(X).shape == (4,)
    search = GridSearchCV(FewShotGPTClassifier(), {"default_label": ["good", "bad"]}, cv=2, error_score="raise")
    assert search.fit(X, y).best_score_ == 1
    assert cross_val_predict(DynamicFewShotGPTClassifier(n_examples=1), X, y, cv=2).tolist() == y


def test_frozen_classifiers_can_be_calibrated_and_stacked():
    y = np.array(["negative", "positive"] * 5)
    texts = ["Broke at once. Terrible.", "I love it, works like a charm."] * 5
    frozen = FrozenEstimator(ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["negative", "positive"]))
    calibrated = CalibratedClassifierCV(frozen, method="sigmoid").fit(texts, y)
    found = calibrated.predict_proba(texts)
    assert found.shape == (10, 2)
    assert (calibrated.predict(texts) == y).mean() == 1
    stack = StackingClassifier([("llm", frozen)], cv="prefit").fit(texts, y)
    assert (stack.predict(texts) == y).mean() == 1


def test_predict_is_the_arg_max_of_predict_proba():
    clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["negative", "positive", "neutral"])
    texts = ["Broke at once.", "I love it.", "It is a box.", "Not bad, not good.", ""]
    found = clf.predict_proba(texts, on_error="coerce")
    np.testing.assert_array_equal(clf.classes_[found[:4].argmax(axis=1)], clf.predict(texts[:4]))
    np.testing.assert_allclose(found[:4].sum(axis=1), 1)
    assert np.isnan(found[4]).all()


# --- scikit-learn's own checks ------------------------------------------------------------------------------------

NUMBERS = "the check fits numbers: this estimator takes texts, and says so"
STATELESS = "fit learns nothing from X, so that X is checked where it is used"
EXPECTED = {
    "check_classifier_data_not_an_array": NUMBERS,
    "check_classifiers_classes": NUMBERS,
    "check_classifiers_one_label": NUMBERS,
    "check_classifiers_regression_target": NUMBERS,
    "check_classifiers_train": NUMBERS,
    "check_complex_data": NUMBERS,
    "check_dict_unchanged": NUMBERS,
    "check_dont_overwrite_parameters": NUMBERS,
    "check_dtype_object": NUMBERS,
    "check_estimator_sparse_array": NUMBERS,
    "check_estimator_sparse_matrix": NUMBERS,
    "check_estimator_sparse_tag": NUMBERS,
    "check_estimators_dtypes": NUMBERS,
    "check_estimators_empty_data_messages": NUMBERS,
    "check_estimators_fit_returns_self": NUMBERS,
    "check_estimators_nan_inf": NUMBERS,
    "check_estimators_overwrite_params": NUMBERS,
    "check_estimators_pickle": NUMBERS,
    "check_f_contiguous_array_estimator": NUMBERS,
    "check_fit1d": STATELESS,
    "check_fit2d_1feature": NUMBERS,
    "check_fit2d_1sample": NUMBERS,
    "check_fit2d_predict1d": NUMBERS,
    "check_fit_check_is_fitted": NUMBERS,
    "check_fit_idempotent": NUMBERS,
    "check_fit_score_takes_y": NUMBERS,
    "check_n_features_in": "texts have no columns, and so there is no n_features_in_",
    "check_n_features_in_after_fitting": "texts have no columns, and so there is no n_features_in_",
    "check_positive_only_tag_during_fit": NUMBERS,
    "check_readonly_memmap_input": NUMBERS,
    "check_requires_y_none": NUMBERS,
    "check_supervised_y_2d": NUMBERS,
    "check_transformer_data_not_an_array": NUMBERS,
    "check_transformer_general": NUMBERS,
    "check_transformer_preserve_dtypes": NUMBERS,
    "check_transformers_unfitted_stateless": NUMBERS,
}


def with_all_checks(cls):
    """Return an estimator that claims to take matrices: scikit-learn checks nothing of one that takes texts alone."""

    def tags(self):
        found = super(checked, self).__sklearn_tags__()
        found.input_tags.two_d_array = True
        found.input_tags.one_d_array = False
        return found

    checked = type(cls.__name__, (cls,), {"__sklearn_tags__": tags, "__module__": __name__})
    return make_like(checked, cls)


def make_like(checked, cls):
    return checked(**make(cls).get_params(deep=False))


def test_scikit_learns_own_checks(fake):
    failed, passed = {}, set()
    for cls in ALL:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for check in check_estimator(with_all_checks(cls), on_fail=None, on_skip=None):
                if check["status"] == "failed":
                    failed.setdefault(check["check_name"], (cls.__name__, check["exception"]))
                elif check["status"] == "passed":
                    passed.add(check["check_name"])
    assert {name: why for name, why in failed.items() if name not in EXPECTED} == {}
    assert set(EXPECTED) - set(failed) == set()
    assert {"check_no_attributes_set_in_init", "check_get_params_invariance", "check_set_params"} <= passed
    assert {"check_do_not_raise_errors_in_init_or_set_params", "check_estimators_unfitted"} <= passed


def test_what_an_estimator_holds_is_of_public_types_that_can_be_trusted(fake):
    SKLLMConfig.set_openai_key(KEY)
    SKLLMConfig.set_rate_limit("m", requests_per_minute=5)
    SKLLMConfig.set_price("m", input_per_million=1)
    SKLLMConfig.set_gguf_resources(num_cpus=1)
    known = set(trusted_types())
    for cls in ALL:
        parameters = {"key": KEY} if "key" in make(cls).get_params() else {}
        if "Dynamic" in cls.__name__:
            parameters["vectorizer"] = TfidfVectorizer()
        found = types_in(pickle.dumps(fitted(cls, **parameters)))
        assert {name for name in found if name.startswith("skllm_ray")} <= known
    assert not [name for name in known if name.rpartition(".")[2].startswith("_")]


def types_in(pickled):
    """Return the names of the types that a pickle names."""
    named = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            named.add(f"{module}.{name}")
            return super().find_class(module, name)

    Unpickler(io.BytesIO(pickled)).load()
    return named


def test_a_format_that_makes_strings_of_secrets_makes_no_key_of_them(fake):
    """skops keeps a str as its characters, and a secret's are a mark."""
    SKLLMConfig.set_openai_key(KEY)
    estimator = fitted(GPTSummarizer, key=KEY)
    state = estimator.__getstate__()
    state |= {"key": str.__str__(state["key"]), "_settings": replace(state["_settings"], openai_key="***0123456789ab")}
    loaded = GPTSummarizer.__new__(GPTSummarizer)
    loaded.__setstate__(state)
    assert (loaded.key.reveal(), loaded.key.fingerprint) == ("", Secret(KEY).fingerprint)
    assert vars(loaded)["_settings"].openai_key.reveal() == ""


def test_skops_keeps_estimators(fake):
    skops = pytest.importorskip("skops.io")
    for cls in ALL:
        estimator = fitted(cls)
        if cls in EXTRACTORS:  # its schema is the user's own type, and skops does not take classes that are values
            continue
        loaded = skops.loads(skops.dumps(estimator), trusted=trusted_types())
        np.testing.assert_array_equal(results(loaded), results(estimator))


def test_texts_are_declared(fake):
    for cls in ALL:
        tags = make(cls).__sklearn_tags__().input_tags
        assert (tags.string, tags.one_d_array, tags.two_d_array) == (True, True, False)


@pytest.mark.parametrize("cls", ALL)
def test_what_scikit_learn_leaves_untyped_is_typed(cls):
    method = cls.score if cls in CLASSIFIERS else cls.fit_transform
    assert get_type_hints(method)["return"] == (float if cls in CLASSIFIERS else NDArray[Any])


def test_an_extractor_keeps_the_schemas_types(fake):
    found = GPTExtractor(make(GPTExtractor).schema).fit_transform(X)
    assert found.tolist() == [[text, 2] for text in X]


def test_indicator_frames(fake):
    y = pd.DataFrame({"good": [1, 0, 1, 0], "bad": [0, 1, 0, 1]})
    clf = MultiLabelZeroShotGPTClassifier(max_labels=2).fit(X, y)
    found = clf.predict(pd.Series(X, index=list("abcd")))
    pd.testing.assert_frame_equal(found, y.set_index(pd.Index(list("abcd"))).astype("int64"))
    assert clf.score(X, y) == 1
    assert clf.classes_.tolist() == ["bad", "good"]
