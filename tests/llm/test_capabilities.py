"""What a backend can do is declared; what is not declared is an error, and no protection is switched off by it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest

from skllm_ray.config import SKLLMConfig
from skllm_ray.llm.base import Backend, BackendSpec, Capabilities, StatefulSpec
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.registry import resolve
from skllm_ray.llm.spec import ApiSpec
from skllm_ray.models._base.transformer_backend import TransformerSpec
from skllm_ray.tasks.base import ChatRequest, Reply
from skllm_ray.testing import FakeBackend, FakeSpec

DECLARED = {one.name: getattr(FakeSpec(str).capabilities, one.name) for one in fields(Capabilities)}


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_no_capability_has_a_default(name):
    with pytest.raises(TypeError, match=name):
        Capabilities(**{known: value for known, value in DECLARED.items() if known != name})


@pytest.mark.parametrize("lacks", ["capabilities", "identity", "check", "open"])
def test_a_spec_that_declares_nothing_is_not_made(lacks):
    whole = {"capabilities": None, "identity": "", "check": None, "open": None}
    assert type("Whole", (BackendSpec,), whole)()
    with pytest.raises(TypeError, match=lacks):
        type("Lacking", (BackendSpec,), {name: value for name, value in whole.items() if name != lacks})()


@pytest.mark.parametrize("lacks", ["place", "endpoint", "facts", "has_vectors", "list_price", "credential"])
def test_a_vendor_says_what_the_others_say(lacks):
    whole = {name: getattr(OpenAISpec, name) for name in ApiSpec.__abstractmethods__}
    with pytest.raises(TypeError, match=lacks):
        type("Lacking", (ApiSpec,), {name: value for name, value in whole.items() if name != lacks})(model="m")


def test_retries_that_cannot_be_changed_are_no_silent_matter():
    @dataclass(frozen=True)
    class Forgetful(FakeSpec):
        @property
        def capabilities(self):
            return replace(FakeSpec.capabilities.fget(self), retry=resolve("m", "sk-x").patience)

    with pytest.raises(TypeError, match="with_retry"):
        Forgetful(str).with_retry(resolve("m", "sk-x").patience)


def test_each_backend_says_what_it_can_do(tmp_path):
    SKLLMConfig.set_google_project("P")
    SKLLMConfig.set_reply_cache(tmp_path / "replies")
    specs = {
        "openai": resolve("gpt-4o", "sk-x"),
        "vertex": resolve("gemini-3.5-flash", family="vertex"),
        "gguf": resolve("gguf::demo"),
        "fake": FakeSpec(str),
        "transformer": TransformerSpec(object()),
    }
    can = {name: spec.capabilities for name, spec in specs.items()}

    def those(choose):
        return {name for name, one in can.items() if choose(one)}

    assert those(lambda one: one.stateful) == {"gguf"}
    assert {name for name, spec in specs.items() if isinstance(spec, StatefulSpec)} == {"gguf"}
    assert those(lambda one: one.calls_at_once is None) == {"gguf"}
    assert those(lambda one: one.streams) == those(lambda one: one.retry) == those(lambda one: one.cache)
    assert those(lambda one: one.streams) == {"openai", "vertex"}
    assert those(lambda one: not one.stays_open) == {"transformer"}
    assert those(lambda one: one.price is None) == {"fake"}
    assert those(lambda one: one.gives_log_probs) == {"openai", "vertex", "gguf"}
    assert those(lambda one: one.embeds) == set(can)


def test_a_local_model_that_answers_in_free_text_gives_no_probabilities():
    can = resolve("gguf::demo", request_options={"decoding": "compat"}).capabilities
    assert (can.gives_log_probs, can.takes_json_schemas) == (False, False)


def test_what_a_call_wants_changes_the_spec_where_it_can():
    SKLLMConfig.set_google_project("P")
    chat, gemini, local = resolve("m", "sk-x"), resolve("m", family="vertex"), resolve("gguf::demo")
    assert chat.asked_for("log_probs").log_probs
    assert gemini.asked_for("log_probs").log_probs
    assert gemini.asked_for("vectors").embeds
    assert local.asked_for("label").best_only
    assert not local.asked_for("confidence").best_only
    SKLLMConfig.set_confidence("off")
    quick = resolve("gguf::demo").asked_for("confidence")
    assert (quick.best_only, quick.tells_tokens) == (True, False)
    assert (chat.asked_for("vectors"), gemini.asked_for("label"), local.asked_for("log_probs")) == (chat, gemini, local)


def test_a_backend_that_does_not_stream_tells_all_at_the_end():
    backend: Backend = FakeBackend(lambda request: request.messages[-1]["content"])
    told: dict[int, Reply] = {}
    requests = [ChatRequest(({"role": "user", "content": text},)) for text in "ab"]
    assert [reply.text for reply in backend.complete_each(requests, told.__setitem__)] == ["a", "b"]
    assert {at: reply.text for at, reply in told.items()} == {0: "a", 1: "b"}
    assert backend.complete_each(requests, None) == list(told.values())
