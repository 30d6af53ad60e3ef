"""Free text against llama-cpp-python's own sequential generation, token by token."""

from __future__ import annotations

import json
from dataclasses import replace

import llama_cpp
import numpy as np
import pytest

from skllm_ray.errors import ConfigurationError, PartialResultError
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.chat import Prompts
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.generation import Generated, Generator
from skllm_ray.llm.gpt.clients.llama_cpp.options import GGUFOptions
from skllm_ray.llm.gpt.clients.llama_cpp.spec import GGUFSpec
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError
from skllm_ray.llm.gpt.clients.llama_cpp.truncation import shortened
from skllm_ray.tasks import ChatRequest, Choices, MultiLabelZeroShotTask, PromptStyle, ZeroShotTask

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
            [f"{text} {i}" for i in range(4) for text in TEXTS]
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
    schemas = [EXPLAINED, numbers, None] * 8
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


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1},
        {"decoding": "greedy"},
        {"truncate": 1},
        {"truncate": "yes"},
        {"exact": 1},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"stop": ""},
        {"stop": ["a", 1]},
        {"stop": list("abcde")},
    ],
)
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


@pytest.mark.parametrize("n_pads", [1, 40, 90, 94, 98, 102, 106, 110, 130, 180, 400])
def test_cutting_ends_however_long_the_instructions_are(backend, n_pads):
    text = "Great, I love it! " * 200
    (request,) = ZeroShotTask(
        ("positive", "negative"), "Judge by what the writer felt. " * n_pads + "\nLabels: {labels}\nText: {x}"
    ).render([text])
    (reply,) = backend.complete([replace(request, cut_text=text)])
    bare = backend._needed(replace(request, messages=_without(request, text)), Prompts(backend._chat(PromptStyle())))
    assert (reply.error is None) == (bare <= backend.n_ctx)
    if reply.error is None:
        assert reply.usage.prompt_tokens > 0.9 * (backend.n_ctx - 10)  # as much of the text as there is room for


def _without(request, text):
    *others, last = request.messages
    return (*others, {**last, "content": last["content"].replace(text, "")})


def test_many_labels_leave_room_for_the_text_they_need(backend):
    labels = tuple(f"topic number {i}" for i in range(60))
    text = "The box was blue. " * 25
    (request,) = ZeroShotTask(labels).render([text])
    whole, cut = backend.complete([request, replace(request, cut_text=text)])
    assert whole.error is None and cut.log_probs == pytest.approx(whole.log_probs, abs=0.05)
    several = MultiLabelZeroShotTask(labels, 5).render([text * 20])[0]
    (reply,) = backend.complete([replace(several, cut_text=text * 20)])
    assert reply.error is None


def test_cutting_keeps_beginning_and_end():
    count = lambda request: len(request.messages[-1]["content"])  # noqa: E731
    request = ChatRequest(({"role": "user", "content": "Do this: abcdefghij ok"},), cut_text="abcdefghij")
    assert shortened(request, 22, count) is request
    cut = shortened(request, 20, count).messages[-1]["content"]
    assert cut.startswith("Do this: a") and cut.endswith("j ok") and len(cut) <= 20
    assert shortened(request, 12, count).messages[-1]["content"] == "Do this:  ok"
    assert shortened(request, 11, count) is request  # nothing of the text would help


def test_free_text_ends_where_it_is_asked_to(backend):
    text = "tell me something"
    (whole,) = backend.complete([ask(text, max_output_tokens=40)])
    stop = whole.text[5:8]
    (stopped, few, other) = backend.complete(
        [
            ask(text, max_output_tokens=40, stop=("no such thing", stop)),
            ask(text, max_output_tokens=3),
            ask(text, max_output_tokens=40, stop=("no such thing",)),
        ]
    )
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert few.usage.completion_tokens == 3 and whole.text.startswith(few.text)
    assert other.text == whole.text


def test_options_bound_free_text_alone():
    spec = GGUFSpec("demo", options=GGUFOptions.parse({"max_tokens": 7, "stop": "\n"}))
    scored, free = spec.adapt([ask("x", choices=Choices(("a", "b"))), ask("y", max_output_tokens=20)], ["x", "y"])
    assert (scored.max_output_tokens, scored.stop) == (None, ())
    assert (free.max_output_tokens, free.stop) == (7, ("\n",))


@pytest.mark.parametrize(
    ("options", "settings", "exact", "best_only"),
    [
        ({}, {}, True, False),
        ({}, {"best_only": True}, True, True),
        ({}, {"best_only": True, "log_probs": True}, True, False),
        ({}, {"n_gpu_layers": -1}, False, False),
        ({"exact": True}, {"best_only": True}, True, False),
        ({"exact": False}, {}, False, False),
    ],
)
def test_rows_are_exact_on_a_cpu(options, settings, exact, best_only):
    spec = GGUFSpec("demo", options=GGUFOptions.parse(options), **settings)
    (one,) = spec.adapt([ask("x", choices=Choices(("a", "b")))], ["x"])
    assert (one.choices.exact, one.choices.best_only) == (exact, best_only)


def test_a_long_text_is_cut_for_its_embedding_when_asked_for():
    import skllm_ray
    from skllm_ray.vectorization import GPTVectorizer

    skllm_ray.init(local_mode=True)
    texts = ["short", "x " * 3000]
    found = GPTVectorizer(model="gguf::demo", request_options={"truncate": True}).fit_transform(texts)
    assert found.shape[0] == 2 and np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    with pytest.raises(PartialResultError):
        GPTVectorizer(model="gguf::demo").fit_transform(texts)


def test_a_free_text_that_fills_the_context_is_an_error(backend, monkeypatch):
    written = Generated("half of a te", 10, 1014, "length")
    monkeypatch.setattr(Generator, "generate", lambda *args, **kw: [written] * len(args[1]))
    free, asked_for, schema = backend.complete(
        [ask("x"), ask("x", max_output_tokens=1014), ask("x", json_schema=EXPLAINED)]
    )
    assert (free.error.kind, free.usage.completion_tokens) == ("truncated", 1014)
    assert asked_for.text == schema.text == "half of a te"


def test_embeddings_are_those_of_llama_cpp(backend):
    mean = llama_cpp.LLAMA_POOLING_TYPE_MEAN
    peer = llama_cpp.Llama(str(DEMO_FILE), n_ctx=1024, embedding=True, pooling_type=mean, n_threads=1, verbose=False)
    found = backend.embed([*TEXTS * 5, "x " * 3000, ""])
    *vectors, overlong, empty = found
    assert (overlong.error.kind, empty.error.kind) == ("context_length", "bad_request")
    for text, embedding in zip(TEXTS * 5, vectors, strict=True):
        expected = np.asarray(peer.embed(text, normalize=True))
        assert embedding.vector.dtype == np.float32 and embedding.usage.prompt_tokens > 0
        assert float(embedding.vector @ expected) > 0.9999
    peer.close()
