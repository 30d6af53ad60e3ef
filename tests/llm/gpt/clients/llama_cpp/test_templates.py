"""Chat templates by themselves: where an answer begins, how a thought is written, and what a bad one may not do."""

# ruff: noqa: E501 - templates are lines
from __future__ import annotations

import pytest

from skllm_ray.llm.gpt.clients.llama_cpp import sandbox
from skllm_ray.llm.gpt.clients.llama_cpp.sandbox import TemplateEnvironment, TemplateLimitError
from skllm_ray.llm.gpt.clients.llama_cpp.templates import PLAIN, ChatTemplate, TemplateError, read_template
from skllm_ray.llm.gpt.clients.llama_cpp.thought_forms import ThoughtForm, left_open, looks_open, without_thoughts

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


def prompt(begun):
    """Return the part of a template that ends a prompt."""
    return "{% if add_generation_prompt %}<|assistant|>" + begun + "{% endif %}"


CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if reasoning_effort %}{{ reasoning_effort }}{% endif %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
SHOWN = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}<|end|>{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ '[INST]' + m.content + '[/INST]' if m.role == 'user' else "
    "m.content }}{% else %}{% for p in m.content %}{% if p.type == 'thinking' %}[THINK]{{ p.thinking }}[/THINK]{% else %}"
    "{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
OPEN = TURNS + prompt("<think>\n")
SWITCH = TURNS + prompt("{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}")
COHERE = (
    "{% for m in messages %}<|TURN|>{{ m.role }}<|TEXT|>{{ m.content }}<|END_TEXT|>{% endfor %}{% if add_generation_prompt "
    "%}<|TURN|>assistant<|START_THINKING|>{% if reasoning_effort == 'none' %}<|END_THINKING|>{% endif %}{% endif %}"
)
LEVELS = TURNS + prompt("{% if level is defined %}{{ raise_exception('no') }}{% endif %}{{ reasoning_effort }}")
STARTS = {
    "nothing is open": (TURNS + prompt(""), ""),
    "an open thought": (OPEN, "\n</think>\n\n"),
    "an open thought on one line": (TURNS + prompt("<think>"), "</think>"),
    "a thought of the template's own form": (SHOWN + prompt("<think>\n"), "\n</think>\n\n"),
    "thinking that can be turned off": (SWITCH, ""),
    "channels": (CHANNELS, "<|channel|>final<|message|>"),
    "a thought that the model begins by itself": (SHOWN + prompt(""), "<think>\n\n</think>\n\n"),
    "thoughts in parts": (PARTS, "[THINK][/THINK]"),
    "white space before answers": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        " ",
    ),
    "a header behind an empty thought": (COHERE, "<|TEXT|>"),
    "a recipient": (
        "{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}{% else %}<|a|>>>>all\n{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|a|>>>>{% endif %}",
        "all\n",
    ),
    "no template at all": (PLAIN, ""),
    "a continued answer": (TURNS + "{% if messages[-1].role == 'user' %}<|assistant|><think>{% endif %}", "</think>"),
}


@pytest.mark.parametrize(("source", "suffix"), STARTS.values(), ids=STARTS)
def test_an_answer_begins_behind_what_the_prompt_leaves_open(source, suffix):
    start = ChatTemplate(source).start
    assert start.suffix == suffix
    assert start.understood
    assert left_open(start.tail) is None


THOUGHTS = {
    "open already": (OPEN, ThoughtForm("", "</think>", "\n</think>\n\n")),
    "channels": (
        CHANNELS,
        ThoughtForm(
            "<|channel|>analysis<|message|>", "<|end|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
        ),
    ),
    "begun by the model": (SHOWN + prompt(""), ThoughtForm("<think>\n", "</think>", "\n</think>\n\n")),
    "parts": (PARTS, ThoughtForm("[THINK]", "[/THINK]", "[/THINK]")),
    "a switch": (SWITCH, ThoughtForm("<think>", "</think>", "</think>")),
    "a header behind it": (
        COHERE,
        ThoughtForm("", "<|END_THINKING|>", "<|END_THINKING|><|TEXT|>"),
    ),
    "none": (TURNS + prompt(""), None),
}


@pytest.mark.parametrize(("source", "form"), THOUGHTS.values(), ids=THOUGHTS)
def test_a_thought_is_written_in_the_form_of_the_template(source, form):
    assert ChatTemplate(source, thinking=True).thought == form
    assert ChatTemplate(source).thought is None


