"""Models with recurrent layers, of random 32-bit weights, against one full pass per label in a fresh context."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.architecture_table import RECURRENT
from benchmarks.brute_force import BruteForce
from benchmarks.random_weights import write_model
from skllm_ray.llm.gpt.clients.llama_cpp import memory_estimate
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.branching import BranchScorer, best, score
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.memory_estimate import memory_needed
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError, Trie
from skllm_ray.tasks import ChatRequest, Choices, MultiLabelZeroShotTask, PromptStyle, ZeroShotTask
from tests.llm.gpt.clients.llama_cpp.test_thinking import NAMED

TOLERANCE = 1e-4  # of a log-probability
TEXTS = ["I love it.", "Broke after two days.", "It arrived on a Tuesday.", "👩‍👩‍👧 ça va?", 'a "quote" \\ {x}', ""]
LABELS = {
    "three": ("positive", "negative", "neutral"),
    "prefixes": ("a", "ab", "abc d", "abc", "abc d e"),
    "one": ("only",),
    "many": tuple(f"{kind} of {thing}" for kind in ("loss", "arrival", "price") for thing in ("card", "cash", "car")),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recurrent")
    made = {}

    def file(name):
        if name not in made:
            given = RECURRENT[name]
            made[name] = write_model(folder / f"{name}.gguf", name, given.metadata, without=given.without)
        return made[name]

    return file


@pytest.fixture
def opened(files):
    backends = []

    def backend(name):
        backends.append(GGUFBackend(files(name), f"gguf::{name}", 0, 1))
        return backends[-1]

    yield backend
    for one in backends:
        one.close()


@pytest.fixture
def few_sequences(monkeypatch):
    """Leave memory for the fewest sequences: the shared beginning and three more."""
    monkeypatch.setattr(memory_estimate, "_STATES_MB", 0)
    monkeypatch.setattr(memory_estimate, "_STATES_SHARE", 0)


def question(text, labels):
    return ChatRequest(({"role": "user", "content": text},), Choices(tuple(labels)))


def best_only(requests):
    return [replace(request, choices=replace(request.choices, best_only=True)) for request in requests]


def scores(backend, requests):
    replies = backend.complete(requests)
    assert [reply.error for reply in replies] == [None] * len(requests)
    return [np.asarray(reply.log_probs) for reply in replies]


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("name", ["mamba", "falcon-h1", "lfm2", "nemotron_h", "qwen35", "plamo2"])
def test_scores_and_the_best_label_are_brute_force_s(name, files, opened):
    backend = opened(name)
    requests = [question(text, labels) for labels in LABELS.values() for text in TEXTS[:2]]
    requests += ZeroShotTask(LABELS["three"]).render([*TEXTS[3:], "word " * 120])
    with BruteForce(files(name)) as brute:
        expected = [brute.log_probs(request) for request in requests]
    spread = np.std([one for one in expected if len(one) == 3], axis=0).max()
    assert spread > 0.1  # else the text does not matter, and a wrong state would go unnoticed
    assert_close(scores(backend, requests), expected)
    for request, one in list(zip(requests, expected, strict=True))[::5]:
        assert_close(scores(backend, [request]), [one])
    found = [json.loads(reply.text)["label"] for reply in backend.complete(best_only(requests))]
    labels = [request.choices.labels[int(one.argmax())] for request, one in zip(requests, expected, strict=True)]
    assert found == labels


@pytest.mark.parametrize("name", ["mamba", "falcon-h1"])
def test_with_the_fewest_sequences(name, files, opened, few_sequences):
    backend = opened(name)
    assert backend._engine.n_sequences == 4
    requests = [question(text, labels) for text in TEXTS[:4] for labels in LABELS.values()]
    with BruteForce(files(name)) as brute:
        expected = [brute.log_probs(request) for request in requests]
    assert_close(scores(backend, requests), expected)
    found = backend.complete(best_only(requests))
    assert [reply.text for reply in found] == [reply.text for reply in backend.complete(requests)]


@pytest.mark.parametrize("name", ["mamba2", "qwen35"])
def test_prompts_that_share_much_and_prompts_that_share_little_take_turns(name, files, opened):
    backend = opened(name)
    engine = backend._engine
    groups = [f"{group} example. " * 30 for group in ("one", "two", "three")]
    mixed = [question(f"{group} Text {i}", LABELS["three"]) for i in range(3) for group in groups]
    calls = [mixed, [question("x", LABELS["three"])], mixed[:1], mixed[1:2], mixed[1:3], mixed]
    with BruteForce(files(name)) as brute:
        expected = {id(request): brute.log_probs(request) for request in [*mixed, *calls[1]]}
    for call in calls:
        assert_close(scores(backend, call), [expected[id(request)] for request in call])
    before = engine.n_decoded
    n_prompt = sum(reply.usage.prompt_tokens for call in calls for reply in backend.complete(call))
    assert engine.n_decoded - before < 0.6 * n_prompt


def test_a_beginning_is_decoded_once_for_calls_of_one_row(opened):
    backend = opened("falcon-h1")
    engine = backend._engine
    requests = ZeroShotTask(LABELS["three"]).render(
        [f"{word} and so on" for word in ("I", "Is", "It", "If", "In", "I am")]
    )
    lengths = [backend.complete([request])[0].usage.prompt_tokens for request in requests]
    before = engine.n_decoded
    for request in requests * 2:
        backend.complete([request])
    assert (engine.n_decoded - before) / 2 < sum(lengths) / 3


def test_a_text_that_is_too_long_fails_alone_and_a_failed_decode_leaves_nothing_behind(opened, monkeypatch):
    backend = opened("jamba")
    engine = backend._engine
    requests = [question(text, LABELS["three"]) for text in ("before", "x " * 5000, "after")]
    before, overlong, after = backend.complete(requests)
    assert (overlong.text, overlong.error.kind) == (None, "context_length")
    assert before.error is None is after.error
    others = [question(f"{i} " * 9, LABELS["many"]) for i in range(9)]
    expected = scores(backend, others)
    decode, calls = engine.decode, []
    monkeypatch.setattr(engine, "decode", lambda batch: calls.append(1) or (decode(batch) if len(calls) < 2 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        backend.complete(others)
    monkeypatch.undo()
    assert_close(scores(backend, others), expected)
    assert_close(scores(backend, [requests[0], requests[2]]), [before.log_probs, after.log_probs])


@pytest.mark.parametrize("change", [-1, 0, 1])
def test_the_context_may_be_filled_to_the_last_token(change, files):
    engine = Engine(EngineOptions(str(files("lfm2")), n_ctx=256))
    try:
        common, tails = [5] * (engine.n_ctx + change - 2), [[6, 7, 8], [9, 7]]
        trie = Trie(tails, engine.n_outputs, engine.n_sequences - 1)
        for _ in range(2):
            (found,) = score(engine, [common], [trie])  # the tails' last tokens need no room
            assert isinstance(found, ContextOverflowError) == (len(common) + 3 > engine.n_ctx)
            (chosen,) = best(engine, [common], [trie])
            assert isinstance(chosen, ContextOverflowError) or chosen == found.argmax()
    finally:
        engine.close()


def test_two_threads_get_what_they_asked(opened):
    backend = opened("nemotron_h")
    calls = [[question(f"{text} {i}", LABELS[kind]) for text in TEXTS] for i in range(4) for kind in ("three", "many")]
    expected = [scores(backend, call) for call in calls]
    with ThreadPoolExecutor(2) as pool:
        for found, other in zip(pool.map(lambda call: scores(backend, call), calls), expected, strict=True):
            assert_close(found, other)


def test_a_closed_model_opens_again(files, opened):
    first = opened("granitehybrid")
    requests = [question(text, LABELS["many"]) for text in TEXTS]
    expected = scores(first, requests)
    first.close()
    assert_close(scores(opened("granitehybrid"), requests), expected)


@pytest.mark.parametrize("name", ["mamba", "lfm2", "plamo2"])
def test_free_texts_are_written_as_one_by_one(name, files, opened, few_sequences):
    backend = opened(name)
    requests = [ChatRequest(({"role": "user", "content": text},), max_output_tokens=6) for text in TEXTS]
    with BruteForce(files(name)) as brute:
        prompts = [brute.chat.tokens(brute.chat.render(request.messages)) for request in requests]
        expected = [brute.written(prompt, 6) for prompt in prompts]
        texts = [b"".join(backend._engine.piece(token) for token in one).decode("utf-8", "replace") for one in expected]
    assert [reply.text for reply in backend.complete(requests)] == texts
    assert [reply.text for reply in backend.complete(requests)] == texts


def test_a_grammar_is_kept(opened):
    backend = opened("qwen35")
    schema = {"type": "object", "properties": {"label": {"enum": ["up", "down"]}}, "required": ["label"]}
    requests = [
        ChatRequest(({"role": "user", "content": text},), json_schema=schema, max_output_tokens=60) for text in TEXTS
    ]
    for reply in backend.complete(requests):
        assert json.loads(reply.text)["label"] in ("up", "down")


def test_labels_are_scored_after_each_row_s_own_thought(files, opened, monkeypatch):
    backend = opened("qwen35")
    scored = []
    add = BranchScorer.add

    def recorded(self, prompts, tries):
        scored.append((prompts, tries, add(self, prompts, tries)))
        return scored[-1][-1]

    monkeypatch.setattr(BranchScorer, "add", recorded)
    style = PromptStyle(template=NAMED, think=7)
    replies = backend.complete([replace(question(text, LABELS["three"]), style=style) for text in TEXTS])
    assert all(reply.usage.completion_tokens > 0 for reply in replies)
    ((prompts, tries, found),) = scored
    assert len({tuple(prompt[-20:]) for prompt in prompts}) > 1  # the thoughts differ
    with BruteForce(files("qwen35")) as brute:
        for prompt, trie, one in zip(prompts, tries, found, strict=True):
            expected = [brute.score([*prompt, *trie.shared], tail) for tail in trie.tails]
            np.testing.assert_allclose(one, expected, atol=1e-3)


def test_several_labels(opened):
    backend = opened("granitehybrid")
    labels = ("delivery", "price", "quality", "delivery time")
    task = MultiLabelZeroShotTask(labels, 3)
    requests = task.render(TEXTS)
    together = backend.complete(requests)
    rows = task.parse([], together)
    assert all(row.valid and set(row.value) <= set(labels) for row in rows)
    assert [reply.text for reply in together] == [backend.complete([request])[0].text for request in requests]


def test_vectors_of_texts_do_not_depend_on_their_neighbours(opened):
    backend = opened("falcon-h1")
    texts = [*TEXTS[:-1], "word " * 100]
    together = np.stack([one.vector for one in backend.embed(texts)])
    alone = np.stack([backend.embed([text])[0].vector for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.linalg.norm(together[0] - together[1]) > 0.01


def test_the_states_are_told_before_loading(files, monkeypatch):
    told = memory_needed(str(files("falcon-h1")))
    assert told.n_states == 256
    one = 2 * (128 * 16 + 3 * (128 + 2 * 2 * 16)) * 4 / 1e6  # two layers' states, and inputs of three tokens, in floats
    assert told.state_mb / told.n_states == pytest.approx(one, abs=0.006)  # llama.cpp tells 0.01 MiB
    assert told.kv_mb == pytest.approx(2 * 2048 * 2 * 2 * 16 * 2 / 1e6, abs=0.021)
    assert "MB of recurrent states for 256 sequences" in str(told)
    monkeypatch.setattr(memory_estimate, "_STATES_MB", 10 * one)
    monkeypatch.setattr(memory_estimate, "_STATES_SHARE", 0)
    assert 7 <= memory_needed(str(files("falcon-h1"))).n_states <= 20
