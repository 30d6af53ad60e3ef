"""Flex tiers: half of the price, more patience, and the way in which each provider is told."""

import pytest

from skllm_ray.classification import ZeroShotGPTClassifier, ZeroShotVertexClassifier
from skllm_ray.config import SecretRef, SKLLMConfig
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.api.answers import read
from skllm_ray.llm.model_facts import price_of
from skllm_ray.llm.registry import resolve
from skllm_ray.llm.vertex.answers import in_openai_form
from skllm_ray.llm.vertex.request import VertexDialect
from skllm_ray.llm.vertex.spec import VertexSpec
from skllm_ray.tasks import ChatRequest, Choices
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault

FLEX = {"service_tier": "flex"}
SHARED = {"shared_request_type": "flex"}


def gpt(model="gpt-5.4-mini", options=FLEX):
    return resolve(model, "sk-test-0123456789", None, options, "gpt")


def vertex(**changes):
    return VertexSpec(**{"model": "gemini-3.5-flash", "project": "p", "request_options": SHARED, **changes})


def test_openais_flex_tier_costs_half_where_the_model_has_it():
    whole, half = gpt(options={}).capabilities.price, gpt().capabilities.price
    assert (half.input, half.output) == (whole.input / 2, whole.output / 2)
    assert half.cached_input == whole.cached_input / 2
    assert gpt("gpt-4o-mini").capabilities.price is None  # no flex is known of it
    assert gpt().vendor is None  # so that nothing is taken for half of half


def test_a_price_of_your_own_is_what_it_says():
    SKLLMConfig.set_price("gpt-5.4-mini", input_per_million=1.0)
    assert gpt().capabilities.price.input == 1.0


def test_vertex_takes_half_and_keeps_the_price_of_cached_input():
    whole, half = price_of("gemini-3.5-flash", "google"), vertex().list_price
    assert (half.input, half.output) == (whole.input / 2, whole.output / 2)
    assert half.cached_input == min(whole.cached_input, half.input)
    assert vertex(location="europe-west4").list_price is None


def test_flex_waits_longer_unless_you_say_how_long():
    assert (gpt().patience.timeout_s, gpt().patience.deadline_s) == (1800.0, 7200.0)
    assert gpt(options={}).patience.timeout_s == 120.0
    SKLLMConfig.set_timeouts(request_s=5)
    assert (gpt().patience.timeout_s, gpt().patience.deadline_s) == (5.0, 600.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "europe-west4"}, "'global' alone; google_location is 'europe-west4'"),
        ({"request_options": {"shared_request_type": "spot"}}, "must be 'flex'; got 'spot'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(changes, message):
    pytest.importorskip("google.genai")
    with pytest.raises(ConfigurationError, match=message):
        vertex(**changes).check()


def test_vertex_is_told_by_a_header_and_by_no_field():
    pytest.importorskip("google.genai")
    with ChatServer() as server:
        spec = vertex(base_url=server.root, token_ref=SecretRef("t", ()))
        spec.check()
        backend = spec.open(lambda ref: "a-token")
        (reply,) = backend.complete([ChatRequest(({"role": "user", "content": "good"},), Choices(("bad", "good")))])
        headers = backend._client._api_client._http_options.headers
        backend.close()
    assert reply.text == '{"label": "good"}'
    assert headers["X-Vertex-AI-LLM-Shared-Request-Type"] == "flex"
    assert "shared_request_type" not in str(server.received[0].body)
    assert "shared_request_type" not in VertexDialect(spec)._own


def test_costs_are_those_of_the_tier_and_want_of_room_is_waited_out(local_mode, monkeypatch):
    refused = iter([True, True])

    def answer(body):
        assert body["service_tier"] == "flex"
        if next(refused, False):
            return StatusFault(429, "Resource unavailable", "resource_unavailable", None, (("retry-after-ms", "5"),))
        return '{"label": "good"}'

    with ChatServer(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        SKLLMConfig.set_openai_key("sk-test-0123456789")
        clf = ZeroShotGPTClassifier(model="gpt-5.4-mini", request_options=FLEX).fit(None, ["bad", "good"])
        row = clf.predict_details(["so good"]).iloc[0]
    whole = price_of("gpt-5.4-mini")
    wanted = (row["prompt_tokens"] * whole.input + row["completion_tokens"] * whole.output) / 2e6
    assert (row["prediction"], row["cost_usd"]) == ("good", pytest.approx(wanted))


def test_an_estimator_of_vertex_takes_the_option():
    pytest.importorskip("google.genai")
    SKLLMConfig.set_google_project("p")
    clf = ZeroShotVertexClassifier(model="gemini-3.5-flash", request_options=SHARED).fit(None, ["bad", "good"])
    assert clf._spec().tier == "flex"


def served_as(tier):
    """Answer as a server does that names the tier which served a request."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '{"label": "good"}'}}
    told = {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}
    return lambda body: RawAnswer(told | ({} if tier is None else {"service_tier": tier}))


@pytest.mark.parametrize(
    ("asked", "served", "share"),
    [
        ("flex", "flex", 0.5),
        ("flex", "default", 1.0),
        ("flex", None, 0.5),
        ("auto", "default", 1.0),
        ("auto", "flex", 0.5),
        ("auto", "priority", None),
        ("priority", "default", 1.0),
        ("priority", None, None),
    ],
)
def test_an_answer_costs_what_the_tier_costs_that_served_it(monkeypatch, asked, served, share):
    price = price_of("gpt-5.4-mini")
    with ChatServer(served_as(served)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        backend = gpt(options={"service_tier": asked}).open(lambda ref: "sk-test-0123456789")
        (reply,) = backend.complete([ChatRequest(({"role": "user", "content": "x"},), Choices(("bad", "good")))])
        backend.close()
    whole = (1000 * price.input + 100 * price.output) / 1e6
    assert reply.usage.cost_usd == (None if share is None else pytest.approx(share * whole))


def test_a_price_of_your_own_holds_at_every_tier():
    SKLLMConfig.set_price("gpt-5.4-mini", input_per_million=1.0)
    assert gpt().answer_price("m", "default").input == 1.0
    assert resolve("custom_url::m", "sk-x").answer_price("gpt-4o", "default") is None


def test_azure_is_priced_by_the_model_and_the_tier_that_its_answer_names():
    SKLLMConfig.set_azure_api_base("https://x.openai.azure.com")
    asked = gpt("azure::mine", {})
    assert asked.answer_price("gpt-4o-2024-08-06", "") == asked.answer_price("gpt-4o-2024-08-06", "default")
    assert asked.answer_price("gpt-4o", "default") == price_of("gpt-4o")
    assert asked.answer_price("gpt-4o", "priority") is None


@pytest.mark.parametrize(
    ("told", "share"),
    [
        ("ON_DEMAND", 1.0),
        ("ON_DEMAND_FLEX", 0.5),
        ("TRAFFIC_TYPE_UNSPECIFIED", 0.5),
        (None, 0.5),
        ("PROVISIONED_THROUGHPUT", None),
    ],
)
def test_vertex_names_the_tier_that_served_an_answer(told, share):
    usage = {} if told is None else {"usageMetadata": {"trafficType": told}}
    served = read_tier({"candidates": [{"content": {"parts": [{"text": "x"}]}}], **usage})
    price, whole = vertex().answer_price(served), price_of("gemini-3.5-flash", "google")
    assert (price and price.input) == (None if share is None else whole.input * share)


def read_tier(answer):
    return read(in_openai_form(answer), ChatRequest(()), {}).tier
