"""The engine against brute force: one full forward pass per label on an empty context."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf.quants import dequantize

from skllm_ray.datasets import get_reviews_dataset
from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
from skllm_ray.llm.gpt.clients.llama_cpp.decoding import common_length
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.scoring import score
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError, Trie
from skllm_ray.tasks import ChatRequest, Choices, MultiLabelZeroShotTask, PromptStyle, ZeroShotTask

TOLERANCE = 1e-3
"""Of a probability, and of a log-probability above -7. Among other rows, a row's keys and values lie in other cells, so
that attention sums in another order; in one row of thirty that tips the rounding of an activation to 8 bits, and moves
a likely label's log-probability by up to 0.01, an unlikely one's by a few hundredths."""
ALONE = {"atol": 1e-3, "rtol": 5e-4}
"""Of a log-probability, where no other row shares the context: the order is the same."""
THREE = ("positive", "negative", "neutral")
TEXTS = ["I love it.", "Broke after two days.", "It arrived on a Tuesday.", "👩‍👩‍👧 ça va?", 'a "quote" \\ {x}']


@pytest.fixture(scope="module")
def brute():
    """An engine whose context is emptied before every pass."""
    engine = Engine(EngineOptions(str(DEMO_FILE), n_threads=1))
    yield engine
    engine.close()


@pytest.fixture
def backend():
    opened = GGUFBackend(DEMO_FILE, "gguf::demo", 0, 1)
    yield opened
    opened.close()


def question(text, labels=THREE):
    """A prompt that holds neither instructions nor labels: short, so that brute force stays cheap."""
    return ChatRequest(({"role": "user", "content": text},), Choices(tuple(labels)))


def log_softmax(values):
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def expected_log_probs(brute, request):
    """Return what each label's tokens have as log-probability, normalised, from one forward pass per label."""
    return log_softmax(expected_scores(brute, request))


def expected_scores(brute, request):
    """Return the same before it is normalised."""
    quoted = [token for token in range(brute.n_vocab) if brute.piece(token).startswith(b'"')]
    prompt = ChatFormat(brute).render(request.messages)
    n_shared = len(brute.tokenize(prompt)) - 1  # positions before it are the same for all labels
    scores = []
    for label in request.choices.labels:
        answer = '{"label": ' + json.dumps(label, ensure_ascii=False)
        tokens = [brute.bos] * (brute.bos is not None) + brute.tokenize(prompt + answer)
        brute.forget()
        batch = brute.new_batch()
        batch.add(tokens[:n_shared], 0, 1)
        batch.add(tokens[n_shared:], n_shared, 1, wanted=True)
        log_probs = log_softmax(brute.decode(batch).astype(np.float64))
        *inner, last = tokens[n_shared + 1 :]
        assert brute.piece(last) == b'"'
        score = sum(log_probs[i, token] for i, token in enumerate(inner))
        scores.append(score + np.log(np.exp(log_probs[len(inner), quoted]).sum()))
    return np.asarray(scores)


