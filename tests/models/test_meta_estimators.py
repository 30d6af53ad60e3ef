"""scikit-learn's meta-estimators around unfitted classifiers: labels that they encode, weights that they would pass."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_array
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.model_selection import cross_val_predict, cross_val_score
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils.validation import has_fit_parameter

import skllm_ray.models._base.estimator
from skllm_ray.classification import (
    CoTGPTClassifier,
    DynamicFewShotGPTClassifier,
    FewShotGPTClassifier,
    MultiLabelCoTGPTClassifier,
    MultiLabelFewShotGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.errors import ConfigurationError, InputError
from skllm_ray.tasks.base import RowError
from skllm_ray.testing import FakeSpec
from tests.models.estimators import CLASSIFIERS

TEXTS_OF_LABELS = ["cat", "dog"] * 2
NAMES = ["negative", "positive"]
TEXTS = ["Broke at once. Terrible.", "I love it, works like a charm."] * 4
Y = np.array(NAMES * 4)
pytestmark = pytest.mark.usefixtures("local_mode")


def named(cls=ZeroShotGPTClassifier, **parameters):
    return cls(model="gguf::demo", label_names=NAMES, **parameters)


@pytest.fixture
def fake(monkeypatch):
    """Answer with the words of a text, and explain it; a text with "boom" fails."""
    asked = []

    def answer(request):
        prompt = request.messages[-1]["content"]
        asked.append(prompt)
        text = prompt.rpartition("\n```\n")[2].removesuffix("\n```")
        if "boom" in text:
            return RowError("server_error", "no")
        found = str(text.split()).replace("'", '"') if '"label": [' in prompt else f'"{text}"'
        return f'{{"explanation": "why", "label": {found}}}'

    monkeypatch.setattr(skllm_ray.models._base.estimator, "resolve", lambda *arguments: FakeSpec(answer))
    return asked


# --- integers that stand for labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("label_names", [NAMES, {0: "negative", 1: "positive"}, tuple(NAMES), np.array(NAMES)])
def test_integers_are_asked_for_by_their_names(label_names):
    clf = ZeroShotGPTClassifier(model="gguf::demo", label_names=label_names).fit(TEXTS, [0, 1] * 4)
    assert (clf.classes_.tolist(), clf.classes_.dtype.kind) == ([0, 1], "i")
    assert '["negative", "positive"]' in clf.render_prompt(TEXTS[:1])[0]
    assert clf.predict(TEXTS).tolist() == [0, 1] * 4
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), named().fit(TEXTS, Y).predict_proba(TEXTS))
    assert clf.predict_details(TEXTS[:2])["prediction"].tolist() == [0, 1]


def test_labels_that_are_names_already_stay():
    clf = named().fit(TEXTS, Y)
    assert clf.classes_.tolist() == NAMES
    assert clf.predict(TEXTS).tolist() == Y.tolist()


def test_names_stand_in_examples_and_with_descriptions(fake):
    few = FewShotGPTClassifier(label_names={3: "cat", 7: "dog"}, label_descriptions={3: "meows", "dog": "barks"})
    prompt = few.fit(["miaow", "woof"], pd.Series([3, 7], dtype="category")).render_prompt(["x"])[0]
    assert 'Answer: {"label": "cat"}' in prompt
    assert '- "cat": meows' in prompt
    assert '- "dog": barks' in prompt
    dynamic = DynamicFewShotGPTClassifier(label_names=["cat", "dog"], n_examples=1)
    assert 'Answer: {"label": "dog"}' in dynamic.fit(["miaow", "woof"], [0, 1]).render_prompt(["x"])[0]


def test_a_default_label_is_the_label_and_not_its_name(fake):
    clf = ZeroShotGPTClassifier(label_names=["cat", "dog"], default_label="dog").fit(None, [0, 1])
    with pytest.warns(UserWarning, match="named none"):
        assert clf.predict(["cat", "horse"]).tolist() == [0, 1]
    explained = CoTGPTClassifier(label_names=["cat", "dog"], default_label="dog").fit(None, [0, 1])
    with pytest.warns(UserWarning, match="named none"):
        assert explained.predict(["cat", "horse"]).tolist() == [[0, "why"], [1, ""]]
    several = MultiLabelZeroShotGPTClassifier(label_names=["cat", "dog"], default_label="dog", max_labels=2)
    with pytest.warns(UserWarning, match="named none"):
        found = several.fit(None, ["cat", "dog"]).predict(["cat", "horse"])
    assert found.tolist() == [["cat", ""], ["dog", ""]]


@pytest.mark.parametrize(
    ("label_names", "y", "error", "message"),
    [
        ("cat", [0, 1], ConfigurationError, "must be a list of names"),
        (7, [0, 1], ConfigurationError, "got int"),
        (["cat", "cat"], [0, 1], ConfigurationError, "'cat' twice"),
        (["cat", " "], [0, 1], ConfigurationError, "non-empty"),
        (["cat", 5], [0, 1], ConfigurationError, "got 5"),
        ([], [0, 1], ConfigurationError, "non-empty"),
        (["cat", "dog"], [0, 1, 2], InputError, "label 2, which label_names gives no name"),
        (["cat", "dog"], ["cat", "horse"], InputError, "'horse', which label_names"),
        ({0: "cat"}, [0, 1], InputError, "label 1"),
        (None, [0, 1], InputError, "label_names="),
    ],
)
def test_names_that_do_not_fit_are_refused_at_fit(fake, label_names, y, error, message):
    with pytest.raises(error, match=message):
        ZeroShotGPTClassifier(label_names=label_names).fit(None, y)
    assert fake == []


def test_the_class_label_of_a_data_set_says_what_to_pass(fake):
    ClassLabel = type("ClassLabel", (), {"names": ["a", "b"]})
    with pytest.raises(ConfigurationError, match=r"Pass its \.names"):
        ZeroShotGPTClassifier(label_names=ClassLabel()).fit(None, [0, 1])


# --- meta-estimators ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [ZeroShotGPTClassifier, FewShotGPTClassifier])
def test_probabilities_of_cross_validation(cls):
    found = cross_val_predict(named(cls), TEXTS, Y, cv=2, method="predict_proba")
    assert found.shape == (8, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    if cls is ZeroShotGPTClassifier:
        assert (found[:, 1] > found[:, 0]).tolist() == [False, True] * 4


def test_stacking_voting_bagging_and_calibration_fit_unfrozen_classifiers():
    pair = [("zero", named()), ("few", named(FewShotGPTClassifier))]
    for meta in (
        StackingClassifier(pair, cv=2),
        VotingClassifier(pair, voting="soft"),
        VotingClassifier(pair, voting="hard"),
        CalibratedClassifierCV(named(), cv=2),
        CalibratedClassifierCV(named(), cv=2, ensemble=False),
    ):
        assert (meta.fit(TEXTS, Y).predict(TEXTS) == Y).all(), meta
    column = np.array(TEXTS, dtype=object).reshape(-1, 1)
    bag = BaggingClassifier(named(), n_estimators=2, random_state=0).fit(column, Y)
    assert (bag.predict(column) == Y).mean() > 0.5


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_fit_takes_no_weights(cls):
    assert not has_fit_parameter(cls(), "sample_weight")
    with pytest.raises(TypeError, match="sample_weight"):
        cls().fit(TEXTS, Y, sample_weight=np.ones(8))


def test_what_needs_weights_says_so():
    with pytest.raises(ValueError, match="sample_weight"):
        AdaBoostClassifier(named()).fit(np.array(TEXTS, dtype=object).reshape(-1, 1), Y)


# --- scores -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.* rows failed and")
@pytest.mark.parametrize("cls", [ZeroShotGPTClassifier, CoTGPTClassifier])
def test_a_failed_row_counts_as_wrong(fake, cls):
    clf = cls(on_error="coerce").fit(None, ["cat", "dog"])
    X, y = ["cat", "boom", "dog", "cat"], ["cat", "cat", "dog", "dog"]
    assert clf.score(X, y) == 0.5
    assert clf.score(X, y, sample_weight=[1, 1, 2, 0]) == 0.75
    assert clf.score(["boom"], ["cat"]) == 0.0
    assert cross_val_score(clf, X, y, cv=2).mean() == 0.5


def test_a_score_of_unequal_lengths_is_refused_before_anything_is_asked(fake):
    for clf, y in (
        (ZeroShotGPTClassifier().fit(None, ["cat", "dog"]), ["cat"]),
        (MultiLabelZeroShotGPTClassifier().fit(None, ["cat", "dog"]), [["cat"]]),
    ):
        with pytest.raises(InputError, match="2 texts but y has 1"):
            clf.score(["cat", "dog"], y)
        with pytest.raises(InputError, match=r"^X holds no texts, and y no labels"):
            clf.score([], [])
    assert fake == []


@pytest.mark.filterwarnings("ignore:.* rows failed and")
def test_scikit_learns_own_scorers_take_a_default_that_is_no_label_for_failed_rows(fake):
    """They cannot compare None with texts; as a label that no row has, a failed row is wrong."""
    X, y = [*TEXTS_OF_LABELS, "boom", "dog"], ["cat", "dog"] * 3
    clf = ZeroShotGPTClassifier(on_error="default", default_label="failed")
    for scoring in ("accuracy", "balanced_accuracy"):
        assert cross_val_score(clf, X, y, cv=2, scoring=scoring, error_score="raise").min() < 1
    assert cross_val_score(clf, X, y, cv=2, scoring="accuracy").sum() == pytest.approx(5 / 3)
    assert cross_val_score(clf.set_params(on_error="coerce"), X, y, cv=2).sum() == pytest.approx(5 / 3)


# --- several labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y",
    [
        ["cat", "dog"],
        ("cat", "dog"),
        {"cat", "dog"},
        np.array(["cat", "dog"]),
        pd.Series(["cat", "dog"]),
        pd.Index(["cat", "dog"]),
        pd.Categorical(["cat", "dog"]),
        pa.array(["cat", "dog"]),
        iter(["cat", "dog"]),
        [["cat", "dog"]],
        pd.Series([["cat"], ["dog"]]),
        pa.array([["cat"], ["dog"]]),
    ],
    ids=lambda y: type(y).__name__,
)
def test_candidate_labels_need_no_list_of_their_own(y):
    assert MultiLabelZeroShotGPTClassifier().fit(None, y).classes_.tolist() == ["cat", "dog"]


def test_a_flat_list_beside_texts_is_refused_with_the_form_that_works():
    with pytest.raises(InputError, match=r"y\[0\] is of type str.*\[\['price'.*fit\(None"):
        MultiLabelZeroShotGPTClassifier().fit(["a", "b"], ["cat", "dog"])
    with pytest.raises(InputError, match="repeats 'cat'"):
        MultiLabelZeroShotGPTClassifier().fit(None, ["cat", "cat"])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("cls", [MultiLabelZeroShotGPTClassifier, MultiLabelFewShotGPTClassifier])
def test_the_binarizer_s_array_goes_in_and_comes_out(fake, cls, sparse):
    X, truth = ["cat dog", "dog", "", "cat"], [["cat", "dog"], ["dog"], [], ["cat"]]
    binarizer = MultiLabelBinarizer()
    y = binarizer.fit_transform(truth)
    clf = cls(label_names=binarizer.classes_.tolist(), on_error="default").fit(
        ["a", "b", "c", "d"], csr_array(y) if sparse else y
    )
    assert clf.classes_.tolist() == ["cat", "dog"]
    found = clf.predict([X[0], X[1], X[3]])
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert binarizer.inverse_transform(found) == [("cat", "dog"), ("dog",), ("cat",)]
    assert clf.score([X[0], X[1], X[3]], y[[0, 1, 3]]) == 1
    with pytest.raises(InputError, match=r"label_names=binarizer\.classes_"):
        cls().fit(["a", "b", "c", "d"], y)
    with pytest.raises(InputError, match="2 columns for the labels 'cat'"):
        cls(label_names=["cat"]).fit(["a", "b", "c", "d"], y)


@pytest.mark.filterwarnings("ignore:.* rows failed and")
@pytest.mark.parametrize("cls", [MultiLabelZeroShotGPTClassifier, MultiLabelCoTGPTClassifier])
def test_scores_of_lists_are_of_exact_matches_in_any_order(fake, cls):
    clf = cls(on_error="coerce").fit(None, ["cat", "cow", "dog"])
    X, y = ["cat dog", "dog cow", "boom", "cow"], [["dog", "cat"], ["dog"], ["cow"], ("cow",)]
    assert clf.score(X, y) == 0.5
    assert clf.score(X, y, sample_weight=[1, 0, 0, 1]) == 1
    assert clf.score(X, pd.DataFrame({"cat": [1, 0, 0, 0], "cow": [0, 1, 1, 1], "dog": [1, 1, 0, 0]})) == 0.75