def test_a_form_that_is_not_known_is_told():
    start = ChatTemplate(TURNS + prompt("<|begin_of_deliberation|>")).start
    assert not start.understood and start.tail.endswith("<|begin_of_deliberation|>")
    assert not looks_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_thinking_is_turned_off_and_on_as_templates_name_it():
    source = TURNS + prompt("[{{ enable_thinking }}{{ thinking }}{{ thinking_mode }}{{ thinking_budget }}]")
    assert ChatTemplate(source).start.tail.endswith("[FalseFalsedisabled0]")
    assert ChatTemplate(source, thinking=True).start.tail.endswith("[TrueTrueenabled]")
    assert ChatTemplate(source, values={"thinking": "mine"}).start.tail.endswith("[Falseminedisabled0]")


@pytest.mark.parametrize(
    ("source", "least"),
    [
        ("{{ reasoning_effort }}", "low"),
        ("{% if reasoning_effort == 'no_think' %}{% endif %}{{ reasoning_effort }}", "no_think"),
        ("{% if reasoning_effort not in ['high', 'minimal'] %}{{ raise_exception('x') }}{% endif %}{{ reasoning_effort }}", "minimal"),
        ("{{ reasoning_effort | default('none') }}", "none"),
        ("{% if reasoning_effort is defined %}{{ raise_exception('x') }}{% endif %}", ""),
    ],
)  # fmt: skip
def test_the_least_effort_is_one_that_the_template_knows(source, least):
    assert ChatTemplate(TURNS + prompt(f"[{source}]")).start.tail.endswith(f"[{least}]")


def test_tools_are_not_defined():
    source = (
        TURNS + "{% if tools is defined or functions is defined and functions %}{{ raise_exception('x') }}{% endif %}"
    )
    assert ChatTemplate(source).render([{"role": "user", "content": "hi"}]) == "<|user|>hi<|end|>"


def test_text_between_thoughts_stays():
    assert without_thoughts("a<think>b</think>c<think></think>d</think>e") == "acde"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 9**9**9 }}",
        "{{ 'x'*3000000000 }}",
        "{{ [1]*3000000000 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
        "{% set n.x = y %}{% endfor %}",
        "{% set n = namespace(x=['x']) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
        "{% set n = namespace(x=1) %}{% for a in range(60) %}{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(100) }}",
        "{{ '%3000000000d' % 1 }}",
        "{{ '%*d' % (3000000000, 1) }}",
        "{{ '{:3000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 3000000000) }}",
        "{{ '%3000000000d' | format(1) }}",
        "{{ 'x' | indent(3000000000, true) }}",
        "{{ ('a'*99999).replace('a', 'b'*99999) }}",
        "{{ ('a'*99999) | replace('a', 'b'*99999) }}",
        "{{ ('a'*99999).join(['b']*99999) }}",
        "{{ (['b']*99999) | join('a'*99999) }}",
        "{{ [[1]] | tojson(indent=1000000000) }}",
        "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
        "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ strftime_now('%09999999d') }}",
    ],
)
def test_a_template_cannot_take_for_ever_or_all_memory(source, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.3)
    environment = TemplateEnvironment()
    with pytest.raises((TemplateLimitError, RecursionError)):
        environment.render_messages(environment.from_string(source), [{"role": "user", "content": "x"}], {})
    with pytest.raises(TemplateError, match=r"(?i)takes more|makes more|too (large|long|many)|recursion"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 'x'.ljust(9) }}",
    ],
)
def test_a_template_cannot_reach_python(source):
    with pytest.raises(TemplateError, match="SecurityError"):
        ChatTemplate(source)


def test_long_texts_are_not_taken_for_attacks():
    source = "{% for m in messages %}{{ m.content.replace('a', 'bb').strip().split('</x>')[-1] | trim }}{% endfor %}"
    text = "a </y> " * 150_000
    assert len(ChatTemplate(source).render([{"role": "user", "content": text}])) > len(text)


def test_a_template_may_stand_in_a_file(tmp_path):
    (tmp_path / "t.jinja").write_text(TURNS, encoding="utf-8")
    assert read_template(str(tmp_path / "t.jinja")) == read_template(TURNS) == TURNS
    for wrong in ("no such file", str(tmp_path)):
        with pytest.raises(TemplateError, match="no template, which has braces, and no file"):
            read_template(wrong)


def test_generation_tags_and_loop_controls_are_known():
    source = (
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% endfor %}"
    )
    assert ChatTemplate(source).render([{"role": "user", "content": "hi"}]) == "hi"


def test_dates_are_written_as_templates_ask():
    source = TURNS + "{{ strftime_now('%Y at 12:00, %d') }}"
    assert " at 12:00, " in ChatTemplate(source).render([{"role": "user", "content": "hi"}])