def assert_close(found, expected):
    """Compare log-probabilities: as probabilities, and, more loosely, the unlikely ones too."""
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=TOLERANCE, rtol=0)
    likely = expected > -6
    np.testing.assert_allclose(found[likely], expected[likely], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(found, expected, atol=0.25, rtol=0)


def assert_matches(brute, requests, replies):
    for request, reply in zip(requests, replies, strict=True):
        assert reply.error is None
        expected = expected_log_probs(brute, request)
        assert_close(reply.log_probs, expected)
        assert np.exp(reply.log_probs).sum() == pytest.approx(1, abs=1e-9)
        predicted = request.choices.labels.index(json.loads(reply.text)["label"])
        assert predicted == int(np.argmax(reply.log_probs))
        assert np.exp(expected[predicted]) >= np.exp(expected.max()) - TOLERANCE


@pytest.fixture(scope="module")
def f32_file(tmp_path_factory):
    """The demo model with weights of 32 bits, so that no activation is rounded to 8."""
    return unquantized(tmp_path_factory.mktemp("f32") / "demo.gguf", np.float32)


def unquantized(path, dtype):
    """Write the demo model with its matrices as floats."""
    source, writer = gguf.GGUFReader(DEMO_FILE), gguf.GGUFWriter(str(path), "llama")
    for key, field in source.fields.items():
        if not key.startswith(("GGUF.", "general.architecture", "general.quantization", "general.file_type")):
            kind = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], kind)
    for tensor in source.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, weights.astype(dtype if weights.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_without_8_bit_rounding_all_rows_are_brute_force_s(f32_file):
    reviews, _ = get_reviews_dataset()
    requests = ZeroShotTask(THREE).render(reviews[:24])
    brute, backend = Engine(EngineOptions(str(f32_file))), GGUFBackend(f32_file, "gguf::f32", 0, 1)
    try:
        replies = backend.complete(requests)
        found = np.stack([reply.log_probs for reply in replies])
        scores = np.stack([expected_scores(brute, request) for request in requests])
        expected = log_softmax(scores)
        np.testing.assert_allclose(found, expected, atol=3e-4, rtol=0)
        np.testing.assert_allclose([reply.label_mass for reply in replies], np.exp(scores).sum(axis=1), rtol=1e-3)
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    finally:
        backend.close()
        brute.close()


def expected_mass(brute, request):
    """Return the probability, behind prompt and opening, of any of the labels and its closing quote."""
    choices = request.choices
    prompt = ChatFormat(brute).render(request.messages)
    opened = brute.tokenize(prompt + choices.opening)
    bos = [brute.bos] * (brute.bos is not None)
    mass = 0.0
    for label in choices.labels:
        tokens = brute.tokenize(prompt + choices.answer([label])[:-1])
        first = common_length(opened, tokens)
        brute.forget()
        batch = brute.new_batch()
        batch.add([*bos, *tokens], 0, 1, wanted=True)
        log_probs = log_softmax(brute.decode(batch).astype(np.float64))[len(bos) :]
        inner = sum(log_probs[i - 1, tokens[i]] for i in range(first, len(tokens) - 1))
        mass += np.exp(inner) * np.exp(log_probs[len(tokens) - 2, brute.quoted_tokens]).sum()
    return mass


@pytest.mark.parametrize(
    "labels",
    [
        ("card lost", "card stolen"),  # all begin alike
        ("a refund that is not shown", "a refund that is not shown yet", "a refund that is late"),  # one begins another
        ("positive",),
        ("an answer of several words",),
        ("positive", "negative", "neutral"),
    ],
)
def test_the_mass_counts_what_the_labels_share(f32_file, labels):
    brute, backend = Engine(EngineOptions(str(f32_file), n_threads=1)), GGUFBackend(f32_file, "gguf::demo", 0, 1)
    try:
        requests = [question(text, labels) for text in ("I love it.", "Where is my card?", "👩‍👩‍👧 ça va?")]
        requests += ZeroShotTask(labels).render(["Broke after two days."])
        expected = [expected_mass(brute, request) for request in requests]
        masses = [reply.label_mass for reply in backend.complete(requests)]
        np.testing.assert_allclose(masses, expected, rtol=1e-3)
        best_only = [replace(one, choices=replace(one.choices, best_only=True)) for one in requests]
        found = backend.complete(best_only)
        assert [a.text for a in found] == [a.text for a in backend.complete(requests)]
        np.testing.assert_allclose([reply.label_mass for reply in found], expected, rtol=1e-3)  # or not told
    finally:
        backend.close()
        brute.close()


def reference_log_probs(peer, brute, request):
    """Return what llama-cpp-python's own class gives, with its own defaults: one evaluation for each label."""
    chat = ChatFormat(brute)
    prompt = chat.render(request.messages)
    scores = []
    for label in request.choices.labels:
        tokens = chat.tokens(f'{prompt}{{"label": {json.dumps(label)}')
        peer.reset()
        peer.eval(tokens)
        log_probs = log_softmax(np.asarray(peer.scores[: len(tokens)], np.float64))
        first = common_length(tokens, chat.tokens(prompt))
        inner = sum(log_probs[i - 1, tokens[i]] for i in range(first, len(tokens) - 1))
        scores.append(inner + np.log(np.exp(log_probs[len(tokens) - 2, brute.quoted_tokens]).sum()))
    return log_softmax(np.asarray(scores))


def test_scores_are_those_of_llama_cpp_python_s_own_class(brute, backend):
    reviews, _ = get_reviews_dataset()
    requests = ZeroShotTask(THREE).render(reviews[:12])
    peer = llama_cpp.Llama(str(DEMO_FILE), n_ctx=1024, n_threads=1, logits_all=True, verbose=False)
    expected = np.stack([reference_log_probs(peer, brute, request) for request in requests])
    peer.close()
    alone = np.stack([backend.complete([request])[0].log_probs for request in requests])
    np.testing.assert_allclose(alone, expected, atol=1e-6, rtol=0)
    together = np.stack([reply.log_probs for reply in backend.complete(requests)])
    rows, best = np.arange(len(requests)), expected.argmax(axis=1)
    apart = np.abs(together[rows, best] - expected[rows, best])
    assert (apart < TOLERANCE).mean() >= 0.9  # 8-bit weights: see TOLERANCE
    assert apart.max() < 5 * TOLERANCE
    assert (together.argmax(axis=1) == best).all()


def test_exact_scores_are_those_of_a_row_alone(backend):
    reviews, _ = get_reviews_dataset()
    texts = [f"{one} {other}" for one, other in zip(reviews[:100], reviews[100:200], strict=True)]
    requests = [*ZeroShotTask(THREE).render([*texts, *reviews[:20]]), question("x"), question("word " * 150)]
    exact = [replace(request, choices=replace(request.choices, exact=True)) for request in requests]
    alone = np.stack([backend.complete([request])[0].log_probs for request in requests])
    together = np.stack([reply.log_probs for reply in backend.complete(exact)])
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)
    loose = np.stack([reply.log_probs for reply in backend.complete(requests)])
    assert np.abs(loose - alone).max() > 1e-4  # else the option is of no use


