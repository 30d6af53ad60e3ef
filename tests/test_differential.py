"""The same program with scikit-llm 1.4.3 and with this library, against the same server: the same results.

scikit-llm needs an environment of its own (it pins old releases of what both use)::

    python -m venv peer && peer/bin/pip install scikit-llm==1.4.3
    SCIKIT_LLM_PYTHON=peer/bin/python make test-slow
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from skllm_ray.testing import ChatServer, prompt_of

PEER = os.environ.get("SCIKIT_LLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not PEER, reason="SCIKIT_LLM_PYTHON is not set: NOTHING was compared with scikit-llm; see this file's docstring"
    ),
]

PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, pandas as pd
from skllm.config import SKLLMConfig
from skllm.models.gpt.classification.zero_shot import (
    CoTGPTClassifier, MultiLabelZeroShotGPTClassifier, ZeroShotGPTClassifier)
from skllm.models.gpt.classification.few_shot import (
    DynamicFewShotGPTClassifier, FewShotGPTClassifier, MultiLabelFewShotGPTClassifier)
from skllm.models.gpt.text2text.summarization import GPTSummarizer
from skllm.models.gpt.text2text.translation import GPTTranslator
from skllm.models.gpt.tagging.ner import GPTExplainableNER
from skllm.models.gpt.vectorization import GPTVectorizer

SKLLMConfig.set_gpt_url(sys.argv[1])
SKLLMConfig.set_openai_key("none")
SKLLMConfig.set_openai_org("none")
X = pd.Series([f"QUERY-{i} of the text" for i in range(6)])
T, y = ["first train", "second train", "third train", "fourth train"], ["good", "bad", "good", "bad"]
Y = [["good", "new"], ["bad"], ["good"], ["bad", "new"]]

def plain(value):
    return [plain(v) for v in value] if isinstance(value, (list, tuple, np.ndarray)) else (
        float(value) if isinstance(value, (float, np.floating)) else str(value))

one = dict(model="custom_url::one", default_label="bad")
many = dict(model="custom_url::many", default_label="bad")
found = {
    "zero-shot": ZeroShotGPTClassifier(**one).fit(None, ["good", "bad"]).predict(X),
    "zero-shot of an array": ZeroShotGPTClassifier(**one).fit(None, ["good", "bad"]).predict(X.to_numpy()),
    "workers": ZeroShotGPTClassifier(**one).fit(None, ["good", "bad"]).predict(X, num_workers=2),
    "multi-label": MultiLabelZeroShotGPTClassifier(max_labels=3, **many).fit(None, [["good", "bad", "new"]]).predict(X),
    "explained": CoTGPTClassifier(model="custom_url::cot", default_label="bad").fit(None, ["good", "bad"]).predict(X),
    "few-shot": FewShotGPTClassifier(**one).fit(T, y).predict(X),
    "multi-label few-shot": MultiLabelFewShotGPTClassifier(max_labels=3, **many).fit(T, Y).predict(X),
    "dynamic": DynamicFewShotGPTClassifier(
        n_examples=1, vectorizer=GPTVectorizer(model="custom_url::e"), **one).fit(T, y).predict(X),
    "summaries": GPTSummarizer(model="custom_url::text", max_words=5).fit_transform(X),
    "focused": GPTSummarizer(model="custom_url::text", focus="x").fit_transform(X),
    "translations": GPTTranslator(model="custom_url::text", output_language="French").fit_transform(X),
    "translations in a fence": GPTTranslator(model="custom_url::fenced").fit_transform(X),
    "entities": GPTExplainableNER({"NAME": "a name", "WORD": "a word"}, model="custom_url::ner").fit(X).transform(X),
    "entities of a repeated text": GPTExplainableNER(
        {"NAME": "a name"}, sparse_output=False, model="custom_url::dense").fit(X).transform(X),
    "vectors": GPTVectorizer(model="custom_url::e", batch_size=2).fit_transform(X),
}
print("RESULT" + json.dumps({name: plain(value) for name, value in found.items()}))
"""

DIFFERENT = {
    "multi-label": "an unknown label is dropped where others are known; scikit-llm puts the default beside them",
    "multi-label few-shot": "the same",
    "entities": "scikit-llm also writes an empty <not_entity> before an entity that opens or closes the text",
}
"""What differs on purpose, by the program's names, and why."""


def answer(body):
    number = int(re.findall(r"QUERY-(\d)", prompt_of(body))[-1])
    text = f"QUERY-{number} of the text"
    several = [["good"], ["good", "bad"], ["bad", "new"], ["bad", "elsewhere"], ["new"], ["good", "new", "bad"]][number]
    entities = [{"reasoning": "it counts", "tag": "NAME", "value": f"QUERY-{number}"}]
    entities += [{"reasoning": "it is one", "tag": "WORD", "value": "text"}] if number % 2 else []
    dense = (
        f"<entity><reasoning>it counts</reasoning><tag>NAME</tag><value>QUERY-{number}</value></entity>"
        "<not_entity> of the text</not_entity>"
    )
    return {
        "one": json.dumps({"label": ["good", "bad", "good", "neither", "bad", "good"][number]}),
        "many": json.dumps({"label": several}),
        "cot": json.dumps({"explanation": f"because {number}", "label": "good" if number % 2 else "bad"}),
        "text": f"about {number}",
        "fenced": f"```{text}```" if number % 2 else f"```\n{text}\n```",
        "ner": json.dumps(entities if body["messages"][0]["content"].startswith("You are") else {"entities": entities}),
        "dense": dense,
    }[body["model"]]


def run(python: str, program: str, url: str, tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run([python, str(path), url], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("RESULT")[2].splitlines()[0])


def test_changing_the_import_changes_nothing_else(tmp_path):
    with ChatServer(answer) as server:
        theirs = run(PEER, PROGRAM, server.url, tmp_path)
        n_theirs = server.n_requests
        ours = run(sys.executable, PROGRAM.replace("from skllm.", "from skllm_ray."), server.url, tmp_path)
    assert set(ours) == set(theirs)
    differing = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
    assert set(differing) == set(DIFFERENT), json.dumps(differing, indent=1)
    assert ours["entities"] == [marked.replace("<not_entity></not_entity>", "") for marked in theirs["entities"]]
    assert [row[3] for row in (ours["multi-label"], theirs["multi-label"])] == [["bad", "", ""], ["bad", "bad", ""]]
    assert server.n_requests - n_theirs < n_theirs  # texts are embedded in batches
