"""The zero-shot classifiers, from ``fit`` to what they return, with a fake backend and with the demo model."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import warnings
from dataclasses import dataclass, field

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skllm_ray.models._base.estimator
from skllm_ray.classification import (
    DynamicFewShotGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    MultiLabelZeroShotVertexClassifier,
    ZeroShotGPTClassifier,
    ZeroShotVertexClassifier,
)
from skllm_ray.config import RateLimit, Secret, SKLLMConfig
from skllm_ray.errors import (
    ConfigurationError,
    InputError,
    JobFailedError,
    MissingKeyError,
    ModelLoadError,
    NotSupportedError,
    PartialResultError,
    SkllmRayWarning,
    UnknownModelError,
)
from skllm_ray.execution.block import BLOCK_ROWS
from skllm_ray.llm.rate_limit.installed import current_limiter
from skllm_ray.models._base.results import DETAIL_COLUMNS
from skllm_ray.tasks import RowError
from skllm_ray.testing import ChatServer, FakeSpec
from skllm_ray.vectorization import GPTVectorizer

KEY = "sk-planted-0123456789abcdef"
LABELS = ["good", "bad", "mixed"]
BOTH = [ZeroShotGPTClassifier, MultiLabelZeroShotGPTClassifier]
ALL = [*BOTH, ZeroShotVertexClassifier, MultiLabelZeroShotVertexClassifier]

pytestmark = pytest.mark.usefixtures("local_mode")


@dataclass(frozen=True)
class Spec(FakeSpec):
    """A fake that takes a limit, as the API backends' specs do."""

    limit: RateLimit | None = field(default=None, kw_only=True)


def text_of(request):
    """Return the text that stands between the last two fences of a request."""
    prompt = request.messages[-1]["content"]
    fence = prompt.rpartition("\n")[2]
    return prompt.removesuffix(f"\n{fence}").rpartition(f"\n{fence}\n")[2]