def test_a_short_row_s_probabilities_do_not_depend_on_its_neighbours(f32_file):
    backend = GGUFBackend(f32_file, "gguf::f32", 0, 1)
    try:
        requests = [question(text) for text in TEXTS]
        alone = np.stack([backend.complete([request])[0].log_probs for request in requests])
        among = np.stack([reply.log_probs for reply in backend.complete(requests * 4)])
        np.testing.assert_allclose(np.tile(alone, (4, 1)), among, atol=5e-5, rtol=0)
    finally:
        backend.close()


LABEL_SETS = {
    "three": THREE,
    "prefixes": ("a", "ab", "abc d", "abc"),
    "unicode": ("ça", "čau", "日本", "😀", "😁", "اهلا"),
    "escapes": ('say "hi"', "say", 'say "', "back\\slash", "back", "\\", "line\nbreak", "l[0], {x}"),
    "two": ("yes", "no"),
    "unequal": ("x", "a label that is a whole sentence and goes on for quite a while, with a comma"),
}


@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=LABEL_SETS)
def test_scores_are_those_of_one_pass_per_label(brute, backend, labels):
    requests = [question(text, labels) for text in TEXTS]
    assert_matches(brute, requests, backend.complete(requests))


@pytest.mark.parametrize("labels", [THREE, ("yes", "no"), ("a", "b", "c")])
def test_a_row_alone_is_exact(brute, backend, labels):
    for text in TEXTS:
        (reply,) = backend.complete([question(text, labels)])
        np.testing.assert_allclose(reply.log_probs, expected_log_probs(brute, question(text, labels)), **ALONE)


def test_three_hundred_labels(brute, backend):
    labels = [f"{a}{b}{c}" for a in "qwertyuiop" for b in "asdfgh" for c in "zxcvb"]
    assert len(labels) == 300
    requests = [question(TEXTS[0], labels)]
    assert_matches(brute, requests, backend.complete(requests))


def test_the_real_prompt(brute, backend):
    requests = ZeroShotTask(THREE, descriptions={"neutral": "neither"}).render(TEXTS)
    assert_matches(brute, requests, backend.complete(requests))


def test_texts_of_very_different_lengths(brute, backend):
    requests = [question(text) for text in ["a", "word " * 120, "b c", "Tuesday " * 40, "?", "word " * 119 + "x"]]
    assert_matches(brute, requests, backend.complete(requests))


def test_one_text_many_times(brute, backend):
    requests = [question("I love it.")] * 40
    replies = backend.complete(requests)
    assert_matches(brute, requests[:1], replies[:1])
    for reply in replies:
        assert_close(reply.log_probs, replies[0].log_probs)


def test_more_rows_than_sequences_in_any_order(backend):
    requests = [question(f"text number {i} {'and more ' * (i % 7)}") for i in range(100)]
    shuffled = np.random.default_rng(0).permutation(len(requests))
    straight = np.asarray([reply.log_probs for reply in backend.complete(requests)])
    mixed = np.asarray([reply.log_probs for reply in backend.complete([requests[i] for i in shuffled])])
    alone = np.asarray([backend.complete([request])[0].log_probs for request in requests[::30]])
    assert_close(mixed, straight[shuffled])
    assert_close(alone, straight[::30])


