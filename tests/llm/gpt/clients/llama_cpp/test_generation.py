"""Free text against llama-cpp-python's own sequential generation, token by token."""

from __future__ import annotations

import json

import llama_cpp
import numpy as np
import pytest

from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.generation import Generated, Generator
from skllm_ray.llm.gpt.clients.llama_cpp.scoring import ContextOverflowError
from skllm_ray.tasks import ChatRequest, ZeroShotTask

TEXTS = [
    "I love it.",
    "Broke after two days.",
    "It arrived on a Tuesday.",
    "👩‍👩‍👧 ça va?",
    'a "quote" \\ {x}',
    "hm " * 60,
]
EXPLAINED = {
    "type": "object",
    "properties": {"explanation": {"type": "string", "maxLength": 40}, "label": {"enum": ["good", "schlecht ü"]}},
    "required": ["explanation", "label"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def backend():
    opened = GGUFBackend(DEMO_FILE, "gguf::demo", 0, 1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sequential():
    peer = llama_cpp.Llama(str(DEMO_FILE), n_ctx=1024, n_threads=1, verbose=False)
    yield peer
    peer.close()


def ask(text, **options):
    return ChatRequest(({"role": "user", "content": text},), **options)


def test_text_is_what_one_sequence_at_a_time_gives(backend, sequential):
    # Prompts of the library's own kind: the model is sure of its answers, so that near ties do not decide.
    requests = [
        ChatRequest(r.messages, max_output_tokens=12)
        for r in ZeroShotTask(("positive", "negative", "neutral")).render(
            [f"{text} {i}" for i in range(9) for text in TEXTS]
        )
    ]
    replies = backend.complete(requests)
    same = 0
    for request, reply in zip(requests, replies, strict=True):
        answer = sequential.create_chat_completion(list(request.messages), temperature=0.0, max_tokens=12)
        same += answer["choices"][0]["message"]["content"] == reply.text
        assert reply.error is None and reply.usage.completion_tokens <= 12
    assert same >= len(requests) - 1


def test_an_answer_stops_at_the_end_token_and_at_its_length(backend):
    (request,) = ZeroShotTask(("positive", "negative")).render(["I love it."])
    ended, cut = backend.complete([ask(request.messages[-1]["content"]), ask("hm", max_output_tokens=1)])
    assert ended.usage.completion_tokens < 100
    assert cut.usage.completion_tokens == 1


def test_every_answer_follows_its_own_schema(backend):
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3}
    schemas = [EXPLAINED, numbers, None] * 20
    requests = [
        ask(f"{TEXTS[i % 6]} {i}", json_schema=schema, max_output_tokens=300) for i, schema in enumerate(schemas)
    ]
    for schema, reply in zip(schemas, backend.complete(requests), strict=True):
        if schema is EXPLAINED:
            answer = json.loads(reply.text)
            assert list(answer) == ["explanation", "label"] and answer["label"] in {"good", "schlecht ü"}
        elif schema is numbers:
            assert len(json.loads(reply.text)) == 3


def test_a_schema_that_makes_no_grammar_is_named(backend):
    with pytest.raises(ConfigurationError, match="JSON schema"):
        backend.complete([ask("x", json_schema={"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}})])


def test_long_answers_that_do_not_fit_together_wait_for_each_other():
    engine = Engine(EngineOptions(str(DEMO_FILE), n_ctx=256, n_threads=1))
    generator = Generator(engine)
    schema = {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 30, "maxItems": 30}
    prompts = [engine.tokenize(f"number {i} please") for i in range(24)]
    try:
        together = generator.generate(prompts, [schema] * 24, [None] * 24)
        assert all(len(json.loads(found.text)) == 30 for found in together)
        assert sum(found.n_prompt + found.n_written for found in together) > 4 * engine.n_ctx
        overlong, fits = generator.generate([[7] * 256, [7] * 250], [None, None], [None, 50])
        assert isinstance(overlong, ContextOverflowError)
        assert fits.n_written <= 6
        assert generator.generate([], [], []) == []
    finally:
        generator.close()
        engine.close()


def test_fewer_decodes_than_tokens(backend):
    requests = [ask(f"tell {i}", json_schema=EXPLAINED, max_output_tokens=60) for i in range(64)]
    before = backend._generator.n_decodes
    written = sum(reply.usage.completion_tokens for reply in backend.complete(requests))
    assert (backend._generator.n_decodes - before) * 8 < written


def test_compat_writes_what_scikit_llm_would(sequential):
    from skllm_ray.classification import ZeroShotGPTClassifier

    texts = ["I love it, great value!", "Broke after two days, awful.", "It arrived on a Tuesday."]
    options = {"decoding": "compat"}
    free = ZeroShotGPTClassifier(model="gguf::demo", request_options=options).fit(
        None, ["positive", "negative", "neutral"]
    )
    import skllm_ray

    skllm_ray.init(local_mode=True)
    found = free.predict_details(texts, include_io=True)
    for prompt, raw in zip(free._task().render(texts), found["raw_reply"], strict=True):
        answer = sequential.create_chat_completion(list(prompt.messages), temperature=0.0)
        assert raw == answer["choices"][0]["message"]["content"]
    assert (found["completion_tokens"] > 0).all() and found["probability"].isna().all()
    scored = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative", "neutral"])
    assert list(scored.predict(texts)) == list(found["prediction"])


@pytest.mark.parametrize("options", [{"temperature": 1}, {"decoding": "greedy"}, {"truncate": 1}, {"truncate": "yes"}])
def test_unknown_options_are_told_what_is_known(options):
    from skllm_ray.classification import ZeroShotGPTClassifier

    with pytest.raises(ConfigurationError, match="'decoding': 'score' or 'compat'"):
        ZeroShotGPTClassifier(model="gguf::demo", request_options=options).fit(None, ["a", "b"])


def test_a_long_text_is_cut_in_its_middle_when_asked_for(backend):
    text = "Great! " + "The box was blue. " * 900 + "I love it, best purchase ever!"
    (request,) = ZeroShotTask(("positive", "negative")).render([text])
    whole, cut = backend.complete([request, ChatRequest(request.messages, request.choices, cut_text=text)])
    assert whole.error.kind == "context_length"
    assert cut.error is None and 700 < cut.usage.prompt_tokens <= backend.n_ctx
    (free,) = backend.complete([ChatRequest(request.messages, max_output_tokens=20, cut_text=text)])
    assert free.error is None


def test_a_free_text_that_fills_the_context_is_an_error(backend, monkeypatch):
    written = Generated("half of a te", 10, 1014, "length")
    monkeypatch.setattr(Generator, "generate", lambda *args: [written] * len(args[1]))
    free, asked_for, schema = backend.complete(
        [ask("x"), ask("x", max_output_tokens=1014), ask("x", json_schema=EXPLAINED)]
    )
    assert (free.error.kind, free.usage.completion_tokens) == ("truncated", 1014)
    assert asked_for.text == schema.text == "half of a te"


def test_embeddings_are_those_of_llama_cpp(backend):
    mean = llama_cpp.LLAMA_POOLING_TYPE_MEAN
    peer = llama_cpp.Llama(str(DEMO_FILE), n_ctx=1024, embedding=True, pooling_type=mean, n_threads=1, verbose=False)
    found = backend.embed([*TEXTS * 20, "x " * 3000, ""])
    *vectors, overlong, empty = found
    assert (overlong.error.kind, empty.error.kind) == ("context_length", "bad_request")
    for text, embedding in zip(TEXTS * 20, vectors, strict=True):
        expected = np.asarray(peer.embed(text, normalize=True))
        assert embedding.vector.dtype == np.float32 and embedding.usage.prompt_tokens > 0
        assert float(embedding.vector @ expected) > 0.9999
    peer.close()
