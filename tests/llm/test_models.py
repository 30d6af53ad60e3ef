"""The table of facts about models, and who is told that a model is gone."""

import copy
import re
import warnings
from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest

from skllm_ray.classification import ZeroShotGPTClassifier, ZeroShotVertexClassifier
from skllm_ray.config import Price, SKLLMConfig
from skllm_ray.errors import SkllmRayWarning
from skllm_ray.llm.model_facts import DEFAULTS, MODELS, _published, end_notice, facts_of, price_of
from skllm_ray.llm.tiers import at_tier
from skllm_ray.llm.vertex.spec import VertexSpec


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


@pytest.mark.parametrize(
    ("model", "vendor", "price"),
    [
        ("gpt-5.4-mini", "openai", (0.75, 4.5, 0.075)),  # the table's
        ("gpt-5.4-nano", "openai", (0.2, 1.25, 0.02)),
        ("o3", "openai", (2.0, 8.0, 0.5)),  # since a date: it was dearer before
        ("o3-2025-04-16", "openai", (2.0, 8.0, 0.5)),
        ("gpt-3.5-turbo", "openai", (0.5, 1.5, None)),
        ("gemini-3.5-flash", "google", (1.5, 9.0, 0.15)),
        ("gemini-embedding-001", "google", (0.15, 0.0, None)),
        ("gemini-2.5-pro", "google", (1.25, 10.0, 0.125)),
        ("gpt-5.4-nano-of-ours", "openai", None),
        ("gpt-6", "openai", None),
        ("gpt-4o-search-preview", "openai", None),
        ("gpt-5.4-mini", "google", None),
        ("projects/1/locations/global/endpoints/2", "google", None),
        ("", "google", None),
    ],
)
def test_where_the_table_is_silent_a_dated_price_list_speaks(model, vendor, price):
    found = price_of(model, vendor)
    assert (found and (found.input, found.output, found.cached_input)) == price
    assert found is None or found.as_of.startswith("2026-" if model == "gpt-5.4-mini" else "genai-prices 0.")


def test_the_table_agrees_with_the_price_list(monkeypatch):
    rows = [row for row in MODELS if row.price]
    names = [row.names.replace("\\", "") for row in rows]
    assert "gpt-4o-2024-05-13" in names
    for name, row in zip(names, rows, strict=True):
        listed = _published(name, "openai")
        assert listed is not None, name
        for ours, theirs in ((row.price, listed), (row.price.long, listed.long)):
            assert (ours and (ours.input, ours.output)) == (theirs and (theirs.input, theirs.output)), name
        assert row.price.long_above == listed.long_above


@pytest.mark.parametrize(
    ("model", "vendor", "above", "long"),
    [
        ("gpt-5.4", "openai", 272_000, (5.0, 22.5, 0.5)),  # the table's
        ("gpt-5.5-2026-04-23", "openai", 272_000, (10.0, 45.0, 1.0)),
        ("gpt-5.4-pro", "openai", 272_000, (60.0, 270.0, None)),
        ("gemini-2.5-pro", "google", 200_000, (2.5, 15.0, 0.25)),
    ],
)
def test_long_prompts_cost_what_is_listed_for_them(model, vendor, above, long):
    price = price_of(model, vendor)
    assert (price.long_above, price.long.input, price.long.output, price.long.cached_input) == (above, *long)
    usual = price.cost_usd(above, 10, 1000)
    assert usual == pytest.approx((1000 * price.at(0).cost_usd(1, 0, 1)) + price.at(0).cost_usd(above - 1000, 10))
    assert price.cost_usd(above + 1, 10, 1000) > 1.4 * usual


def test_a_tier_of_service_is_cheaper_for_long_prompts_too():
    half = at_tier(price_of("gpt-5.4"), "batch")
    assert half.cost_usd(272_001, 10) == pytest.approx(price_of("gpt-5.4").cost_usd(272_001, 10) / 2)
    assert half.cost_usd(100, 10) == pytest.approx(price_of("gpt-5.4").cost_usd(100, 10) / 2)


@pytest.mark.parametrize("tiers", [[(10, "4"), (20, "5")], [(10, "1")]])
def test_a_price_of_more_steps_or_of_cheaper_long_prompts_is_not_known(monkeypatch, tiers):
    import genai_prices

    def listed(usage, model, **_):
        found = real(usage, model, provider_id="openai")
        steps = [genai_prices.types.Tier(start, Decimal(price)) for start, price in tiers]
        price = copy.copy(found.model_price)
        price.input_mtok = genai_prices.types.TieredPrices(Decimal(2), steps)
        return replace(found, model_price=price)

    real = genai_prices.calc_price
    assert _published("gpt-5.4-nano", "openai") is not None
    monkeypatch.setattr(genai_prices, "calc_price", listed)
    assert _published("gpt-5.4-nano", "openai") is None


def test_a_price_is_looked_up_without_the_network(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a price was fetched")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    price_of.cache_clear()
    assert price_of("o4-mini").output == 4.4


@pytest.mark.parametrize(
    "more", [{"location": "europe-west4"}, {"base_url": "http://x"}, {"request_options": {"service_tier": "flex"}}]
)
def test_a_gemini_model_costs_the_list_price_where_that_holds(more):
    spec = VertexSpec(model="gemini-3.5-flash", project="p")
    assert spec.capabilities.price.input == 1.5
    assert replace(spec, **more).capabilities.price is None
    assert replace(spec, **more, price=Price(1.0)).capabilities.price.input == 1.0


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