def test_requests_with_different_labels_share_a_batch(brute, backend):
    requests = [question("t", ("a", "b")), question("t", THREE), question("u", ("b", "a")), question("t", ("a", "b"))]
    assert_matches(brute, requests, backend.complete(requests))


def test_the_shared_prefix_is_decoded_once(brute, backend):
    engine = backend._engine
    first = ZeroShotTask(THREE).render(TEXTS)
    backend.complete(first)
    once = engine.n_decoded
    second = ZeroShotTask(THREE).render([f"{text}!" for text in TEXTS])
    replies = backend.complete(second)
    n_prefix = len(engine._prefix)
    assert n_prefix > 50
    assert once + n_prefix < sum(reply.usage.prompt_tokens for reply in replies)
    assert engine.n_decoded - once <= once - n_prefix + len(TEXTS)
    assert_matches(brute, second, replies)
    third = ZeroShotTask(("up", "down")).render(TEXTS)  # another prefix: what was kept must not be mistaken for it
    assert_matches(brute, third, backend.complete(third))


def test_a_long_row_and_short_ones_under_a_prefix_kept_from_another_call():
    engine = Engine(EngineOptions(str(DEMO_FILE), n_ctx=512))
    start, tails = [10 + i % 50 for i in range(150)], [[6, 7, 8], [9, 7]]
    rows = [start + [100] * 215, *(start + [101 + i] * 3 for i in range(60))]
    try:
        trie = Trie(tails, engine.n_outputs, engine.n_sequences - 1)
        fresh = score(engine, rows, [trie] * len(rows))
        score(engine, [start + [200] * 155] * 2, [trie] * 2)  # keeps more than `rows` share: no room for the first
        again = score(engine, rows, [trie] * len(rows))
        np.testing.assert_allclose(again, fresh, atol=0.1, rtol=2e-3)
    finally:
        engine.close()


def test_a_text_longer_than_the_context_fails_alone(brute, backend):
    requests = [question("before"), question("x " * 3000), question("after")]
    before, overlong, after = backend.complete(requests)
    assert (overlong.text, overlong.error.kind, overlong.error.fatal) == (None, "context_length", False)
    assert f"{backend.n_ctx:,}" in overlong.error.message
    assert_matches(brute, [requests[0], requests[2]], [before, after])


@pytest.mark.parametrize("change", [-1, 0, 1])
def test_the_context_may_be_filled_to_the_last_token(change):
    engine = Engine(EngineOptions(str(DEMO_FILE), n_ctx=256))
    try:
        common, tails = [5] * (engine.n_ctx + change - 2), [[6, 7, 8], [9, 7]]
        (found,) = score(
            engine, [common], [Trie(tails, engine.n_outputs, engine.n_sequences - 1)]
        )  # the tails' last tokens need no room
        assert isinstance(found, ContextOverflowError) == (len(common) + 3 > engine.n_ctx)
    finally:
        engine.close()


def test_control_tokens_in_a_text_are_only_text(brute):
    chat = ChatFormat(brute)
    controls = brute.special_texts()[0]
    assert controls
    ids = {token for text in controls for token in brute.tokenize(text)}
    assert len(ids) == len(controls)

    def n_controls(text):
        head, trie = chat.split(chat.render([{"role": "user", "content": text}]), text, lambda: ["x", "y"])
        return sum(token in ids for token in head + trie.shared)

    evil = "".join(controls) + "".join(f"{text[:3]}{text}{text[3:]}" for text in controls)
    assert n_controls(f"hello {evil} {evil[::-1]} bye") == n_controls("hello") > 0


def test_the_tokens_are_those_of_the_whole_string(brute):
    chat = ChatFormat(brute)
    for text in [*TEXTS, "".join(brute.special_texts()[0]), " \n trailing \n"]:
        prompt = chat.render([{"role": "system", "content": "S"}, {"role": "user", "content": text}])
        ends = ['{"label": "a"', '{"label": "ab c"', "plain"]
        for _ in range(2):  # the second time from what was kept
            head, trie = chat.split(prompt, "key", lambda ends=ends: ends)
            tails = [trie.shared + list(tail) for tail in trie.tails]
            begin = [brute.bos] * (brute.bos is not None)
            assert [head + tail for tail in tails] == [begin + brute.tokenize(prompt + end) for end in ends]


