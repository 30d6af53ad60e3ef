"""The table of facts about models, and who is told that a model is gone."""

import re
import warnings
from datetime import date

import pytest

from skllm_ray.classification import ZeroShotGPTClassifier, ZeroShotVertexClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import SkllmRayWarning
from skllm_ray.llm.model_facts import DEFAULTS, MODELS, end_notice, facts_of, price_of


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        ("gpt-3.5-turbo", date(2026, 10, 23)),
        ("gpt-4", date(2026, 10, 23)),
        ("gpt-4-0613", date(2026, 10, 23)),
        ("gpt-5", date(2026, 12, 11)),
        ("gpt-5-mini-2025-08-07", date(2026, 12, 11)),
        ("gpt-4o", date(2027, 1, 14)),
        ("gpt-4o-2024-05-13", date(2026, 10, 23)),
        ("gpt-4o-mini-2024-07-18", date(2027, 1, 14)),
        ("gpt-4.1", date(2027, 1, 14)),
        ("gemini-2.5-flash", date(2026, 10, 31)),
        ("gpt-5.4", None),
        ("llama3", None),
    ],
)
def test_when_a_model_ends(model, ends):
    assert facts_of(model).ends == ends


@pytest.mark.parametrize(
    ("model", "sampling", "log_probs", "form", "system"),
    [
        ("gpt-5.4-mini", False, False, "json_schema", True),
        ("o3-mini", False, False, "json_schema", True),
        ("o1-mini-2024-09-12", False, False, "plain", False),
        ("gpt-4o-mini", True, True, "json_schema", True),
        ("ft:gpt-4.1-mini-2025-04-14:mine::abc", True, True, "json_schema", True),
        ("gpt-4-turbo-2024-04-09", True, True, "json_object", True),
        ("gpt-4", True, True, "plain", True),
        ("somebody's", True, True, "json_schema", True),
    ],
)
def test_what_a_model_takes(model, sampling, log_probs, form, system):
    facts = facts_of(model)
    assert (facts.sampling, facts.log_probs, facts.answer_form, facts.system_role) == (
        sampling, log_probs, form, system,
    )  # fmt: skip
    assert facts.length_parameter == "max_completion_tokens"


def test_a_name_says_nothing_of_another_server():
    facts = facts_of("gpt-5", "custom_url")
    assert (facts.sampling, facts.ends, facts.length_parameter) == (True, None, "max_tokens")


def test_a_tuned_model_has_no_list_price():
    assert price_of("gpt-4.1-mini").input == 0.4
    assert price_of("ft:gpt-4.1-mini-2025-04-14:mine::abc") is None


def test_every_successor_and_every_default_outlives_what_it_replaces():
    for row in MODELS:
        re.compile(row.names)
        assert (row.ends is None) == (not row.successor)
        successor = facts_of(row.successor).ends if row.successor else None
        assert successor is None or successor > row.ends
    today = date(2026, 11, 23)
    assert not any(end_notice(default.name, today) for default in DEFAULTS.values())


@pytest.mark.parametrize(
    ("make", "model", "successor"),
    [
        (ZeroShotGPTClassifier, "gpt-3.5-turbo", "gpt-5.4-mini"),
        (ZeroShotVertexClassifier, "gemini-2.5-flash", "gemini-3.5-flash"),
    ],
)
def test_fit_warns_of_a_model_that_is_gone(make, model, successor):
    SKLLMConfig.set_google_project("p")
    with pytest.warns(SkllmRayWarning, match=rf"turned off on 2026-10.*'{successor}'") as caught:
        make(model=model).fit(None, ["a", "b"])
    assert [(one.filename, len(caught)) for one in caught] == [(__file__, 1)]


@pytest.mark.parametrize("model", ["gpt-5.4-mini", "azure::gpt-3.5-turbo", "custom_url::gpt-3.5-turbo", "gguf::demo"])
def test_fit_does_not_warn_of_others(model):
    SKLLMConfig.set_gpt_url("http://localhost:1/v1")
    SKLLMConfig.set_azure_api_base("https://a")
    if "::" not in model:
        SKLLMConfig.reset_gpt_url()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroShotGPTClassifier(model=model).fit(None, ["a", "b"])
