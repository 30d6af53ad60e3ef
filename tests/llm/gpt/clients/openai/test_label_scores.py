"""Labels scored exactly by servers that tell the log-probabilities of any tokens: vLLM's way, SGLang's, llama.cpp's."""

import json
import threading

import numpy as np
import pytest

from skllm_ray import batch
from skllm_ray.classification import ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import JobFailedError
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.templates import ChatTemplate
from skllm_ray.testing import ChatServer, StatusFault, TokenModel, TokenServer
from skllm_ray.testing.chat_http import Response, error_response
from tests.batch.worlds import read, write

pytestmark = [pytest.mark.usefixtures("local_mode"), pytest.mark.filterwarnings("ignore:.*would answer with one of")]
KINDS = ["vllm", "sglang", "llama.cpp"]
LABELS = ["positive", "very positive", "negative", 'a "quote" ü', "good"]
TEXTS = ["so good", "the worst", "", "so good, so very bad", "ü 😀 {x}"]
TEXTS = [text or "nothing" for text in TEXTS]


def fitted(server, labels=LABELS, **options):
    SKLLMConfig.set_gpt_url(server.url)
    return ZeroShotGPTClassifier(model="custom_url::m", **options).fit(None, list(labels))


def expected(model, prompt, labels):
    """Return the labels' probabilities and their mass, one label at a time and the closing quote by its definition."""
    quoted = [i for i, piece in enumerate(model.pieces) if piece.startswith(b'"')]
    before = model.tokens(prompt + '{"label": "')
    scores = []
    for label in labels:
        whole = model.tokens(prompt + json.dumps({"label": label}, ensure_ascii=False)[:-1])
        assert whole[: len(before)] == before
        told = [model.log_probs(whole[:i])[whole[i]] for i in range(len(before), len(whole) - 1)]
        scores.append(sum(told) + np.logaddexp.reduce(model.log_probs(whole[:-1])[quoted]))
    mass = np.logaddexp.reduce(scores)
    return np.exp(np.asarray(scores) - mass), float(np.exp(mass))


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_and_their_mass_are_those_of_whole_labels(kind):
    with TokenServer(kind) as server:
        clf = fitted(server)
        proba, details = clf.predict_proba(TEXTS), clf.predict_details(TEXTS)
        assert server.asked["chat"] == server.n_requests - sum(server.asked.values()) == 0
        prompts = clf.render_prompt(TEXTS)
    model = server.model
    for text, row, (_, detail) in zip(TEXTS, proba, details.iterrows(), strict=True):
        messages = [{"role": one["role"], "content": one["content"]} for one in clf._task().render([text])[0].messages]
        wanted, mass = expected(model, "<bos>" + model.prompt(messages), clf.classes_)
        assert row == pytest.approx(wanted, rel=1e-5)
        assert detail["label_mass"] == pytest.approx(mass, rel=1e-5)
        assert (detail["prediction"], detail["probability"]) == (
            clf.classes_[wanted.argmax()],
            pytest.approx(row.max()),
        )
        assert detail["prompt_tokens"] > 0
    assert len(prompts) == len(TEXTS)


def test_a_row_takes_two_requests_and_the_labels_are_tokenised_once():
    with TokenServer("vllm") as server:
        clf = fitted(server)
        clf.predict_proba(["one"])
        before = server.asked.copy()
        clf.predict_proba([f"text {i}" for i in range(20)])
        found = server.asked - before
    assert found == {"tokenize": 20, "completions": 20}


@pytest.mark.deep
def test_more_ids_than_a_request_may_hold_take_more_requests():
    labels = [f"{chr(97 + i // 10)}{chr(48 + i % 10)} {chr(33 + i % 90)}" for i in range(200)]
    with TokenServer("vllm") as server:
        clf = fitted(server, labels)
        (row,) = clf.predict_proba(["so good"])
        messages = clf._task().render(["so good"])[0].messages
        before = server.asked["completions"]
        clf.predict_proba(["so bad"])
        assert server.asked["completions"] - before > 1
    wanted, _ = expected(server.model, "<bos>" + server.model.prompt(messages), clf.classes_)
    assert row == pytest.approx(wanted, rel=1e-5)


class DemoModel(TokenModel):
    """The demo model's weights, as our own engine computes them."""

    def __init__(self):
        self.engine = Engine(EngineOptions(str(DEMO_FILE)))
        self.pieces = self.engine.pieces
        source = self.engine.metadata("tokenizer.chat_template")
        self.template = ChatTemplate(source, *map(self.engine.special_text, ("bos", "eos")))
        self.lock = threading.Lock()  # requests come in threads

    def tokens(self, text):
        return self.engine.tokenize(text)

    def text(self, tokens):
        return b"".join(self.engine.marked_pieces.get(one) or self.pieces[one] for one in tokens).decode()

    def prompt(self, messages):
        return self.template.render(messages)

    def log_probs(self, tokens):
        with self.lock:
            self.engine.forget()
            step = self.engine.new_batch()
            step.add(list(tokens), 0, 0, last_wanted=True)
            logits = self.engine.decode(step)[-1].astype(np.float64)
        return logits - np.logaddexp.reduce(logits)


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_they_are_those_of_our_own_engine_with_the_same_weights(kind, monkeypatch):
    monkeypatch.setattr("skllm_ray.testing.token_server.BOS", "")
    labels = ["negative", "neutral", "positive", "positively odd"]
    texts = ["I love it.", "Broke at once.", "It is a kettle."]
    own = ZeroShotGPTClassifier(model="gguf::demo").fit(None, labels)
    details, proba = own.predict_details(texts), own.predict_proba(texts)
    with TokenServer(kind, DemoModel()) as server:
        clf = fitted(server, labels)
        told, found = clf.predict_details(texts), clf.predict_proba(texts)
        server.model.engine.close()
    assert found == pytest.approx(proba, abs=1e-4)
    assert told["label_mass"].tolist() == pytest.approx(details["label_mass"].tolist(), rel=1e-3)