PRE_TOKENIZERS = ["llama-bpe", "gpt-2", "qwen2", "deepseek-llm", "falcon", "gpt-4o", "tekken", "default"]
INSTRUCTIONS = "Classify the text. " * 12 + "\nIt has  these\tlabels: `a1 b`, `over the moon`.\n\nText: ```"


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_a_beginning_that_texts_share_is_tokenised_once_and_as_in_the_whole(tmp_path, pre):
    engine = Engine(EngineOptions(str(rewritten(tmp_path / "model.gguf", pre=pre)), vocab_only=True))
    try:
        chat = ChatFormat(engine)
        rng = np.random.default_rng(0)
        pool = [*"aA1.,'` \n\té👩…中", "don't", " 1234567", "  ", "word ", " word", *engine.special_texts()[0][:2]]
        tokenized = []
        plain = engine.tokenize
        engine.tokenize = lambda text: tokenized.append(text) or plain(text)
        within_a_word = INSTRUCTIONS.replace("the moon", "there")
        beginnings = [INSTRUCTIONS, within_a_word, INSTRUCTIONS[:-80], INSTRUCTIONS[:120]]
        for number in range(300):
            text = "".join(rng.choice(pool, rng.integers(0, 12)))
            prompt = chat.render([{"role": "user", "content": beginnings[number // 9 % 4] + text + " of four words"}])
            head, trie = chat.split(prompt, "key", lambda: ["x", "y"])
            assert [*head, *trie.shared, *trie.tails[0]] == plain(prompt + "x")
        assert sum(len(text) < 150 for text in tokenized) > 150  # most were not tokenised from their beginning on
    finally:
        engine.close()


def test_calls_from_several_threads_get_what_they_asked_and_closing_waits_for_them():
    backend = GGUFBackend(DEMO_FILE, "gguf::demo", 0, 1)
    reviews, _ = get_reviews_dataset()
    two = ZeroShotTask(("positive", "negative"), "Say how this sounds, one of {labels}: {x}")
    calls = [ZeroShotTask(THREE).render(reviews[:20]), two.render(reviews[20:40])] * 3
    calls += [[ChatRequest(({"role": "user", "content": text},), max_output_tokens=3)] for text in TEXTS]
    exact = [[replace(r, choices=r.choices and replace(r.choices, exact=True)) for r in call] for call in calls]
    expected = [backend.complete(call) for call in exact]
    with ThreadPoolExecutor(len(calls)) as pool:
        begun = [pool.submit(backend.complete, call) for call in exact]
        begun[-1].result()
        backend.close()
        found = [call.exception() or call.result() for call in begun]
    answered = [(one, other) for one, other in zip(found, expected, strict=True) if isinstance(one, list)]
    assert answered
    assert all(close_to(one, other) for one, other in answered)
    assert all("has been unloaded" in str(one) for one in found if not isinstance(one, list))
    with pytest.raises(RuntimeError, match="gguf::demo has been unloaded"):
        backend.complete(calls[0])


def close_to(found, expected):
    return all(
        one.text == other.text and np.allclose(one.log_probs or (), other.log_probs or (), atol=TOLERANCE)
        for one, other in zip(found, expected, strict=True)
    )


def test_several_labels_are_allowed_ones_in_number_and_without_repeats(backend):
    labels = ("delivery", "price", "quality", "delivery time")
    for max_labels in (1, 2, 9):
        task = MultiLabelZeroShotTask(labels, max_labels)
        requests = task.render([*TEXTS, "x " * 3000])
        *rows, overlong = task.parse([], backend.complete(requests))
        assert all(row.valid and set(row.value) <= set(labels) for row in rows)
        assert all(len(set(row.value)) == len(row.value) <= max_labels for row in rows)
        assert overlong.error.kind == "context_length"


def test_a_single_label_is_certain(backend):
    (reply,) = backend.complete([question("t", ("only",))])
    assert (json.loads(reply.text), reply.log_probs) == ({"label": "only"}, (0.0,))


def test_closing_twice_is_allowed():
    engine = Engine(EngineOptions(str(DEMO_FILE)))
    engine.close()
    engine.close()


def test_a_row_needs_a_token_before_the_choice(brute):
    with pytest.raises(ValueError, match="at least one token"):
        score(brute, [[]], [Trie([[1], [2]], brute.n_outputs, brute.n_sequences - 1)])


def test_gpu_layers_need_a_gpu_build(brute):
    if brute.lib.llama_supports_gpu_offload():
        pytest.skip("this llama-cpp-python was built with GPU support")
    with pytest.raises(
        ModelLoadError, match=r"gguf_max_gpu_layers=-1.*without GPU support.*set_gguf_max_gpu_layers\(0\)"
    ):
        Engine(EngineOptions(str(DEMO_FILE), n_gpu_layers=-1))


def test_the_search_for_the_best_of_many_labels_finds_the_arg_max(backend):
    labels = tuple(
        f"{colour} {kind} {n}" for colour in ("red", "green", "blue") for kind in ("a", "bé") for n in range(50)
    )
    requests = [question(f"{text} {i}", labels) for i in range(4) for text in TEXTS]
    quick = [ChatRequest(r.messages, Choices(labels, best_only=True)) for r in requests]
    before = backend._engine.n_decoded
    full = backend.complete(requests)
    between = backend._engine.n_decoded
    found = backend.complete(quick)
    assert backend._engine.n_decoded - between < (between - before) / 2
    for one, other in zip(found, full, strict=True):
        assert one.log_probs is None
        top, second = sorted(other.log_probs)[-1:-3:-1]
        assert one.text == other.text or top - second < TOLERANCE


@pytest.mark.parametrize("is_searched", [False, True])
def test_the_best_label_is_that_of_the_exact_probabilities(backend, monkeypatch, is_searched):
    monkeypatch.setattr("skllm_ray.llm.gpt.clients.llama_cpp.backend._MANY_LOGITS", 0 if is_searched else 1 << 30)
    labels = tuple(f"{colour} {n}" for colour in ("red", "green") for n in range(9))
    reviews, _ = get_reviews_dataset()
    requests = [question(text, labels) for text in reviews[:100]]
    exact, quick = exactly(requests), exactly(requests, best_only=True)
    found = backend.complete(quick)
    assert [reply.text for reply in found] == [reply.text for reply in backend.complete(exact)]
    assert all((reply.label_mass is None) == is_searched for reply in found)


def exactly(requests, **choices):
    return [replace(request, choices=replace(request.choices, exact=True, **choices)) for request in requests]


def watched(engine, monkeypatch):
    """Return a list to which every decode adds its tokens, those that only fill, and the wanted ones."""
    seen, start = [], engine.start

    def watch(batch):
        seen.append((len(batch), batch.n_filled, int(batch.wanted[: len(batch)].sum())))
        return start(batch)

    monkeypatch.setattr(engine, "start", watch)
    return seen


def test_a_search_among_exact_rows_asks_for_fewer_logits_and_has_the_same_ones(backend, monkeypatch):
    monkeypatch.setattr("skllm_ray.llm.gpt.clients.llama_cpp.backend._MANY_LOGITS", 0)
    things, kinds = ("delivery", "price", "quality"), ("good", "bad", "very bad")
    labels = tuple(f"{thing} {kind}" for thing in things for kind in kinds)
    reviews, _ = get_reviews_dataset()
    requests = [*ZeroShotTask(labels).render(reviews[:50]), *ZeroShotTask(THREE).render(reviews[50:70])]
    requests += [question("x", THREE), question("word " * 150, labels)]
    seen = watched(backend._engine, monkeypatch)
    full = backend.complete(exactly(requests))
    n_full = sum(wanted for _, _, wanted in seen)
    seen.clear()
    found = backend.complete(exactly(requests, best_only=True))
    assert [reply.text for reply in found] == [reply.text for reply in full]
    assert sum(wanted for _, _, wanted in seen) < n_full / 2


def test_rows_that_follow_upon_others_fill_little(backend, monkeypatch):
    reviews, _ = get_reviews_dataset()
    requests = exactly(ZeroShotTask(THREE).render([*reviews[:100]]))
    seen = watched(backend._engine, monkeypatch)
    backend.complete(requests)
    assert sum(filled for _, filled, _ in seen) < 3 * len(requests)  # 8 in the mean, were each filled up to a group


def test_exact_rows_of_all_lengths_in_any_order_up_to_a_full_context(backend):
    engine = backend._engine
    reviews, _ = get_reviews_dataset()
    texts = ["x", *reviews[:6], "word " * 90, *(" ".join(reviews[:n]) for n in (2, 9, 4, 30, 3, 5)), "?"]
    requests = exactly(ZeroShotTask(THREE).render(texts))
    full = question("word " * engine.n_ctx)
    while backend.complete([full])[0].error is not None:  # up to the last token but a few
        words = full.messages[0]["content"].split()[3:]
        full = question(" ".join(words))
    requests += exactly([full, question("a b")])
    alone = np.stack([backend.complete([request])[0].log_probs for request in requests])
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(requests))
        together = np.stack([reply.log_probs for reply in backend.complete([requests[i] for i in order])])
        np.testing.assert_allclose(together, alone[order], atol=1e-6, rtol=0)


def test_labels_that_one_decode_does_not_hold_have_exact_scores_as_well(backend):
    labels = tuple(f"{colour} {number}" for colour in ("red", "green", "blue") for number in range(100))
    requests = [question(text, labels) for text in TEXTS]
    exact = exactly(requests)
    together = np.stack([reply.log_probs for reply in backend.complete(exact)])
    alone = np.stack([backend.complete([request])[0].log_probs for request in exact])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    found = np.stack([reply.log_probs for reply in backend.complete(requests)])
    np.testing.assert_allclose(np.exp(together), np.exp(found), atol=TOLERANCE)


def test_the_search_agrees_with_the_scores_on_real_texts(backend):
    things, kinds = ("delivery", "price", "quality", "battery", "staff", "screen", "room"), ("good", "bad", "mixed")
    labels = tuple(f"{thing} {much}{kind}" for thing in things for much in ("", "very ", "a bit ") for kind in kinds)
    reviews, _ = get_reviews_dataset()
    requests = ZeroShotTask(labels).render(reviews[:24])
    quick = [replace(request, choices=replace(request.choices, best_only=True)) for request in requests]
    full, found = backend.complete(requests), backend.complete(quick)
    assert all(reply.log_probs is None for reply in found)
    assert [reply.text for reply in found] == [reply.text for reply in full]


@pytest.mark.parametrize("length", [250, 300, 700])
def test_a_label_of_more_tokens_than_a_decode_keeps_logits_of(brute, backend, length):
    engine = backend._engine
    tail, words = [], iter(range(10_000))
    while len(tail) < length:
        tail += engine.tokenize(f" w{next(words)}")
    prompt = engine.tokenize("Some prompt: ")
    trie = Trie([tail[:length], [*tail[: length // 2], 7], [9, 9]], engine.n_outputs, engine.n_sequences - 1)
    (found,) = score(engine, [prompt], [trie])
    for one, value in zip(trie.tails, found, strict=True):
        brute.forget()
        batch = brute.new_batch()
        batch.add([*prompt, *one[:-1]], 0, 1, wanted=True)
        log_probs = log_softmax(brute.decode(batch).astype(np.float64))[len(prompt) - 1 :]
        expected = sum(log_probs[i, token] for i, token in enumerate(one))
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_rows_that_share_examples_share_a_longer_prefix(brute, backend):
    groups = [f"{name} example. " * 60 for name in ("one", "two", "three")]
    requests = [question(f"{group} Text {i}") for i in range(5) for group in groups]
    engine = backend._engine
    before = engine.n_decoded
    replies = backend.complete(requests)
    n_prompt = sum(reply.usage.prompt_tokens for reply in replies)
    assert engine.n_decoded - before < n_prompt / 3
    assert_matches(brute, requests[:4], replies[:4])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_rows_choose_as_brute_force_does(brute, backend):
    reviews, _ = get_reviews_dataset()
    pairs = np.random.default_rng(0).choice(reviews, (2000, 2))
    texts = [" ".join(pair) for pair in pairs]
    requests = ZeroShotTask(THREE).render(texts)
    quick = ZeroShotTask(THREE).render(texts)
    quick = [replace(request, choices=replace(request.choices, best_only=True)) for request in quick]
    expected = np.stack([expected_log_probs(brute, request) for request in requests])
    found = np.stack([reply.log_probs for reply in backend.complete(requests)])
    labels = [json.loads(reply.text)["label"] for reply in backend.complete(quick)]
    best = np.arange(len(requests)), expected.argmax(axis=1)
    apart = np.abs(found[best] - expected[best])  # of log-probabilities
    assert (apart < TOLERANCE).mean() >= 0.95, np.quantile(apart, [0.9, 0.99, 0.999, 1])
    assert apart.max() < 2e-2
    agree = expected.argmax(axis=1) == found.argmax(axis=1)
    assert agree.mean() >= 0.999
    assert np.mean([THREE.index(label) for label in labels] == expected.argmax(axis=1)) >= 0.999
    assert np.abs(np.exp(found).sum(axis=1) - 1).max() < 1e-9


# --- files of other makers -------------------------------------------------------------------------------------------


BOS_KEYS = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token")


def rewritten(path, template=None, name="test", controls=(), pre=None, kind=gguf.TokenType.CONTROL, bos=None):
    """Write the demo model with another chat template (none if empty), name or pre-tokenizer.

    `controls` are its last tokens, of one `kind`; the last of them begins texts if `bos` is given, by itself if true.
    """
    source, writer = gguf.GGUFReader(DEMO_FILE), gguf.GGUFWriter(str(path), "llama")
    n = len(controls)
    for key, field in source.fields.items():
        if key.startswith(("GGUF.", "general.architecture")):
            continue
        value = field.contents()
        if key == "tokenizer.chat_template":
            value = value if template is None else template
            if not value:
                continue
        elif key == "tokenizer.ggml.pre":
            value = pre or value
        elif key in {"general.name", *(BOS_KEYS if bos is not None else ())}:
            continue
        elif n and key == "tokenizer.ggml.tokens":
            value = [*value[:-n], *controls]
        elif n and key == "tokenizer.ggml.token_type":
            value = [*value[:-n], *[kind] * n]
        elif n and key == "tokenizer.ggml.merges":
            value = value[:-n]
        writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_string("general.name", name)
    if bos is not None:
        writer.add_bos_token_id(len(source.fields["tokenizer.ggml.tokens"].data) - 1)
        writer.add_add_bos_token(bos)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


START = "{% for m in messages %}<|{{ m.role }}|>"
END = "<|end|>{% endfor %}<|assistant|>"


def test_a_tokenizer_that_strips_behind_control_tokens(tmp_path):
    """llama.cpp strips white space behind the control tokens of models with Phi-3 in their names."""
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n"
    controls = ("</s>", "<unk>", "<s>", "<|endoftext|>")
    path = rewritten(tmp_path / "phi.gguf", template, "Phi-3-mini-4k-instruct", controls)
    engine = Engine(EngineOptions(str(path)))
    try:
        chat = ChatFormat(engine)
        prompt = chat.render([{"role": "user", "content": "hi"}])
        ends = ['{"label": "a"', '{"label": "b c"']
        for _ in range(2):
            head, trie = chat.split(prompt, "key", lambda: ends)
            found = [[*head, *trie.shared, *tail] for tail in trie.tails]
            assert found == [chat.tokens(prompt + end) for end in ends]
    finally:
        engine.close()


TEMPLATES = {
    "parts": START
    + "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    + END,
    "no control tokens": "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}### Response:\n",
    "drops the system": "{% for m in messages if m.role != 'system' %}<|user|>{{ m.content }}" + END,
    "trims": START + "{{ m.content | trim }}" + END,
    "first line by methods": START + "{{ m.content.strip() }}{{ m.get('name', '') }}" + END,
    "tojson": START + "{{ m.content | tojson }}" + END,
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_of_every_form_show_instructions_and_text(tmp_path, template):
    opened = GGUFBackend(rewritten(tmp_path / "model.gguf", template), "gguf::test", 0, 1)
    try:
        requests = ZeroShotTask(THREE).render(["I love it", "It is awful"])
        one, other = opened.complete(requests)
        assert one.error is None and one.log_probs != other.log_probs
        prompt = opened._chat(PromptStyle()).render(requests[0].messages)
        assert "I love it" in prompt
        assert requests[0].messages[0]["content"][:20] in prompt
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('no such thing') }}", "no such thing"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("<|user|>hi<|end|><|assistant|>", "leaves the user's text out"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path, template, why):
    opened = GGUFBackend(rewritten(tmp_path / "model.gguf", template), "gguf::test", 0, 1)
    try:
        with pytest.raises(ModelLoadError, match=f"model.gguf.*{why}"):
            opened.complete([question("x")])
    finally:
        opened.close()


def test_prompts_without_a_control_token_behind_the_text_are_tokenised_about_once(tmp_path):
    template = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    engine = Engine(EngineOptions(str(rewritten(tmp_path / "model.gguf", template)), vocab_only=True))
    try:
        chat = ChatFormat(engine)
        plain, tokenized = engine.tokenize, []
        engine.tokenize = lambda text: tokenized.append(text) or plain(text)
        ends = [f'{{"label": "{colour} {number}"' for colour in ("red", "été") for number in range(40)]
        for number in range(40):
            prompt = chat.render([{"role": "user", "content": f"{INSTRUCTIONS}{number} {TEXTS[number % 5]}```"}])
            head, trie = chat.split(prompt, "key", lambda: ends)
            found = [[*head, *trie.shared, *tail] for tail in trie.tails]
            assert found == [chat._with_bos(plain(prompt + end)) for end in ends]
        assert len(tokenized) < 80 + 4 * 40
    finally:
        engine.close()
