"""What a request carries besides the question: keys, addresses, headers and limits, each checked before it is sent."""

import inspect
import pickle

import pytest

from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import Price, SKLLMConfig, resolve_secret
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.credentials import secrets_of
from skllm_ray.llm.registry import resolve
from skllm_ray.testing import ChatServer
from tests.llm.gpt.clients.openai.test_chat import KEY, ask, complete, spec_for

SECRET = "pk-planted-header-0123456789"


@pytest.fixture(autouse=True)
def _reset():
    yield
    SKLLMConfig.reset()


BAD = {
    "a line break": "sk-one\nsk-two",
    "'…'": "sk-abc…xyz",
    "white space": "sk-abc xyz",
    "not ASCII": "sk-ключ",
    "a control character": "sk-abc\x1b[0m",
}


@pytest.mark.parametrize(("what", "key"), BAD.items())
def test_a_key_that_can_be_none_is_refused_before_any_request(what, key, monkeypatch):
    with pytest.raises(ConfigurationError, match=what) as caught:
        SKLLMConfig.set_openai_key(key)
    assert "sk-" not in str(caught.value)
    frames = [frame.frame for frame in inspect.getinnerframes(caught.tb) if "/skllm_ray/" in frame.filename]
    assert frames
    assert not [frame for frame in frames if "sk-" in repr(frame.f_locals)]
    with ChatServer() as server:
        SKLLMConfig.set_gpt_url(server.url)
        with pytest.raises(ConfigurationError, match=what):
            ZeroShotGPTClassifier(model="custom_url::m", key=key).fit(None, ["a", "b"]).predict(["x"])
        monkeypatch.setenv("SKLLM_CONFIG_OPENAI_KEY", key)
        with pytest.raises(ConfigurationError, match=what):
            ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["a", "b"]).predict(["x"])
        with pytest.raises(ConfigurationError, match=what):
            spec_for(server).open(lambda ref: key)
        assert server.n_requests == 0


@pytest.mark.parametrize("url", ["http://host/v1\nx", "http://host…/v1", "http://hoſt/v1", "http://ho st/v1"])
def test_an_address_that_can_be_none_is_refused(url):
    for setter in (SKLLMConfig.set_gpt_url, SKLLMConfig.set_azure_api_base):
        with pytest.raises(ConfigurationError, match=r"gpt_url|azure_api_base"):
            setter(url)


def test_the_address_that_openais_sdk_heeds_is_heeded(monkeypatch):
    with ChatServer(key=KEY) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        clf = ZeroShotGPTClassifier(model="gpt-4o").fit(None, ["good", "bad"])
        assert clf.predict(["so bad"]).tolist() == ["bad"]
        assert server.n_requests == 1
        monkeypatch.setenv("OPENAI_BASE_URL", "no address")
        with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
            clf.predict(["so good"])


def headers_of(server, record):
    """Note the headers of every request that `server` gets."""
    handler = server._http.RequestHandlerClass

    class Noting(handler):
        def do_POST(self):  # noqa: N802  the base class calls it so
            record.append(dict(self.headers.items()))
            super().do_POST()

    server._http.RequestHandlerClass = Noting


def test_extra_headers_are_sent_and_shown_nowhere(tmp_path):
    seen = []
    with ChatServer() as server:
        headers_of(server, seen)
        SKLLMConfig.set_gpt_url(server.url)
        SKLLMConfig.set_extra_headers({"x-portkey-api-key": SECRET, "cf-access-note": "two words"})
        clf = ZeroShotGPTClassifier(model="custom_url::m").fit(None, ["good", "bad"])
        clf.predict(["so bad"])
        spec = clf._spec() if hasattr(clf, "_spec") else resolve("custom_url::m")
    assert seen[0]["x-portkey-api-key"] == SECRET
    assert seen[0]["cf-access-note"] == "two words"
    shown = [repr(SKLLMConfig), repr(clf), repr(spec), str(pickle.dumps(clf)), str(pickle.dumps(spec)), spec.key]
    shown += [str(spec.identity), str(pickle.dumps(SKLLMConfig._settings)), repr(secrets_of(None))]
    assert not [text for text in shown if SECRET in text]


def test_extra_headers_reach_a_worker_by_their_fingerprints():
    SKLLMConfig.set_extra_headers({"x-key": SECRET})
    spec, held, seen = resolve("gpt-4o", key=KEY), secrets_of(KEY), []
    SKLLMConfig.reset()
    with ChatServer() as server:
        headers_of(server, seen)
        object.__setattr__(spec, "base_url", server.url)
        backend = pickle.loads(pickle.dumps(spec)).open(lambda ref: resolve_secret(ref, held))
        backend.complete([ask("x")])
        backend.close()
    assert seen[0]["x-key"] == SECRET