def test_batch_parts_are_scored_too(tmp_path):
    write(tmp_path / "in.parquet", ["so good", "so bad"])
    with TokenServer("vllm") as server:
        clf = fitted(server, ["good", "bad"], on_error="coerce")
        batch.run(clf, str(tmp_path / "in.parquet"), str(tmp_path / "out"))
        wanted = clf.predict_proba(["so good", "so bad"])
    rows = read(tmp_path / "out")
    assert rows["probability"].to_numpy() == pytest.approx(wanted.max(axis=1))
    assert rows["label_mass"].between(0, 1).all()


# --- where it is not done ---------------------------------------------------------------------------------------------


def test_predict_writes_and_so_does_whoever_says_so():
    with TokenServer("vllm") as server:
        clf = fitted(server, ["good", "bad"])
        clf.predict(["so good"])
        SKLLMConfig.set_confidence("written")
        assert clf.predict_proba(["so good"])[0].max() == pytest.approx(0.8)
        assert server.asked == {"completions": 2}  # chats


def test_what_is_counted_or_paid_for_is_not_asked_several_times():
    with TokenServer("vllm") as server:
        clf = fitted(server, ["good", "bad"])
        SKLLMConfig.set_price("custom_url::m", input_per_million=1.0)
        clf.predict_proba(["so good"])
        SKLLMConfig.set_price("custom_url::m", input_per_million=0.0)
        SKLLMConfig.set_rate_limit("custom_url::m", requests_per_minute=600)
        clf.predict_proba(["so good"])
        assert server.asked == {"completions": 2}


def test_a_server_without_it_is_asked_for_it_once():
    with ChatServer() as server:
        seen = []
        plain = server._http.answering
        server._http.paths = (*server._http.paths, "/tokenize")
        server._http.answering = lambda path, *rest: (
            seen.append(path)
            or (error_response(StatusFault(404)) if path.endswith("/tokenize") else plain(path, *rest))
        )
        clf = fitted(server, ["good", "bad"])
        for _ in range(2):
            assert clf.predict_proba(["so good", "so bad"]).max(axis=1) == pytest.approx([0.8, 0.8])
    assert seen.count("/tokenize") == 1


class Thinker(TokenModel):
    """Begins with a thought."""

    def write(self, tokens, n_tokens):
        return self.tokens("<think>so")[:n_tokens]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_thinks_first_is_let_think(kind):
    with TokenServer(kind, Thinker()) as server:
        assert fitted(server, ["good", "bad"]).predict_proba(["so good"])[0].max() == pytest.approx(0.8)


@pytest.mark.parametrize(
    "told", [b"{}", b"[]", b'"x"', b"<html>", b'{"tokens": ["a"]}', b'{"tokens": null}', b'{"tokens": [true]}']
)
def test_a_server_that_answers_anything_to_anything_writes(told):
    with ChatServer() as server:
        plain = server._http.answering
        server._http.paths = ("",)
        server._http.answering = lambda path, *rest: plain(path, *rest) if "chat" in path else Response(200, told)
        assert fitted(server, ["good", "bad"]).predict_proba(["so good"])[0].max() == pytest.approx(0.8)


def test_a_server_that_forgets_the_ids_writes():
    class Forgetful(TokenServer):
        def _vllm(self, body):
            return super()._vllm({**body, "logprob_token_ids": []})

    with Forgetful("vllm") as server:
        server._own["completions"] = server._vllm
        assert fitted(server, ["good", "bad"]).predict_proba(["so good"])[0].max() == pytest.approx(0.8)


def test_a_wrong_key_is_a_wrong_key():
    with TokenServer("vllm", key="sk-right-0123456789") as server:
        SKLLMConfig.set_openai_key("sk-wrong-0123456789")
        clf = fitted(server, ["good", "bad"])
        with pytest.raises(JobFailedError, match="authentication"):
            clf.predict_proba([f"text {i}" for i in range(50)])
        assert sum(server.asked.values()) < 8
        SKLLMConfig.set_openai_key("sk-right-0123456789")
        assert server.asked["tokenize"] < clf.predict_proba(["so good"]).shape[1] + 10
        assert clf.predict_details(["so good"])["label_mass"].notna().all()


def test_a_server_that_restarts_meanwhile_is_waited_for():
    class Starting(TokenServer):
        def _answer_to(self, path, body, key):
            if sum(self.asked.values()) < 3:
                self.asked["starting"] += 1
                return error_response(StatusFault(503, "Loading model"))
            return super()._answer_to(path, body, key)

    with Starting("llama.cpp") as server:
        details = fitted(server, ["good", "bad"]).predict_details(["so good"])
    assert details["label_mass"].notna().all()


def test_a_wrong_key_costs_two_requests_and_says_nothing_of_scores():
    with TokenServer("vllm", key="sk-right-0123456789") as server:
        with pytest.raises(JobFailedError, match="authentication"):
            fitted(server, key="sk-wrong-0123456789").predict_details(TEXTS * 20)
        assert server.n_requests <= 2
        details = fitted(server, key="sk-right-0123456789").predict_details(TEXTS)
    assert details["label_mass"].notna().all()
