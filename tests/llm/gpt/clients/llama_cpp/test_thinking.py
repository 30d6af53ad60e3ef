"""Thinking before an answer, with thoughts that a script puts in the demo model's mouth."""

from __future__ import annotations

import json
import warnings

import gguf
import pytest

from skllm_ray.errors import ConfigurationError, SkllmRayWarning
from skllm_ray.llm.gpt.clients.llama_cpp.backend import GGUFBackend
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import DEMO_FILE
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.generation import Generator
from skllm_ray.llm.gpt.clients.llama_cpp.options import GGUFOptions
from skllm_ray.tasks import ChatRequest, Choices, PromptStyle
from tests.llm.gpt.clients.llama_cpp.test_engine import expected_log_probs, rewritten

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
NAMED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BRACKETS = NAMED.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|over|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|over|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|over|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
KINDS = {
    "named": (NAMED, ("<think>", "</think>"), "</think>"),
    "brackets": (BRACKETS, ("[THINK]", "[/THINK]"), "[/THINK]"),
    "channels": (CHANNELS, ("<|start|>", "<|channel|>", "<|message|>", "<|over|>"), "<|over|>"),
    "no token of its own": (NAMED, (), "</think>"),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """A model of each kind of thought, and how it ends one."""
    template, controls, ending = KINDS[request.param]
    path = rewritten(tmp_path_factory.mktemp("kind") / "model.gguf", template, controls=controls)
    opened = GGUFBackend(path, "gguf::test", 0, 1)
    yield opened, ending
    opened.close()


def script(monkeypatch, *texts):
    """Let the calls of a generator write `texts`, one per call, and then end; grammars choose for themselves."""
    calls = iter(texts)
    current = {}
    generate, step, choose = Generator.generate, Generator._step, Generator._choose

    def scripted_generate(self, *args, **kwargs):
        current["text"] = next(calls)
        current["tokens"] = self._engine.tokenize(current["text"] or "")
        return generate(self, *args, **kwargs)

    def scripted_step(self, slot, logits):
        current["slot"] = slot
        return step(self, slot, logits)

    def scripted_choose(self, grammar, logits):
        if current["text"] is None or grammar is not None:
            return choose(self, grammar, logits)
        tokens, n = current["tokens"], current["slot"].n_written
        return tokens[n] if n < len(tokens) else self._engine.lib.llama_vocab_eos(self._engine.vocab)

    monkeypatch.setattr(Generator, "generate", scripted_generate)
    monkeypatch.setattr(Generator, "_step", scripted_step)
    monkeypatch.setattr(Generator, "_choose", scripted_choose)


def ask(text, choices=None, think=0, **options):
    style = PromptStyle(think=think)
    return ChatRequest(({"role": "user", "content": text},), choices, style=style, **options)


LABELS = Choices(("positive", "negative"))
THOUGHT = "Well, it is good. "


def test_labels_are_scored_after_the_thought(kind, monkeypatch):
    backend, ending = kind
    script(monkeypatch, THOUGHT + ending, THOUGHT)
    ended, cut = (backend.complete([ask("I love it", LABELS, think=most)])[0] for most in (40, 3))
    (plain,) = backend.complete([ask("I love it", LABELS)])
    assert ended.error is cut.error is None
    chat = backend._chat(PromptStyle(think=40))
    assert chat.thought.ending == ending
    begun = chat.render(ask("I love it").messages) + chat.thought.opening

    class Brute(ChatFormat):
        def render(self, messages):
            return begun + THOUGHT + self.thought.closing

    engine = Engine(EngineOptions(backend._engine.options.path, n_threads=1))
    try:
        monkeypatch.setattr(
            "tests.llm.gpt.clients.llama_cpp.test_engine.ChatFormat", lambda one: Brute(one, PromptStyle(think=40))
        )
        expected = expected_log_probs(engine, ask("I love it", LABELS))
    finally:
        engine.close()
    assert ended.log_probs == pytest.approx(expected, abs=1e-3)
    assert ended.usage.completion_tokens > 3 == cut.usage.completion_tokens
    assert abs(ended.usage.prompt_tokens - plain.usage.prompt_tokens) <= 12
    assert plain.usage.completion_tokens == 0


def test_many_rows_think_at_once(kind, monkeypatch):
    backend, ending = kind
    script(monkeypatch, THOUGHT + ending)
    before = backend._writer().n_decodes
    replies = backend.complete([ask(f"text {i}", LABELS, think=30) for i in range(20)])
    assert all(reply.log_probs and reply.usage.completion_tokens > 4 for reply in replies)
    assert backend._writer().n_decodes - before < 40


def test_json_and_several_labels_follow_the_thought(kind, monkeypatch):
    backend, ending = kind
    script(monkeypatch, THOUGHT + ending, None, THOUGHT + ending)
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    (found,) = backend.complete([ask("I love it", json_schema=schema, think=30)])
    assert json.loads(found.text)["a"] in {"x", "y"}
    (several,) = backend.complete([ask("I love it", Choices(("a", "b"), multiple=True, max_labels=2), think=30)])
    assert set(json.loads(several.text)["label"]) <= {"a", "b"}
    assert several.usage.completion_tokens > 4


def test_thoughts_never_come_back_as_text(kind, monkeypatch):
    backend, ending = kind
    chat = backend._chat(PromptStyle())
    opening = chat.forms[0].opening
    closing = "<|over|><|start|>assistant<|channel|>final<|message|>" if ending == "<|over|>" else ending
    whole = f"{opening}Hm, a text.{closing}\nA summary."
    script(monkeypatch, whole, f"{opening}Hm, a", THOUGHT + ending, "A summary.", whole, "A [summary] <of> it.")
    (found,) = backend.complete([ask("a text")])
    assert found.text == "A summary."
    (unfinished,) = backend.complete([ask("a text")])
    assert unfinished.error.kind == "truncated" and "thought" in unfinished.error.message
    (thinking,) = backend.complete([ask("a text", think=40)])
    assert thinking.text == "A summary."
    (stopped,) = backend.complete([ask("a text", stop=(" sum",))])
    assert stopped.text == "A"
    (other,) = backend.complete([ask("a text")])
    assert other.text == "A [summary] <of> it."


def test_an_end_without_a_beginning_ends_a_thought(tmp_path, monkeypatch):
    template = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    opened = GGUFBackend(rewritten(tmp_path / "m.gguf", template, controls=("</think>",)), "gguf::test", 0, 1)
    script(monkeypatch, "Hm.</think>\n\nA summary.")
    try:
        assert opened.complete([ask("a text")])[0].text == "A summary."
    finally:
        opened.close()


def test_a_thought_leaves_room_for_the_answer(kind, monkeypatch):
    backend, _ = kind
    script(monkeypatch, "word " * 2000, "word " * 2000)
    near, _ = "word " * 600, None
    (found,) = backend.complete([ask(near, LABELS, think=5000)])
    assert found.error is None and found.usage.completion_tokens > 50
    (long,) = backend.complete([ask("word " * 3000, LABELS, think=50)])
    assert long.error.kind == "context_length"


def test_a_model_without_a_form_of_thought_says_so():
    opened = GGUFBackend(DEMO_FILE, "gguf::demo", 0, 1)
    try:
        with pytest.raises(ConfigurationError, match=r"'think'.*no form of a thought.*chat_template"):
            opened.complete([ask("x", LABELS, think=10)])
    finally:
        opened.close()


def test_what_a_text_cannot_write(tmp_path):
    controls = ("<|channel|>", "<think>", "<table>", "[INST]")
    template = (
        "<<SYS>>" + TURNS.replace("<|end|>", "[/INST]") + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    path = rewritten(tmp_path / "m.gguf", template, controls=controls, kind=4)  # user-defined tokens
    engine = Engine(EngineOptions(str(path), vocab_only=True))
    try:
        chat = ChatFormat(engine)
        text = "a <|channel|> b <think> c <table> d [/INST] e <|end|> f <unk> <|assistant|> <<SYS>>"
        prompt = chat.render(({"role": "user", "content": text},))
        written = prompt.partition("<|user|>")[2].rpartition("[/INST]")[0]
        kept = {mark for mark in (*controls, "[/INST]", "<|end|>", "<|assistant|>", "<SYS>") if mark in written}
        assert kept == {"<table>"}  # HTML is a text's own affair
        specials = set(engine.tokenize("<|channel|><think>"))
        assert not specials & set(chat.tokens(prompt))
    finally:
        engine.close()


def test_one_beginning_of_text(tmp_path):
    """Where the template writes the token that begins a text, and the tokenizer too, there is one."""
    template = "<|endoftext|>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}answer:"
    for add in (True, False):
        path = rewritten(tmp_path / f"{add}.gguf", template, controls=("<|endoftext|>",), bos=add)
        engine = Engine(EngineOptions(str(path), vocab_only=True))
        try:
            chat = ChatFormat(engine)
            bos = engine.lib.llama_vocab_bos(engine.vocab)
            prompt = chat.render(({"role": "user", "content": "hi"},))
            head, trie = chat.split(prompt, "key", lambda: [' {"a": "x"', ' {"a": "y"'])
            assert [*head, *trie.shared].count(bos) == chat.tokens(prompt).count(bos) == 1
            assert chat.tokens(prompt)[0] == bos
        finally:
            engine.close()


@pytest.mark.parametrize("prefix", [True, False])
def test_a_space_before_answers_is_there_once(tmp_path, prefix):
    """SentencePiece may put a space behind a control token by itself, and the template writes one."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    words = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *"▁x{h", "▁x", "▁{", "▁h"]
    kinds = [2, 3, 3, 3, 3, *[1] * 7]
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*words, *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * (len(words) + 256))
    writer.add_token_types([*kinds, *[6] * 256])
    writer.add_add_space_prefix(prefix)
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    engine = Engine(EngineOptions(str(tmp_path / "m.gguf"), vocab_only=True))
    try:
        chat = ChatFormat(engine)
        pieces = [engine.piece(token, special=True) for token in chat.tokens(chat.render(ask("x").messages) + "{")]
        assert pieces[-2:] == [b"[/INST]", b" {"]
    finally:
        engine.close()


def test_a_file_without_a_template_gets_a_plain_one(tmp_path):
    opened = GGUFBackend(rewritten(tmp_path / "m.gguf", ""), "gguf::test", 0, 1)
    try:
        with pytest.warns(SkllmRayWarning, match="no chat template.*chat_template"):
            (found,) = opened.complete([ask("I love it", LABELS)])
        assert found.log_probs
        style = PromptStyle(template="{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|>")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (own,) = opened.complete([ChatRequest(ask("I love it").messages, LABELS, style=style)])
        assert own.log_probs != found.log_probs
    finally:
        opened.close()


def test_a_row_that_the_template_refuses_is_one_error(tmp_path):
    template = (
        TURNS + "{% if 'awful' in messages[-1].content %}{{ raise_exception('not this') }}{% endif %}<|assistant|>"
    )
    opened = GGUFBackend(rewritten(tmp_path / "m.gguf", template), "gguf::test", 0, 1)
    try:
        one, other = opened.complete([ask("it is awful", LABELS), ask("fine", LABELS)])
        assert one.error.kind == "bad_request" and "not this" in one.error.message
        assert other.error is None
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"chat_template": "{% for %}"}, "TemplateSyntaxError"),
        ({"chat_template": "no/such/file"}, "no file that can be read"),
        ({"chat_template": "{{ 1 }}"}, "leaves the user's text out"),
        ({"chat_template": "{{ messages[0].content }}{{ 9**9**9 }}"}, "power"),
        ({"chat_template_kwargs": {"messages": []}}, "'messages'"),
        ({"chat_template_kwargs": {1: 2}}, "a dict of what JSON can hold"),
        ({"chat_template_kwargs": {"a": float("nan")}}, "a dict of what JSON can hold"),
        ({"chat_template": 5}, "a template, or the path"),
        ({"think": 0}, "positive int"),
        ({"think": True}, "positive int"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(options, why):
    with pytest.raises(ConfigurationError, match=why):
        GGUFOptions.parse(options)


def test_options_reach_the_prompt(tmp_path):
    (tmp_path / "t.jinja").write_text(TURNS + "{{ tone }}", encoding="utf-8")
    options = GGUFOptions.parse({"chat_template": str(tmp_path / "t.jinja"), "chat_template_kwargs": {"tone": "kind"}})
    engine = Engine(EngineOptions(str(DEMO_FILE), vocab_only=True))
    try:
        assert ChatFormat(engine, options.style).render(ask("hi").messages) == "<|user|>hi<|end|>kind"
    finally:
        engine.close()


@pytest.mark.parametrize("begins", [True, False])
def test_a_model_that_begins_with_a_thought_is_asked(tmp_path, monkeypatch, begins):
    """The template says nothing of thoughts; the model itself would begin with one, or would not."""
    template = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    path = rewritten(tmp_path / "m.gguf", template, controls=("<think>", "</think>"))
    decode = Engine.decode

    def decoded(self, batch):
        logits = decode(self, batch).copy()
        if begins and self.n_decoded < 200:
            logits[-1, self.tokenize("<think>")[0]] = 1000
        return logits

    monkeypatch.setattr(Engine, "decode", decoded)
    engine = Engine(EngineOptions(str(path), n_threads=1))
    try:
        prompt = ChatFormat(engine).render(ask("hi").messages)
        assert prompt.endswith("<|assistant|><think>\n\n</think>\n\n" if begins else "<|assistant|>")
        if begins:
            assert ChatFormat(engine, PromptStyle(think=5)).thought.opening == "<think>\n"
        else:
            with pytest.raises(ConfigurationError, match="no form of a thought"):
                ChatFormat(engine, PromptStyle(think=5))
    finally:
        engine.close()
