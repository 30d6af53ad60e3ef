"""What a pickle of an estimator keeps: settings, but no credential; also one that the first release wrote."""

from __future__ import annotations

import pickle
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from skllm_ray import config
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import Price, RateLimit, SKLLMConfig, Timeouts

KEY = "sk-planted-0123456789abcdef"
OLD = sorted((Path(__file__).parent / "data" / "first_release").glob("*.pickle"))


def load(path):
    with warnings.catch_warnings():  # of another scikit-learn's objects in it
        warnings.simplefilter("ignore")
        return pickle.loads(path.read_bytes())


@pytest.fixture
def travelled():
    """An estimator that was made in a process with settings, loaded in one without."""
    SKLLMConfig.set_openai_key(KEY)
    SKLLMConfig.set_gpt_url("http://127.0.0.1:1/v1")
    SKLLMConfig.set_timeouts(row_s=33)
    SKLLMConfig.set_rate_limit("custom_url::m", requests_per_minute=7)
    SKLLMConfig.set_price("custom_url::m", input_per_million=1.5)
    made = pickle.dumps(ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"]))
    SKLLMConfig.reset()
    assert KEY.encode() not in made
    return pickle.loads(made)


def test_settings_survive_any_number_of_pickles_and_a_clone(travelled):
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(travelled))))
    for found in (travelled, again, clone(again)):
        spec = found._spec()
        assert (spec.base_url, spec.limit) == ("http://127.0.0.1:1/v1", RateLimit(requests_per_minute=7))
        assert (spec.patience.deadline_s, spec.price) == (33.0, Price(1.5))
    assert SKLLMConfig.get_gpt_url() is None


def test_what_is_set_here_wins_setting_by_setting_and_model_by_model(travelled):
    SKLLMConfig.set_show_progress(False)  # has nothing to do with it
    SKLLMConfig.set_price("custom_url::other", input_per_million=9)
    SKLLMConfig.set_gpt_url("http://127.0.0.1:2/v1")
    spec = travelled._spec()
    assert (spec.base_url, spec.limit) == ("http://127.0.0.1:2/v1", RateLimit(requests_per_minute=7))
    assert (spec.patience.deadline_s, spec.price) == (33.0, Price(1.5))
    later = pickle.loads(pickle.dumps(travelled))
    SKLLMConfig.reset()
    assert later._spec().base_url == "http://127.0.0.1:2/v1"


def test_other_threads_see_nothing_of_it_and_lose_nothing(travelled):
    inside, done, seen = threading.Event(), threading.Event(), []

    def other():
        inside.wait(10)
        seen.append(SKLLMConfig.get_gpt_url())
        SKLLMConfig.set_azure_api_base("https://mine.example")
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with SKLLMConfig._borrowed(travelled._settings):
        inside.set()
        assert done.wait(10)
        assert SKLLMConfig.get_gpt_url() == "http://127.0.0.1:1/v1"
    thread.join()
    assert seen == [None]
    assert SKLLMConfig.get_azure_api_base() == "https://mine.example"


def test_what_was_set_here_for_a_model_wins_over_what_an_estimator_brings():
    SKLLMConfig.set_rate_limit("m", requests_per_minute=7)
    SKLLMConfig.set_rate_limit("other", requests_per_minute=8)
    brought = SKLLMConfig._settings
    SKLLMConfig.reset()
    SKLLMConfig.set_rate_limit("m", requests_per_minute=5)
    with SKLLMConfig._borrowed(brought):
        limits = SKLLMConfig.get_rate_limit("m"), SKLLMConfig.get_rate_limit("other")
    assert [limit.requests_per_minute for limit in limits] == [5, 8]


def test_cached_input_costs_what_is_said_even_nothing_and_else_what_other_input_costs():
    costs = [Price(2.0, cached_input=cached).cost_usd(1_000_000, 0, 1_000_000) for cached in (0.0, 0.5, None)]
    assert costs == [0.0, 0.5, 2.0]


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_what_the_first_release_pickled_is_loaded(path):
    assert b"sk-" not in path.read_bytes()
    estimator = load(path)
    assert "sk-" not in repr(estimator)
    settings = estimator._settings
    assert settings.gpt_url == "http://127.0.0.1:9/v1"
    assert settings.timeouts == Timeouts(row_s=33)
    assert dict(settings.rate_limits) == {"m": RateLimit(requests_per_minute=7)} or dict(settings.rate_limits) == {
        "custom_url::m": RateLimit(requests_per_minute=7)
    }
    assert dict(settings.gguf_resources)["demo"].n_ctx == 512
    again = load_bytes(pickle.dumps(estimator))
    assert again.get_params(deep=False).keys() == estimator.get_params(deep=False).keys()
    assert again._spec() == estimator._spec()


def load_bytes(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pickle.loads(text)


@pytest.mark.usefixtures("local_mode")
@pytest.mark.parametrize("name", ["multi_label", "few_shot", "dynamic_few_shot", "dynamic_few_shot_hashing", "cot"])
def test_what_the_first_release_fitted_predicts(name):
    estimator = load(next(path for path in OLD if path.stem == name))
    found = estimator.predict(["a good film"])
    assert len(found) == 1
    np.testing.assert_array_equal(estimator.classes_, ["bad", "good"])


def test_a_class_with_a_new_field_reads_what_was_pickled_without_it():
    old = config.RateLimit.__new__(config.RateLimit)
    old.__setstate__([5, None])  # by position, as the first release did
    assert old == RateLimit(requests_per_minute=5)
    old.__setstate__({"max_concurrency": 2, "of a later version": 1})
    assert old == RateLimit(max_concurrency=2)
