"""How sure a model was, wherever rows are shown: labels, fields, entities, from servers and from GGUF models."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import BaseModel
from sklearn.metrics import roc_auc_score

from skllm_ray import batch
from skllm_ray.batch.output.journal import packed, unpacked
from skllm_ray.classification import (
    CoTGPTClassifier,
    MultiLabelZeroShotGPTClassifier,
    ZeroShotGPTClassifier,
)
from skllm_ray.config import SecretRef, SKLLMConfig
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.api.token_probabilities import token_ends
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.reply_cache import SQLiteReplyCache
from skllm_ray.models.gpt.extraction import GPTExtractor
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.tasks import ChatRequest, Choices, Reply
from skllm_ray.tasks.extraction import ExtractionTask
from skllm_ray.tasks.field_confidence import Written
from skllm_ray.tasks.ner import NERTask
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault
from tests.batch.worlds import read, write

pytestmark = pytest.mark.usefixtures("local_mode")
LABELS = ["bad", "good"]


def model_at(server, kind):
    SKLLMConfig.set_openai_key("sk-test-0123456789")
    if kind == "azure":
        SKLLMConfig.set_azure_api_base(server.root)
        return "azure::deployment"
    SKLLMConfig.set_gpt_url(server.url)
    return "custom_url::m"


def chat(pieces, *, log_probs=True):
    """Return an answer made of tokens with their probabilities."""
    text = "".join(piece for piece, _ in pieces)
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if log_probs:
        told = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in pieces]
        choice["logprobs"] = {"content": told}
    return RawAnswer({"model": "m", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}})


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["custom_url", "azure"])
def test_details_carry_the_probability_that_predict_proba_tells(kind):
    with ChatServer() as server:
        clf = ZeroShotGPTClassifier(model=model_at(server, kind)).fit(None, LABELS)
        details, proba = clf.predict_details(["so good", "so bad"]), clf.predict_proba(["so good", "so bad"])
    assert details["probability"].tolist() == pytest.approx(proba.max(axis=1).tolist())
    assert details["probability"].tolist() == pytest.approx([0.8, 0.8])


def test_predict_asks_for_none_and_off_asks_for_none():
    with ChatServer() as server:
        clf = ZeroShotGPTClassifier(model=model_at(server, "custom_url")).fit(None, LABELS)
        clf.predict(["so good"])
        SKLLMConfig.set_confidence("off")
        assert np.isnan(clf.predict_details(["so good"])["probability"].iloc[0])
        assert not any("logprobs" in one.body for one in server.received)
        assert clf.predict_proba(["so good"])[0].max() == pytest.approx(0.8)  # which asks for nothing else


def test_a_setting_that_is_none_is_refused_by_its_name():
    with pytest.raises(ConfigurationError, match="confidence must be one of 'auto', 'written', 'off'; got 'never'"):
        SKLLMConfig.set_confidence("never")


@pytest.mark.parametrize("message", ["Unsupported parameter: 'logprobs'", "invalid request body"])
def test_a_server_that_gives_none_answers_all_the_same_and_refuses_once(message):
    def answer(body):
        return StatusFault(400, message) if "logprobs" in body else '{"label": "good"}'

    with ChatServer(answer) as server:
        clf = ZeroShotGPTClassifier(model=model_at(server, "custom_url")).fit(None, LABELS)
        details = clf.predict_details([f"text {i}" for i in range(20)])
        assert server.n_requests == 21
        assert clf.predict_details(["another"])["prediction"].tolist() == ["good"]
        assert server.n_requests == 22
    assert details["prediction"].tolist() == ["good"] * 20
    assert details["probability"].isna().all()
    assert details["error"].isna().all()


def test_a_row_that_is_refused_for_its_own_text_is_asked_once():
    def answer(body):
        return StatusFault(400, "no") if "POISON" in body["messages"][-1]["content"] else '{"label": "good"}'

    with ChatServer(answer) as server:
        clf = ZeroShotGPTClassifier(model=model_at(server, "custom_url"), on_error="coerce").fit(None, LABELS)
        details = clf.predict_details(["first", *["POISON"] * 5, "last"])
        assert server.n_requests == 7
    assert details["error_kind"].tolist() == [None, *["bad_request"] * 5, None]


def test_probabilities_that_are_none_are_shown_as_unknown():
    with ChatServer(lambda _: chat([('{"label": "good"}', math.e)])) as server:  # a log probability of 1
        clf = ZeroShotGPTClassifier(model=model_at(server, "custom_url")).fit(None, LABELS)
        details = clf.predict_details(["x"])
    assert (details["prediction"].tolist(), details["probability"].isna().tolist()) == (["good"], [True])


def test_as_many_alternatives_are_asked_for_as_there_are_labels_until_the_server_has_fewer():
    labels = [f"label {i}" for i in range(30)]

    def answer(body):
        if body.get("top_logprobs", 0) > 5:
            message = "Invalid 'top_logprobs': integer above maximum value. Expected a value <= 5."
            return StatusFault(400, message, "integer_above_max_value", "top_logprobs")
        return chat([('{"label": "', 1.0), ("label 3", 0.7), ('"}', 1.0)])

    with ChatServer(answer) as server:
        clf = ZeroShotGPTClassifier(model=model_at(server, "custom_url")).fit(None, labels)
        details = clf.predict_details(["x", "y"])
        assert [one.body["top_logprobs"] for one in server.received] == [20, 5, 5]
    assert details["probability"].notna().all()


def test_several_labels_and_reasoned_ones_have_a_probability_too():
    explained = [('{"explanation": "it says so, ', 0.1), ('all of it", "label": ', 0.9), ('"good"', 0.6), ("}", 1.0)]
    with ChatServer(lambda _: chat(explained)) as server:
        clf = CoTGPTClassifier(model=model_at(server, "custom_url")).fit(None, LABELS)
        assert clf.predict_details(["x"])["probability"].tolist() == pytest.approx([0.6], abs=1e-3)
    both = [('{"label": ["', 1.0), ("good", 0.5), ('", "', 0.5), ("bad", 0.5), ('"]}', 1.0)]
    with ChatServer(lambda _: chat(both)) as server:
        clf = MultiLabelZeroShotGPTClassifier(model=model_at(server, "custom_url")).fit(None, [LABELS])
        assert clf.predict_details(["x"])["probability"].tolist() == pytest.approx([0.125], abs=1e-3)


def test_batch_parts_carry_it(tmp_path):
    write(tmp_path / "in.parquet", ["so good", "so bad", None])
    with ChatServer() as server:
        clf = ZeroShotGPTClassifier(model=model_at(server, "custom_url"), on_error="coerce").fit(None, LABELS)
        batch.run(clf, str(tmp_path / "in.parquet"), str(tmp_path / "out"))
    assert read(tmp_path / "out")["probability"].round(3).tolist()[:2] == [0.8, 0.8]


def test_vertex_tells_it_too(tmp_path, monkeypatch):
    pytest.importorskip("google.genai")
    from skllm_ray.llm.vertex.spec import VertexSpec

    with ChatServer() as server:
        spec = VertexSpec(
            model="gemini-3.5-flash",
            project="p",
            location="us-east1",
            base_url=server.root,
            token_ref=SecretRef("t", ()),
        ).asked_for("confidence")
        backend = spec.open(lambda ref: "a-token")
        (reply,) = backend.complete([ChatRequest(({"role": "user", "content": "good"},), Choices(("bad", "good")))])
        backend.close()
    assert np.exp(reply.log_probs) == pytest.approx([0.2, 0.8])


# --- fields -----------------------------------------------------------------------------------------------------------


class Order(BaseModel):
    item: str
    count: int


def order(item, p_item, count, p_count):
    return [('{"item": "', 1.0), (item, p_item), ('", "count": ', 0.9), (str(count), p_count), ("}", 1.0)]


def test_fields_that_are_right_rank_above_those_that_are_wrong():
    generator = np.random.default_rng(0)
    texts = [f"order {i} of item{i}" for i in range(80)]
    right = generator.random((80, 2)) < 0.7
    sure = np.where(right, generator.uniform(0.5, 0.99, (80, 2)), generator.uniform(0.1, 0.7, (80, 2)))

    def answer(body):
        i = int(body["messages"][-1]["content"].rpartition("order ")[2].split()[0])
        item, count = f"item{i}" if right[i, 0] else "other", i if right[i, 1] else -1
        return chat(order(item, sure[i, 0], count, sure[i, 1]), log_probs=body.get("logprobs", False))

    with ChatServer(answer) as server:
        extractor = GPTExtractor(model=model_at(server, "custom_url"), schema=Order)
        details = extractor.predict_details(texts)
        extractor.transform(texts[:1])
        assert "logprobs" not in server.received[-1].body  # whose result shows none
    told = np.asarray([[one["item"], one["count"]] for one in details["field_probabilities"]])
    assert told[:, 1] == pytest.approx(sure[:, 1], rel=1e-3)
    assert roc_auc_score(right.ravel(), told.ravel()) > 0.85
    assert details["probability"].to_numpy() == pytest.approx(told.prod(axis=1), rel=2e-3)


def test_entities_have_one_each():
    pieces = [('{"entities": [{"reasoning": "', 1.0), ("a name, rarely so put", 1e-6), ('", "tag": "', 1.0)]
    pieces += [
        ("PERSON", 0.9),
        ('", "value": "', 1.0),
        ("Ann", 0.5),
        ('"}, {"reasoning": "", "tag": "PERSON", "value": ', 1.0),
    ]
    pieces += [('"Bob"', 0.25), ("}]}", 1.0)]
    with ChatServer(lambda _: chat(pieces)) as server:
        tagger = GPTExplainableNER(model=model_at(server, "custom_url"), entities={"PERSON": "a name"})
        (spans,) = tagger.predict_spans(["Bob met Ann."])
        details = tagger.predict_details(["Bob met Ann."])
    assert [(span.value, round(span.probability, 3)) for span in spans] == [("Bob", 0.25), ("Ann", 0.45)]
    assert details["entity_probabilities"].iloc[0] == pytest.approx([0.25, 0.45], rel=1e-3)
    assert details["probability"].tolist() == pytest.approx([0.1125], rel=1e-3)


def test_no_entities_have_the_probability_that_there_are_none():
    text = '{"entities": []}'
    reply = Reply(text, token_log_probs=((13, 0.0), (14, 0.0), (16, math.log(0.4))))
    (row,) = NERTask({"PERSON": "a name"}).parse(["nothing"], [reply])
    assert (row.value, round(row.probability, 3)) == ((), 0.4)
    assert row.reply.token_log_probs is None  # it has been read


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": [1, "]"]}, "c": null, "é😀": "x,y}"}',
        '```json\n{ "a" : 1 ,\n"c" : [ ] }\n```',
        '{"a": "\\"}"}',
        "{}",
    ],
)
def test_every_value_is_found_where_it_stands(text):
    value = json.loads(text[text.find("{") : text.rfind("}") + 1])
    written = Written(Reply(text, token_log_probs=((len(text), -0.1),)), value)
    spans = written.members()
    assert {name: json.loads(text[slice(*span)]) for name, span in spans.items()} == value


def test_an_answer_that_was_read_elsewhere_tells_no_probability():
    reply = Reply('{"item": "a", "count": 1} or {"item": "b", "count": 2}', token_log_probs=((54, -0.1),))
    assert not Written(reply, {"item": "b", "count": 2}).is_known
    assert not Written(replace(reply, token_log_probs=None), {"item": "a", "count": 1}).is_known


def test_tokens_end_where_characters_do():
    emoji = "😀".encode()
    tokens = [{"token": "?", "bytes": list(part), "logprob": -0.5} for part in (b'"', emoji[:2], emoji[2:], b'"')]
    assert token_ends(tokens, '"😀"') == ((1, -0.5), (2, -0.5), (2, -0.5), (3, -0.5))
    thought = [{"token": "<think>x</think>", "logprob": -3.0}]
    assert token_ends([*thought, *tokens], '"😀"') == token_ends(tokens, '"😀"')
    assert token_ends(tokens, '"other"') is None


def test_journals_and_caches_keep_them(tmp_path):
    reply = Reply("{}", token_log_probs=((1, -0.25), (2, 0.0)))
    assert unpacked(json.loads(json.dumps(packed(reply)))).token_log_probs == reply.token_log_probs
    cache = SQLiteReplyCache(str(tmp_path / "replies.sqlite"), 1_000_000)
    cache.put({"a": reply, "b": Reply("x")})
    found = cache.get(["a", "b"])
    assert (found["a"].token_log_probs, found["b"].token_log_probs) == (reply.token_log_probs, None)


def test_what_was_paid_for_without_probabilities_is_of_use_to_who_would_like_some():
    spec = OpenAISpec(api="openai", model="m", key_ref=SecretRef("k", ()))
    assert spec.identity == spec.asked_for("confidence").identity != spec.asked_for("log_probs").identity


# --- GGUF models ------------------------------------------------------------------------------------------------------


def test_a_local_model_tells_its_own_probabilities_exactly():
    from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
    from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
    from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
    from skllm_ray.llm.gpt.clients.llama_cpp.scoring import score
    from skllm_ray.llm.gpt.clients.llama_cpp.spec import GGUFSpec
    from skllm_ray.llm.gpt.clients.llama_cpp.trie import Trie

    schema = {"type": "object", "properties": {"label": {"enum": LABELS}}, "required": ["label"]}
    task = ExtractionTask(schema, dict)
    spec = GGUFSpec(name="demo").asked_for("confidence")
    requests = spec.adapt(task.render(["so good"]), ["so good"])
    backend = GGUFBackend(DEMO_FILE, "gguf::demo", 0, 1)
    (reply,) = backend.complete(requests)
    (row,) = task.parse(["so good"], [reply])
    engine = backend._engine
    chat = ChatFormat(engine)
    prompt, told = chat.tokens(chat.render(requests[0].messages)), reply.token_log_probs
    begun = [0, *(end for end, _ in told)]
    pieces = [engine.tokenize(reply.text[start:end]) for start, end in itertools.pairwise(begun)]
    tokens = [token for piece in pieces for token in piece]
    scores = [
        float(score(engine, [[*prompt, *tokens[:i]]], [Trie([[token]], engine.n_outputs, 1)])[0][0])
        for i, token in enumerate(tokens)
    ]
    backend.close()
    assert [log_prob for _, log_prob in told] == pytest.approx(scores, abs=1e-3)
    assert row.field_probabilities == {"label": pytest.approx(row.probability)}
    SKLLMConfig.set_confidence("off")
    assert not replace(spec, confidence="off").asked_for("confidence").adapt(task.render(["x"]), ["x"])[0].tells_tokens
