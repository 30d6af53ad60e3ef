"""What can be known from the parameters is told before the first request; what shows or travels holds no credential."""

from __future__ import annotations

import inspect
import json
import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone, is_classifier

import skllm_ray.models._base.estimator
from skllm_ray import classification, text2text
from skllm_ray.classification import DynamicFewShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError, PartialResultError, SkllmRayError
from skllm_ray.memory import IndexConstructor, SklearnMemoryIndex
from skllm_ray.models._base import constraints
from skllm_ray.tasks.base import RowError
from skllm_ray.testing import ChatServer, FakeBackend, FakeSpec, StatusFault
from tests.models.estimators import ALL, X, labels_for, make

pytestmark = pytest.mark.usefixtures("local_mode")
KEY = "sk-planted-0123456789abcdef"
TUNABLE = [getattr(module, name) for module in (classification, text2text) for name in module.__all__]
TUNABLE = [cls for cls in TUNABLE if hasattr(cls, "submit_tuning")]
ODD = [-1, 0, 1.5, True, None, "", " ", "odd", "{x", b"a", float("nan"), 2**40, ["a"], {"a": 1}, {1: "a"}, len]


@pytest.fixture
def asked(monkeypatch):
    """How often a backend was asked."""
    counts = []

    def answer(request):
        counts.append(1)
        return json.dumps({"explanation": "why", "label": "good", "entities": [], "item": "a", "quantity": 2})

    embed = FakeBackend.embed
    monkeypatch.setattr(FakeBackend, "embed", lambda self, texts: counts.append(1) or embed(self, texts))
    spec = FakeSpec(answer)
    monkeypatch.setattr(skllm_ray.models._base.estimator, "resolve", lambda *arguments: spec)
    return counts


@pytest.mark.parametrize("cls", [*ALL, *TUNABLE])
def test_every_parameter_has_constraints(cls):
    given = set(inspect.signature(cls).parameters) - {"schema", "entities", "label_names", "label_prior"}
    assert given <= set(constraints._rules_of(cls)), "say in _parameter_constraints what they may be"


@pytest.mark.parametrize("cls", [cls for cls in ALL if "Vertex" not in cls.__name__])
def test_a_parameter_is_fine_or_refused_before_anything_is_asked(asked, cls):
    wrong = []

    def attempt(estimator, name, value, fits):
        asked.clear()
        try:
            setattr(estimator, name, value)
            if fits:
                estimator.fit(X[:2], labels_for(cls) and labels_for(cls)[:2])
            (estimator.predict if is_classifier(estimator) else estimator.transform)(X[:1])
        except SkllmRayError as error:
            wrong.extend([(name, value, "asked before it was refused", str(error))] * bool(asked))
            wrong.extend([(name, value, "is not named", str(error))] * (name not in str(error)))
        except Exception as error:  # noqa: BLE001  that is what is looked for
            wrong.append((name, value, repr(error)))

    fitted = make(cls).fit(X, labels_for(cls))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, good in make(cls).get_params(deep=False).items():
            for value in ODD:
                attempt(make(cls), name, value, fits=True)
                attempt(fitted, name, value, fits=False)
            setattr(fitted, name, good)
    assert wrong == []


@pytest.mark.parametrize("cls", TUNABLE)
def test_nothing_is_tuned_with_a_parameter_that_cannot_work(cls, monkeypatch):
    from skllm_ray.execution import tuning_jobs

    SKLLMConfig.set_google_project("p")
    SKLLMConfig.set_google_location("europe-west4")
    SKLLMConfig.set_google_bucket("b")
    SKLLMConfig.set_gpt_url("http://127.0.0.1:9/v1")
    SKLLMConfig.set_openai_key(KEY)
    sent = []
    monkeypatch.setattr(tuning_jobs, "submit_job", lambda *a, **k: sent.append(1) or (_ for _ in ()).throw(KeyError))
    y = ["good", "bad"] * 10
    y = [[label] for label in y] if "MultiLabel" in cls.__name__ else y
    wrong = []
    base = {"base_model": "custom_url::m"} if "base_model" in cls().get_params() and cls._family == "gpt" else {}
    for name in cls().get_params(deep=False):
        for value in ODD:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    cls(**{**base, name: value}).fit([*X, *X, *X, *X, *X], y)
                except (SkllmRayError, KeyError):
                    pass
                except Exception as error:  # noqa: BLE001  that is what is looked for
                    wrong.append((name, value, repr(error)))
    assert wrong == []
    assert sent


