"""Seventy real chat templates: rendered as llama.cpp's own engine renders them, and where labels are scored in each.

`chat_templates.json` holds, for each, the SHA-256 of what llama.cpp's engine (`common/jinja`) renders of the
conversation below with the variables that this library gives, dates left out; and the expected ends of prompts.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from skllm_ray.llm.gpt.clients.llama_cpp.templates import ChatTemplate
from skllm_ray.llm.gpt.clients.llama_cpp.thought_forms import left_open
from skllm_ray.tasks import Choices
from tests.conformance.conftest import FOLDER

TEMPLATES = FOLDER / "llama.cpp" / "models" / "templates"
EXPECTED = json.loads(Path(__file__).with_name("chat_templates.json").read_text("utf-8"))
CONVERSATION = [
    {"role": "system", "content": "Be <b>brief</b>.\n"},
    {"role": "user", "content": 'Ist das "gut"?\n\nÜber 👍'},
]
DATES = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2} [A-Z][a-z]+ \d{4}|[A-Z][a-z]+ \d{1,2},? \d{4}")
OPENING = Choices(("a",)).opening


def digest(text: str) -> str:
    return hashlib.sha256(DATES.sub("DATE", text).encode()).hexdigest()[:16]


def open_template(name: str, *, thinking: bool = False) -> ChatTemplate:
    path = TEMPLATES / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"{path} is missing: run `make conformance`, which takes it from llama-cpp-python's source archive")
    return ChatTemplate(path.read_text("utf-8"), "<BOS>", "<EOS>", thinking=thinking)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_prompt_is_what_llama_cpp_renders(name: str) -> None:
    for thinking, expected in zip((False, True), EXPECTED[name]["rendered"], strict=True):
        assert digest(open_template(name, thinking=thinking).render(CONVERSATION)) == expected


@pytest.mark.parametrize("name", EXPECTED)
def test_labels_are_scored_where_the_model_would_answer(name: str) -> None:
    template = open_template(name)
    prompt = template.render(CONVERSATION) + template.start.suffix
    assert template.start.understood and left_open(prompt, template.forms) is None
    assert (prompt + OPENING).endswith(EXPECTED[name]["scored_at"])


@pytest.mark.parametrize("name", EXPECTED)
def test_thoughts_are_opened_and_closed_in_the_model_s_form(name: str) -> None:
    template, expected = open_template(name, thinking=True), EXPECTED[name]["thought"]
    if expected is None:
        assert template.thought is None
        return
    assert template.thought is not None
    form = template.thought
    assert [form.opening, form.ending, form.closing] == expected
    whole = template.render(CONVERSATION) + form.opening
    assert left_open(whole, (form, *template.forms)) is not None or not form.opening.strip("\n")
    assert left_open(whole + "So it is." + form.closing, template.forms) is None


def test_all_templates_are_known() -> None:
    found = {path.stem for path in TEMPLATES.glob("*.jinja")}
    if not found:
        pytest.skip(f"{TEMPLATES} is missing: run `make conformance`")
    assert set(EXPECTED) <= found