ROUTES = [
    {"fallbacks": ["gpt-4o", {"model": "claude", "api_key": None}], "num_retries": 0},  # LiteLLM's
    {"extra_body": {"models": ["a/x", "b/y"], "provider": {"order": ["a"], "allow_fallbacks": False}}},  # OpenRouter's
    {"extra_body": {"metadata": {"tags": ["nightly"]}, "cache": {"no-cache": True}}},
]


@pytest.mark.parametrize("options", ROUTES, ids=str)
def test_what_a_gateway_routes_by_is_passed_on_as_it_is(options):
    names = {"helicone-fallbacks": '[{"target-url": "https://x"}]', "x-portkey-config": '{"strategy": {"mode": "x"}}'}
    seen = []
    with ChatServer() as server:
        headers_of(server, seen)
        SKLLMConfig.set_gpt_url(server.url)
        SKLLMConfig.set_extra_headers(names)
        clf = ZeroShotGPTClassifier(model="custom_url::m", request_options=options).fit(None, ["good", "bad"])
        assert clf.predict(["so bad", "so good"]).tolist() == ["bad", "good"]
        bodies = [received.body for received in server.received]
    wanted = options.get("extra_body", options)
    assert [{name: body[name] for name in wanted} for body in bodies] == [wanted] * 2
    assert all("extra_body" not in body for body in bodies)
    assert [{name: one[name] for name in names} for one in seen] == [names] * 2


@pytest.mark.parametrize(
    "headers",
    [{"x key": "a"}, {"x": "a\nb"}, {"x": "…"}, {"Content-Type": "a"}, {"x": ""}, {1: "a"}, {"x": 1}],
    ids=str,
)
def test_headers_that_are_none_are_refused(headers):
    with pytest.raises(ConfigurationError, match="extra_headers"):
        SKLLMConfig.set_extra_headers(headers)


def test_extra_headers_among_the_options_are_refused_with_the_way_out():
    with ChatServer() as server:
        spec = spec_for(server, request_options={"extra_headers": {"x": "y"}})
    with pytest.raises(ConfigurationError, match="set_extra_headers"):
        spec.check()


def test_extra_fields_of_the_body_are_sent_and_checked():
    with ChatServer() as server:
        spec = spec_for(server, request_options={"extra_body": {"top_k": 3, "cache": {"ttl": 1}}})
        spec.check()
        complete(spec, [ask("x")])
        body = server.received[0].body
        assert (body["top_k"], body["cache"]) == (3, {"ttl": 1})
        assert "extra_body" not in body
        for options in ({"extra_body": {"stream": True}}, {"extra_body": 3}):
            with pytest.raises(ConfigurationError, match=r"stream|extra_body"):
                spec_for(server, request_options=options).check()


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 1024),
        ({"top_p": 1}, 1024),
        ({"max_completion_tokens": 5000}, 5000),
        ({"max_tokens": 10}, 10),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 20),
        ({"extra_body": {"max_tokens": 7}}, 7),
        ({"max_tokens": None}, None),
        ({"max_tokens": "many"}, None),
        ({"max_tokens": -1}, None),
    ],
    ids=str,
)
def test_the_most_tokens_that_may_be_billed(options, most):
    assert resolve("gpt-4o", key=KEY, request_options=options).most_output_tokens(1024) == most


@pytest.mark.parametrize("options", [{"max_output_tokens": 9}, {"maxOutputTokens": 9}])
def test_likewise_of_gemini(options):
    SKLLMConfig.set_google_project("P")
    spec = resolve("gemini-3.5-flash", request_options=options, family="vertex")
    assert spec.most_output_tokens(1024) == 9


def test_a_job_reserves_what_the_options_allow():
    from skllm_ray.batch.job.terms import Terms

    price = Price(0.0, 1e6)
    spec = resolve("gpt-4o", key=KEY, request_options={"max_completion_tokens": 5000})
    terms = Terms(price, max_output_tokens=1024, spec=spec, capped=True, streams=True)
    assert terms.most_usd(terms.bounded(ask("x"))) == 5000
    assert terms.bounded(ask("x")).limit_is_hard
    endless = Terms(
        price,
        max_output_tokens=1024,
        spec=resolve("gpt-4o", key=KEY, request_options={"max_tokens": None}),
        capped=True,
        streams=True,
    )
    with pytest.raises(ConfigurationError, match="any length"):
        endless.most_usd(ask("x"))