@pytest.mark.parametrize("value", [-1, 1.5, True, "7", 2**32, np.random.RandomState(0)])
def test_a_random_state_is_refused_by_name(asked, value):
    clf = ZeroShotGPTClassifier(random_state=value)
    with pytest.raises(ConfigurationError, match=r"^random_state must be an int of at least 0.* or None; got "):
        clf.fit(None, ["good", "bad"])
    clf = ZeroShotGPTClassifier().fit(None, ["good", "bad"])
    clf.random_state = value
    with pytest.raises(ConfigurationError, match=r"^random_state must be"):
        clf.predict(X)
    assert not asked


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": "manhatan"},
        {"metric": "haversine"},
        {"memory_index": IndexConstructor(SklearnMemoryIndex, metric="odd")},
        {"memory_index": IndexConstructor(SklearnMemoryIndex, leaf_sizes=3)},
        {"memory_index": object},
    ],
)
def test_an_index_is_tried_before_the_examples_are_embedded(asked, wrong):
    with pytest.raises(ConfigurationError, match=r"memory_index=.* with metric=.* makes no index that works"):
        DynamicFewShotGPTClassifier(**wrong).fit(X, labels_for(ZeroShotGPTClassifier))
    assert not asked


def test_details_of_dynamic_few_shot_embed_once_and_show_what_was_sent():
    embedded, chats = [], []

    def answer(body):
        (embedded if "input" in body else chats).append(body)
        if len(embedded) > 2:
            return StatusFault(500, "down")  # one more would fail
        return '{"label": "good"}'

    with ChatServer(answer) as server:
        SKLLMConfig.set_gpt_url(server.url)
        vectorizer = skllm_ray.vectorization.GPTVectorizer("custom_url::e")
        clf = DynamicFewShotGPTClassifier(model="custom_url::m", vectorizer=vectorizer, n_examples=1)
        clf.fit(X, labels_for(ZeroShotGPTClassifier))
        assert len(embedded) == 1
        found = clf.predict_details(["a good film", "bad food"], include_io=True)
    assert (len(embedded), len(chats)) == (2, 2)
    sent = {body["messages"][-1]["content"] for body in chats}
    assert {prompt.rpartition("[user]\n")[2] for prompt in found["prompt"]} == sent


# --- credentials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [[KEY], (KEY,), {"a": KEY}, {KEY}, KEY.encode(), [{"deep": [KEY]}]], ids=type)
def test_a_key_of_the_wrong_type_is_refused_and_shown_nowhere(key):
    clf = ZeroShotGPTClassifier(key=key)
    for copy in (clf, clone(clf)):
        assert "planted" not in repr(copy) + str(vars(copy)) + copy._repr_html_()
    with pytest.raises(ConfigurationError, match="key must be a str or None") as caught:
        clf.fit(None, ["a", "b"]).predict(["x"])
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("how", ["constructor", "attribute", "set_params", "setattr"])
def test_a_key_is_hidden_however_it_is_set(how):
    clf = ZeroShotGPTClassifier(**({"key": KEY} if how == "constructor" else {}))
    if how == "attribute":
        clf.key = KEY
    elif how == "set_params":
        clf.set_params(key=KEY)
    elif how == "setattr":
        setattr(clf, "key", KEY)  # noqa: B010
    assert clf.key.reveal() == KEY
    for copy in (clf, clone(clf)):
        assert "planted" not in repr(copy) + str(vars(copy)) + copy._repr_html_()
        assert b"planted" not in pickle.dumps(copy)
    nested = DynamicFewShotGPTClassifier(vectorizer=skllm_ray.vectorization.GPTVectorizer())
    nested.set_params(vectorizer__key=KEY)
    assert "planted" not in repr(nested) + nested._repr_html_()
    assert b"planted" not in pickle.dumps(nested)


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "planted-1"},
        {"extra_body": {"user_config": {"api-key": "planted-1"}}},
        {"extra_headers": {"X-Portkey-Api-Key": "planted-1", "Authorization": "planted-2"}},
        {"metadata": ["Bearer planted-1"]},
        {"anything": "sk-planted-0123456789"},
        {"extra_body": {"clientSecret": "planted-1", "accessToken": "planted-2"}},
        {"extra_body": {"anything": "pk-planted-0123456789"}},
        {"extra_body": {"anything": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.planted"}},
        {"extra_body": {"proxy": "https://planted:planted@proxy.example:8080"}},
        {"extra_headers": {"Ocp-Apim-Subscription-Key": "planted-1"}},
    ],
)
def test_a_credential_in_request_options_is_hidden_and_refused(asked, options):
    clf = ZeroShotGPTClassifier(request_options=options)
    for copy in (clf, clone(clf)):
        assert "planted" not in repr(copy) + str(vars(copy)) + copy._repr_html_()
        assert b"planted" not in pickle.dumps(copy)
    for found in (clf, pickle.loads(pickle.dumps(clf))):
        with pytest.raises(ConfigurationError, match=r"^request_options holds what looks like a credential, under '"):
            found.fit(None, ["good", "bad"])