class Fake:
    """Answers with the text itself, or with what `answers` says for it, and notes what it was asked."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.resolved = []
        self.spec = Spec(self.answer)

    def answer(self, request):
        text = text_of(request)
        self.asked.append(text)
        answer = self.answers.get(text, text)
        return answer if isinstance(answer, (str, RowError)) else json.dumps(answer)

    def resolve(self, *arguments):
        self.resolved.append(arguments)
        return self.spec


@pytest.fixture
def fake(monkeypatch):
    found = Fake()
    monkeypatch.setattr(skllm_ray.models._base.estimator, "resolve", found.resolve)
    return found


def fitted(cls=ZeroShotGPTClassifier, labels=None, **parameters):
    labels = LABELS if labels is None else labels
    return cls(**parameters).fit(None, [labels] if "MultiLabel" in cls.__name__ else labels)


# --- scikit-learn's conventions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_parameters_go_round(cls):
    given = {
        "model": "gguf::demo",
        "default_label": "good",
        "prompt_template": "{labels}{x}",
        "on_error": "coerce",
        "label_descriptions": {"good": "fine"},
        "random_state": 3,
        "request_options": {"a": 1},
    }
    clf = cls(**given)
    assert given.items() <= clf.get_params().items()
    assert clone(clf).get_params() == clf.get_params() == cls().set_params(**given).get_params()
    assert set(clf.get_params()) == set(inspect.signature(cls).parameters)


def test_the_parameters_of_scikit_llm_come_first():
    def positional(cls):
        return [name for name, p in inspect.signature(cls).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert positional(BOTH[0]) == ["model", "default_label", "prompt_template", "key", "org"]
    assert positional(BOTH[1]) == ["model", "default_label", "max_labels", "prompt_template", "key", "org"]
    assert positional(ALL[2]) == ["model", "default_label", "prompt_template"]
    assert positional(ALL[3]) == ["model", "default_label", "max_labels", "prompt_template"]


@pytest.mark.parametrize("make", [lambda cls: cls(key=KEY), lambda cls: cls().set_params(key=KEY)], ids=["init", "set"])
@pytest.mark.parametrize("cls", BOTH)
def test_a_key_survives_a_clone_and_shows_nowhere(cls, make):
    clf = make(cls)
    copy = clone(clone(make_pipeline(clf)))[0]
    assert copy.key.reveal() == KEY == copy.get_params()["key"].reveal()
    pipeline = make_pipeline(clf)
    pipeline.set_params(**{f"{cls.__name__.lower()}__key": KEY})
    for shown in (repr(clf), repr(pipeline), clf._repr_html_(), repr(clf.get_params()), str(vars(clf))):
        assert "sk-planted" not in shown


@pytest.mark.parametrize("cls", BOTH)
def test_a_pickle_holds_no_key_and_works_where_it_is_loaded(fake, cls):
    clf = fitted(cls, key=KEY, default_label="good")
    buffer = io.BytesIO()
    joblib.dump(clf, buffer)
    assert b"sk-planted" not in buffer.getvalue() + pickle.dumps(clf)
    there = joblib.load(io.BytesIO(buffer.getvalue()))
    assert (there.key.reveal(), there.key.fingerprint) == ("", Secret(KEY).fingerprint)
    np.testing.assert_array_equal(there.classes_, clf.classes_)
    fake.answers = {"t": {"label": "bad"}}
    assert there.predict(["t"]).ravel()[0] == "bad"


def test_a_loaded_estimator_without_its_key_says_so():
    there = pickle.loads(pickle.dumps(fitted(key=KEY, model="gpt-x")))
    with pytest.raises(MissingKeyError, match="set_openai_key"):
        there.predict(["t"])
    SKLLMConfig.set_openai_key("sk-here")
    there._spec().check()


@pytest.mark.usefixtures("local_mode")
@pytest.mark.parametrize("carried", ["by the estimator", "by its settings"])
def test_another_key_than_the_one_left_behind_is_used_with_a_warning(monkeypatch, carried):
    other = "sk-other-account-9876"
    with ChatServer(key=other) as server:
        SKLLMConfig.set_gpt_url(server.url)
        if carried == "by its settings":
            SKLLMConfig.set_openai_key(KEY)
        key = KEY if carried == "by the estimator" else None
        there = pickle.dumps(ZeroShotGPTClassifier(model="custom_url::m", key=key).fit(None, ["good", "bad"]))
        SKLLMConfig.reset()
        monkeypatch.setenv("SKLLM_CONFIG_OPENAI_KEY", other)
        clf = pickle.loads(there)
        with pytest.warns(SkllmRayWarning, match=r"not known here.*set_params\(key=") as caught:
            assert clf.predict(["so good"]).tolist() == ["good"]
        assert len(caught) == 1
        for part in (KEY[:6], other[:6], Secret(KEY).fingerprint, Secret(other).fingerprint):
            assert part not in str(caught[0].message)
        assert clf.set_params(key=other).predict(["so good"]).tolist() == ["good"]  # no warning: it was said which


def test_the_settings_of_the_estimator_reach_the_registry(fake):
    fitted(model="m", key=KEY, org="o", request_options={"a": 1})
    fitted(ZeroShotVertexClassifier, model="v")
    assert fake.resolved == [("m", KEY, "o", {"a": 1}, "gpt"), ("v", None, None, None, "vertex")]


def test_unfitted_is_refused(fake):
    for method in ("predict", "predict_proba", "predict_details", "render_prompt"):
        with pytest.raises(Exception, match="not fitted"):
            getattr(ZeroShotGPTClassifier(), method)(["t"])
    assert fake.asked == []


def test_cross_validation_and_pipelines_work(fake):
    texts = np.array([f"{label} {i}" for i in range(6) for label in LABELS])
    fake.answers = {text.strip(): {"label": text.split()[0]} for text in texts}
    y = [text.split()[0] for text in texts]
    np.testing.assert_array_equal(cross_val_predict(ZeroShotGPTClassifier(), texts, y, cv=3), y)
    assert sorted(fake.asked) == sorted(texts)
    strip = FunctionTransformer(lambda X: [x.strip() for x in X])
    pipeline = Pipeline([("strip", strip), ("clf", ZeroShotGPTClassifier(default_label="good"))])
    padded = [f"  {text} " for text in texts]
    assert pipeline.fit(padded, y).score(padded, y) == 1
    assert clone(pipeline).get_params()["clf__default_label"] == "good"


# --- fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "descriptions", "classes", "dtype"),
    [
        (["good", "bad", "mixed"], None, ["bad", "good", "mixed"], np.str_),
        (pd.Series(["b", "a"]), None, ["a", "b"], np.str_),
        (np.array(["b", "a"], dtype=object), None, ["a", "b"], object),
        ([10, 9, 1], {1: "one", 9: "nine", 10: "ten"}, [1, 9, 10], np.integer),
    ],
)
def test_classes_are_a_sorted_array_of_the_labels_own_type(fake, y, descriptions, classes, dtype):
    clf = ZeroShotGPTClassifier(label_descriptions=descriptions)
    assert clf.fit(None, y) is clf
    assert isinstance(clf.classes_, np.ndarray)
    assert clf.classes_.tolist() == classes
    assert np.issubdtype(clf.classes_.dtype, dtype)
    assert clf.class_probabilities_.tolist() == [1 / len(classes)] * len(classes)
    assert fake.asked == []


def test_frequencies_follow_the_classes(fake):
    clf = ZeroShotGPTClassifier().fit(list("wxyz"), ["b", "a", "b", "b"])
    assert dict(zip(clf.classes_, clf.class_probabilities_, strict=True)) == {"a": 0.25, "b": 0.75}
    multi = MultiLabelZeroShotGPTClassifier().fit(list("xyz"), [["b", "a"], [], ["b", "c"]])
    assert isinstance(multi.classes_, np.ndarray)
    assert dict(zip(multi.classes_, multi.class_probabilities_, strict=True)) == {"a": 0.25, "b": 0.5, "c": 0.25}


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"on_error": "ignore"}, ConfigurationError, "on_error must be 'raise', 'default' or 'coerce'; got 'ignore'"),
        ({"default_label": ""}, ConfigurationError, "default_label"),
        ({"default_label": None}, ConfigurationError, "default_label"),
        ({"prompt_template": "{x}"}, ConfigurationError, r"prompt_template lacks the placeholder \{labels\}"),
        ({"prompt_template": "{labels}{x}{y}"}, ConfigurationError, r"unknown placeholder \{y\}"),
        ({"prompt_template": 7}, ConfigurationError, "prompt_template must be a str or None; got 7"),
        ({"model": "nope::m"}, UnknownModelError, "nope"),
        ({"model": "gguf::demo", "request_options": {"a": 1}}, ConfigurationError, "request_options"),
        ({"label_descriptions": {"god": "typo"}}, InputError, "label_descriptions describes 'god'.*bad, good, mixed"),
    ],
)
@pytest.mark.parametrize("cls", BOTH)
def test_parameters_are_checked_at_fit(cls, parameters, error, message):
    if cls is BOTH[1] and "prompt_template" in parameters and "{x}{y}" in str(parameters["prompt_template"]):
        parameters = {"prompt_template": "{max_cats}{labels}{x}{y}"}
    with pytest.raises(error, match=message):
        fitted(cls, **parameters)


@pytest.mark.parametrize("max_labels", [0, True, 1.0, None])
def test_max_labels_is_a_positive_int(max_labels):
    with pytest.raises(ConfigurationError, match="max_labels"):
        fitted(MultiLabelZeroShotGPTClassifier, max_labels=max_labels)


# --- predict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 300, 600])
def test_predictions_keep_the_order_and_the_dtype(fake, n):
    y = [LABELS[i * i % 3] for i in range(n)]
    fake.answers = {f"t{i}": {"label": y[i]} for i in range(n)}
    clf = fitted()
    found = clf.predict([f"t{i}" for i in range(n)])
    assert found.tolist() == y
    assert (found.dtype, found.shape) == (clf.classes_.dtype, (n,))
    assert len(fake.asked) == n


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "👩‍👩‍👧 ça", "{labels} {x} {", "``` ````` ```", "```\nok\n```", " a\r\n\tb ", "<|end|>"]
)
def test_a_text_reaches_the_backend_as_it_is(fake, text):
    fake.answers = {text: {"label": "mixed"}}
    assert fitted().predict([text]).tolist() == ["mixed"]
    assert fake.asked == [text]


def test_duplicates_get_one_answer_each(fake):
    assert fitted().predict(["good", "bad", "good"]).tolist() == ["good", "bad", "good"]


def test_integer_labels_come_back_as_integers(fake):
    fake.answers = {"t": {"label": "10"}, "u": {"label": "2"}}
    clf = fitted(labels=[2, 10], label_descriptions={2: "two stars", 10: "ten stars"})
    found = clf.predict(["t", "u"])
    assert (found.tolist(), found.dtype.kind) == ([10, 2], "i")
    (prompt,) = clf.render_prompt(["t"])
    assert '- "2": two stars\n- "10": ten stars' in prompt
    with pytest.raises(InputError, match="label_descriptions"):
        fitted(labels=[2, 10])


def test_an_empty_collection_and_a_bare_text_are_refused(fake):
    with pytest.raises(InputError, match="no texts"):
        fitted().predict([])
    with pytest.raises(TypeError, match=r"Write \[X\]"):
        fitted().predict("good")


@pytest.mark.parametrize("cls", BOTH)
def test_num_workers_is_accepted_and_checked(fake, cls):
    fake.answers = {"good": {"label": "good"}}
    assert fitted(cls).predict(["good"], num_workers=2).ravel()[0] == "good"
    for wrong in (0, 1.5, True, "2"):
        with pytest.raises(ConfigurationError, match="num_workers"):
            fitted(cls).predict(["good"], num_workers=wrong)


def test_num_workers_works_with_the_fake_that_users_have(fake):
    fake.spec = FakeSpec(fake.answer)
    assert fitted().predict(["good"], num_workers=2).tolist() == ["good"]


@pytest.mark.parametrize("few_shot", [False, True])
def test_num_workers_caps_this_call_alone(few_shot):
    with ChatServer(latency_s=0.02) as server:
        SKLLMConfig.set_gpt_url(server.url)
        clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, LABELS)
        if few_shot:
            vectorizer = GPTVectorizer(model="custom_url::v")
            clf = DynamicFewShotGPTClassifier(model="custom_url::m", vectorizer=vectorizer, n_examples=1)
            clf.fit(["one good", "one bad", "one mixed"], LABELS)
        texts = [f"{i} good" for i in range(30)]
        server.most_in_flight = 0
        assert set(clf.predict(texts, num_workers=3)) == {"good"}
        assert server.most_in_flight == 3
        clf.predict(texts)
        assert server.most_in_flight > 3
    assert {bucket.max_concurrency for bucket in current_limiter().show() if server.url in bucket.bucket} == {None}


# --- failures -----------------------------------------------------------------------------------------------------

TIMEOUT = RowError("timeout", "too late", retryable=True)
BAD_KEY = RowError("authentication", "wrong key", fatal=True)


@pytest.fixture
def failing(fake):
    fake.answers = {"slow": TIMEOUT, "dear": BAD_KEY}
    return fake


def test_raise_tries_all_rows_first_and_keeps_them(failing):
    X = pd.Series(["good", "slow", "bad", "dear"], index=list("wxyz"))
    with pytest.raises(PartialResultError, match="2 of 4 rows failed: 1 × timeout, 1 × authentication") as caught:
        fitted().predict(X)
    details = caught.value.details
    assert failing.asked == X.tolist()
    assert tuple(details.columns) == DETAIL_COLUMNS
    assert details.index.tolist() == list("wxyz")
    assert details["prediction"].tolist() == ["good", None, "bad", None]
    assert details["error_kind"].tolist() == [None, "timeout", None, "authentication"]
    assert details["error"].tolist() == [None, "too late", None, "wrong key"]


@pytest.mark.parametrize(
    ("parameters", "per_call", "expected"),
    [
        ({"on_error": "default", "default_label": "bad"}, None, ["good", "bad", "bad"]),
        ({"on_error": "default", "default_label": "none of them"}, None, ["good", "none of them", "none of them"]),
        ({"on_error": "coerce"}, None, ["good", None, None]),
        ({"on_error": "raise"}, "coerce", ["good", None, None]),
        ({"default_label": "mixed"}, "default", ["good", "mixed", "mixed"]),
    ],
)
def test_failed_and_missing_rows_get_what_on_error_says(failing, parameters, per_call, expected):
    with pytest.warns(SkllmRayWarning, match="1 of 2 rows failed and") as caught:
        found = fitted(**parameters).predict(["good", "slow", None], on_error=per_call)
    assert len(caught) == 1
    assert found.tolist() == expected
    assert (found.dtype == object) == (not set(expected) <= set(LABELS))


@pytest.mark.parametrize(
    ("on_error", "what"), [("default", "failed and took the default"), ("coerce", "failed and have no result")]
)
def test_a_dead_server_is_told_in_one_warning_with_its_address(on_error, what):
    with ChatServer() as server:
        url = server.url
    SKLLMConfig.set_gpt_url(url)
    SKLLMConfig.set_timeouts(row_s=0.5)
    clf = ZeroShotGPTClassifier(model="custom_url::m", on_error=on_error, default_label="good").fit(None, LABELS)
    with pytest.warns(SkllmRayWarning) as caught:
        clf.predict(["good", "bad", None, " "])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    told = str(caught[0].message)
    assert told.startswith(f"2 of 2 rows {what}: 2 × connection. custom_url::m failed first with connection: ")
    assert url in told
    assert "predict_details(X) shows each row's error; on_error='raise' raises instead." in told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clf.predict_details(["good"])["error_kind"].tolist() == ["connection"]  # the table tells it
        assert clf.predict([None, " "]).tolist() == ["good" if on_error == "default" else None] * 2


def test_each_kind_of_call_tells_failed_rows_once(failing):
    calls = {
        "score": lambda: fitted(on_error="coerce").score(["good", "slow"], ["good", "bad"]),
        "several labels": lambda: fitted(MultiLabelZeroShotGPTClassifier).predict(["good", "slow"], on_error="default"),
        "folds": lambda: cross_val_predict(fitted(on_error="coerce"), ["good", "slow"] * 3, ["good", "bad"] * 3, cv=3),
    }
    for name, call in calls.items():
        with pytest.warns(SkllmRayWarning) as caught:
            call()
        told = [str(one.message) for one in caught if "rows failed and" in str(one.message)]
        assert len(told) == (3 if name == "folds" else 1), name
        assert all("1 of 2 rows failed" in one for one in told), name


@pytest.mark.parametrize("wrong", ["yes", "no", 1, None])
def test_flags_of_a_call_are_true_or_false(fake, wrong):
    with pytest.raises(ConfigurationError, match="include_io must be True or False"):
        fitted().predict_details(["good"], include_io=wrong)
    with pytest.raises(ConfigurationError, match="details must be True or False"):
        fitted().predict_dataset(None, details=wrong)


def test_on_error_of_a_call_is_checked(fake):
    with pytest.raises(ConfigurationError, match="on_error"):
        fitted().predict(["good"], on_error="ignore")


@pytest.mark.parametrize("on_error", ["raise", "default", "coerce"])
@pytest.mark.parametrize("cls", BOTH)
def test_a_fatal_error_on_every_row_is_one_error(failing, cls, on_error):
    with pytest.raises(JobFailedError, match=r"refused every row \(authentication\): wrong key") as caught:
        fitted(cls, on_error=on_error).predict(["dear", None, "dear"] if on_error != "raise" else ["dear"] * 2)
    assert "set_openai_key" in caught.value.hint


@pytest.mark.parametrize("on_error", ["default", "coerce"])
@pytest.mark.parametrize("ask", ["predict", "predict_details"])
def test_what_ended_a_call_is_told_whatever_becomes_of_failed_rows(failing, on_error, ask):
    X = ["good"] * 10 + ["dear"] + ["bad"] * 600
    with pytest.warns(SkllmRayWarning, match=r"authentication: wrong key") as caught:
        getattr(fitted(on_error=on_error), ask)(X)
    (told,) = [one for one in caught if "authentication" in str(one.message)]
    assert told.filename == __file__
    n_not_asked = len(X) - len(failing.asked)
    assert 0 < n_not_asked == 611 - BLOCK_ROWS
    assert f"{n_not_asked} of 611 rows were not asked" in str(told.message)


def test_what_ended_a_call_is_told_with_what_it_left(failing):
    X = ["good"] * 10 + ["dear"] + ["bad"] * 600
    with pytest.raises(PartialResultError, match=r"355 of 611 rows were not asked \(authentication: wrong") as caught:
        fitted().predict(X)
    kinds = caught.value.details["error_kind"].value_counts().to_dict()
    assert kinds == {"cancelled": 611 - BLOCK_ROWS, "authentication": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted().predict(["good", "bad"]).tolist() == ["good", "bad"]  # the next call begins anew


def test_missing_texts_are_free(fake):
    X = ["", "good", None, "  ", float("nan")]
    with pytest.raises(InputError, match=r"4 missing.*0, 2, 3, 4"):
        fitted().predict(X)
    assert fake.asked == []
    assert fitted(on_error="coerce").predict(X).tolist() == [None, "good", None, None, None]
    assert fake.asked == ["good"]
    details = fitted().predict_details([None, "good"])
    assert details["error_kind"].tolist() == ["missing_text", None]
    assert details[["attempts", "prompt_tokens", "cost_usd"]].iloc[0].tolist() == [0, 0, 0]
    assert np.isnan(details["cost_usd"][1])  # nobody has said what it costs
    assert fitted(on_error="default", default_label="bad").predict([None]).tolist() == ["bad"]
    assert fake.asked == ["good"] * 2


# --- invalid answers ----------------------------------------------------------------------------------------------


def test_invalid_answers_take_the_default_and_are_counted_in_one_warning(fake):
    with pytest.warns(SkllmRayWarning, match=r"2 of 3 answers.*default \(mixed\)") as caught:
        found = fitted(default_label="mixed").predict(["good", "nonsense", "true"])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert found.tolist() == ["good", "mixed", "mixed"]
    details = fitted(default_label="mixed").predict_details(["good", "nonsense"])
    assert details["valid"].tolist() == [True, False]
    assert details["error_kind"].tolist() == [None, "invalid_answer"]


@pytest.mark.filterwarnings("ignore::skllm_ray.errors.SkllmRayWarning")
def test_a_random_default_depends_on_the_text_and_the_seed_alone(fake):
    texts = [f"nonsense {i}" for i in range(400)]
    y = ["bad"] * 1 + ["good"] * 3
    clf = ZeroShotGPTClassifier(random_state=1).fit(list("wxyz"), y)
    whole = dict(zip(texts, clf.predict(texts), strict=True))
    part = texts[7:300:11][::-1]
    assert clf.predict(part).tolist() == [whole[text] for text in part]
    assert clf.predict([texts[5]] * 3).tolist() == [whole[texts[5]]] * 3
    other = clone(clf).set_params(random_state=2).fit(list("wxyz"), y).predict(texts)
    assert other.tolist() != list(whole.values())
    share = sum(label == "good" for label in whole.values()) / len(whole)
    assert 0.65 < share < 0.85  # 0.75 in the mean, four standard deviations either way


# --- details, prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("texts", [["good"], ["slow", "slow"], [None, "  "], ["nonsense"], ["good", "slow", None]])
def test_the_table_never_changes_its_form(failing, cls, texts):
    X = pd.Series(texts, index=pd.Index(range(5, 5 + len(texts)), name="id"), dtype=object)
    details = fitted(cls).predict_details(X)
    assert tuple(details.columns) == DETAIL_COLUMNS
    pd.testing.assert_index_equal(details.index, X.index)
    kinds = "".join(dtype.kind for dtype in details.dtypes)
    assert kinds == "OfbOOiiifOf"


def test_the_table_can_hold_prompts_and_replies(fake):
    clf = fitted()
    details = clf.predict_details(["good", None], include_io=True)
    assert list(details.columns) == [*DETAIL_COLUMNS, "prompt", "raw_reply"]
    assert details["prompt"].tolist() == clf.render_prompt(["good", None])
    assert details["raw_reply"].tolist() == ["good", None]
    assert details["model"].tolist() == ["fake", ""]


@pytest.mark.parametrize("cls", BOTH)
def test_rendering_a_prompt_starts_nothing(fake, cls):
    template = "{labels}: {x}" if cls is BOTH[0] else "{max_cats} {labels}: {x}"
    first, second = fitted(cls, prompt_template=template).render_prompt(["a {x}", ""])
    assert '["bad", "good", "mixed"]: a {x}' in first
    assert first.startswith("[system]\n")
    assert second is None
    assert fake.asked == []


def test_rendering_a_prompt_needs_no_credentials():
    clf = fitted(model="gpt-x")
    assert clf.render_prompt(["hello"])[0].endswith("\n```\nhello\n```")
    with pytest.raises(MissingKeyError):
        clf.predict(["hello"])


def test_a_missing_model_file_is_said_at_predict():
    with pytest.raises(ModelLoadError, match=r"/no/such/file.gguf does not exist"):
        fitted(model="gguf::/no/such/file.gguf").predict(["hello"])


# --- probabilities ------------------------------------------------------------------------------------------------


def test_a_backend_without_probabilities_says_which_have_them(fake):
    with pytest.raises(NotSupportedError, match=r"gives no probabilities.*gguf::"):
        fitted(model="m").predict_proba(["good"])
    with pytest.raises(NotSupportedError):
        fitted(MultiLabelZeroShotGPTClassifier).predict_proba(["good"])


def test_the_demo_model_gives_probabilities():
    X = ["I love it.", "Broke after two days. Terrible.", "👩‍👩‍👧 ```", "It arrived on a Tuesday.", "I love it."]
    clf = fitted(model="gguf::demo", labels=["positive", "negative", "neutral"])
    probabilities = clf.predict_proba(X)
    assert probabilities.shape == (5, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    predictions = clf.predict(X)
    np.testing.assert_array_equal(clf.classes_[probabilities.argmax(axis=1)], predictions)
    details = clf.predict_details(X)
    np.testing.assert_allclose(details["probability"], probabilities.max(axis=1))
    assert details["valid"].all()
    assert set(details["model"]) == {"gguf::demo"}
    assert (details["prompt_tokens"] > 50).all()
    assert (details["cost_usd"] == 0).all()
    reordered = fitted(model="gguf::demo", labels=["neutral", "positive", "negative"])
    np.testing.assert_allclose(reordered.predict_proba(X), probabilities)


def test_rows_without_an_answer_have_probabilities_as_on_error_says():
    y = ["a", "b", "b", "b"]
    clf = ZeroShotGPTClassifier(model="gguf::demo").fit(list("wxyz"), y)
    overlong = "word " * 5000
    with pytest.warns(SkllmRayWarning, match="1 of 2 rows failed and have no result: 1 × context_length"):
        coerced = clf.predict_proba([None, "text", overlong], on_error="coerce")
    assert np.isnan(coerced[[0, 2]]).all()
    assert coerced[1].sum() == pytest.approx(1)
    assert clf.predict_proba([None, "text"], on_error="default")[0].tolist() == [0.25, 0.75]
    with pytest.raises(InputError):
        clf.predict_proba([None, "text"])
    with pytest.raises(PartialResultError, match="1 × context_length"):
        clf.predict_proba(["text", overlong])


# --- several labels -----------------------------------------------------------------------------------------------


def test_several_labels_are_padded_to_a_rectangle(fake):
    fake.answers = {"two": {"label": ["bad", "good"]}, "none": {"label": []}, "many": {"label": [*LABELS, *LABELS]}}
    found = fitted(MultiLabelZeroShotGPTClassifier, max_labels=3).predict(["two", "none", "many"])
    assert found.tolist() == [["bad", "good", ""], ["", "", ""], LABELS]
    assert found.shape == (3, 3)
    shorter = fitted(MultiLabelZeroShotGPTClassifier, max_labels=2).predict(["two", "many"])
    assert shorter.tolist() == [["bad", "good"], ["good", "bad"]]


def test_true_is_never_a_label(fake):
    fake.answers = {"t": '{"label": ["good", true, "nonsense", null, 1]}', "u": '{"label": [true]}'}
    clf = fitted(MultiLabelZeroShotGPTClassifier, max_labels=2, default_label="mixed")
    assert clf.predict(["t"]).tolist() == [["good", ""]]
    with pytest.warns(SkllmRayWarning, match="1 of 1 answers"):
        assert clf.predict(["u"]).tolist() == [["mixed", ""]]


@pytest.mark.filterwarnings("ignore:.* rows failed and")
def test_several_labels_fail_as_one_does(failing):
    clf = fitted(MultiLabelZeroShotGPTClassifier, max_labels=2, default_label="bad")
    failing.answers["good"] = {"label": ["good"]}
    X = ["good", "slow", None]
    assert clf.predict(X, on_error="coerce").tolist() == [["good", ""], [None, None], [None, None]]
    assert clf.predict(X, on_error="default").tolist() == [["good", ""], ["bad", ""], ["bad", ""]]
    with pytest.raises(PartialResultError) as caught:
        clf.predict(X[:2])
    assert caught.value.details["prediction"].tolist() == [["good"], None]


def test_several_labels_of_the_demo_model():
    clf = fitted(MultiLabelZeroShotGPTClassifier, ["delivery", "price", "quality"], model="gguf::demo", max_labels=2)
    found = clf.predict(["The parcel came a week late.", "cheap"])
    assert found.shape == (2, 2)
    assert set(found.ravel()) <= {"delivery", "price", "quality", ""}


# --- local mode ---------------------------------------------------------------------------------------------------


def test_nothing_here_starts_a_cluster(fake, monkeypatch):
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("a Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # one of another folder's tests may run in this process
    fitted().predict(["good"] * 600)


def test_a_backend_is_opened_once_for_many_calls(fake, monkeypatch):
    opened = []
    monkeypatch.setattr(Spec, "open", lambda self, resolve: opened.append(self) or FakeSpec.open(self, resolve))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            fitted().predict(["good", "bad"])
    assert len(opened) == 1


# --- how sure a model is ------------------------------------------------------------------------------------------


def test_labels_that_the_model_would_hardly_say_are_one_warning():
    texts = [f"I love it, works like a charm, number {i}." for i in range(8)]
    fitting = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["negative", "positive", "neutral"])
    assert fitting.predict_details(texts)["label_mass"].median() > 0.9  # and no warning, which would be an error here
    odd = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["zebra", "xylophone"])
    for ask in (odd.predict, odd.predict_proba, odd.predict_details):
        with pytest.warns(
            SkllmRayWarning, match=r"(?s)probability of .* only.*labels.*prompt_template.*chat template"
        ) as told:
            ask(texts)
        assert len(told) == 1
    odd.predict(texts[:7])  # too few for a word on all of them


def test_a_mass_is_null_where_it_is_not_known(fake):
    several = MultiLabelZeroShotGPTClassifier(model="gguf::demo").fit(None, [["price", "quality"]])
    assert several.predict_details(["Cheap."])["label_mass"].isna().all()
    assert fitted(ZeroShotGPTClassifier).predict_details(LABELS[:2])["label_mass"].isna().all()