def test_other_request_options_stay_the_users_own_object(asked):
    options = {"max_completion_tokens": 5, "prompt_cache_key": "team-7", "tokenizer": "x", "stop": ["a", "b"],
               "metadata": {"author": "me", "keywords": "a b"}}  # fmt: skip
    clf = ZeroShotGPTClassifier(request_options=options)
    assert clf.request_options is options
    clone(clf).fit(None, ["good", "bad"])


# --- messages ---------------------------------------------------------------------------------------------------------


def failing(monkeypatch, *errors):
    found = iter(errors)
    spec = FakeSpec(lambda request: next(found) or '{"label": "good"}')
    monkeypatch.setattr(skllm_ray.models._base.estimator, "resolve", lambda *arguments: spec)
    return ZeroShotGPTClassifier().fit(None, ["good", "bad"])


GONE = RowError("connection", "The connection to http://127.0.0.1:9/v1 failed: refused.", retryable=True)


def test_an_error_names_the_first_reason_and_points_to_finished_rows_only_where_there_are_some(monkeypatch):
    with pytest.raises(PartialResultError) as all_failed:
        failing(monkeypatch, GONE).predict(["a"])
    message = str(all_failed.value)
    assert "1 of 1 rows failed: 1 × connection" in message
    assert "http://127.0.0.1:9/v1 failed: refused" in message
    assert "Does the server run" in message
    assert "finished" not in message
    assert len(all_failed.value.details) == 1
    with pytest.raises(PartialResultError) as one_failed:
        failing(monkeypatch, GONE, None).predict(["a", "b"])
    assert "refused" in str(one_failed.value)
    assert "The finished rows are in this error's .details" in str(one_failed.value)
    assert one_failed.value.details["prediction"].tolist().count("good") == 1


def test_a_server_that_is_not_there_is_named():
    SKLLMConfig.set_gpt_url("http://127.0.0.1:9/v1")
    SKLLMConfig.set_timeouts(connect_s=0.2, request_s=0.2, row_s=0.5)
    clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
    with pytest.raises(SkllmRayError) as caught:
        clf.predict(["a"])
    assert "finished rows" not in str(caught.value)
    assert "connection" in str(caught.value)


def test_what_only_looks_like_a_credential_is_let_through(asked):
    options = {"prompt_cache_key": "topics-1", "user": "u-1", "extra_body": {"url": "https://a.example/b@c", "n": "pk"}}
    ZeroShotGPTClassifier(request_options=options).fit(None, ["good", "bad"])


@pytest.mark.parametrize(
    "parameters",
    [
        {"prompt_template": "Judge {x} by {labels} \ud800"},
        {"label_descriptions": {"good": "all well \ud800"}},
        {"label_names": {"good": "a", "bad": "b\udfff"}},
        {"default_label": "none \ud800"},
        {"model": "custom_url::m\ud800"},
        {"request_options": {"extra_body": {"deep": ["\ud800"]}}},
    ],
)
def test_half_a_surrogate_pair_in_a_parameter_is_refused_before_anything_is_sent(asked, parameters):
    [name] = parameters
    with pytest.raises(ConfigurationError, match=f"^{name} holds half of a surrogate pair"):
        ZeroShotGPTClassifier(**parameters).fit(None, ["good", "bad"])
