"""From messages to tokens: the prompt, what closes an open thought behind it, texts that are no control tokens."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from skllm_ray.errors import ConfigurationError, ModelLoadError, SkllmRayError
from skllm_ray.llm.gpt.clients.llama_cpp.decoding import common_length
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.templates import PLAIN, ChatTemplate, TemplateError
from skllm_ray.llm.gpt.clients.llama_cpp.thought_forms import FORMS, MARKUP, ThoughtForm, closes, no_form
from skllm_ray.llm.gpt.clients.llama_cpp.trie import Trie
from skllm_ray.tasks.base import Message, PromptStyle

_KEPT_TRIES = 256
_LONGEST_REST = 100  # characters behind the last control token; where there are more, a row's text may be among them
_KEPT_BEFORE_END = 2  # tokens of a prompt's end, before which nothing is seen to change how its continuation is cut
_WORD_JOINER = "\u2060"
_CUT = re.compile(r"(?<!\s) (?=[A-Za-z])")
_WORTH_KEEPING = 200  # characters
_BARS = re.compile(r"<\||\|>|<｜|｜>")
_PLAIN = re.compile(rf"{_BARS.pattern}|^\[|^</?[A-Z_]+>$")  # what structures prompts though it may be no token
_TAIL = 80  # characters that are shown of a prompt's end


class ChatFormat:
    """How one model wants a conversation written.

    Parameters
    ----------
    engine : Engine
        The loaded model; its file's own chat template is used, unless `style` has another.
    style : PromptStyle, optional
        What `request_options` says of the template, and whether the model thinks before it answers.

    Raises
    ------
    ModelLoadError
        If the file has a chat template that cannot be used.
    ConfigurationError
        If the options have one that cannot be used, or the model is to think and no form of a thought is known.
    """

    def __init__(self, engine: Engine, style: PromptStyle = PromptStyle()) -> None:  # noqa: B008 - it is frozen
        self._engine = engine
        self.notices: list[str] = []
        """What the user should know of the prompts."""
        self._template = self._compiled(style)
        self._bos = engine.bos
        self._bos_text = engine.special_text("bos")
        controls, others = engine.special_texts()
        self._control = _pattern([*controls, *(text for text in others if MARKUP.search(text))])
        self._told = _pattern([*controls, *self._markup(others)])
        if self._bos is None and self._bos_text and self._template.render([_PROBE]).startswith(self._bos_text):
            self._bos = engine.bos_token
        self._suffix, self.thought = self._template.start.suffix, self._template.thought
        self._suffix = self._spaced_once(self._suffix)
        self._ask_model()
        if style.think and self.thought is None and not engine.options.vocab_only:
            raise no_form(engine.options.path)
        self._separable: bool | None = None
        self._tries: dict[tuple[str, Hashable], Trie] = {}
        self._ends: dict[Hashable, _End] = {}
        self._beginning = _SharedBeginning(engine)
        self._lock = threading.Lock()

    @property
    def forms(self) -> Sequence[ThoughtForm]:
        """The forms of thoughts that the model may write."""
        return self._template.forms

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt up to where the answer begins, or, if the model is to think, its thought.

        Raises
        ------
        TemplateError
            If the template refuses the messages, or takes too long for them.
        """
        clean = [{"role": message["role"], "content": self._defuse(message["content"])} for message in messages]
        prompt = self._template.render(clean)
        while self._bos_text and prompt.startswith(self._bos_text):  # exactly one, and the tokenizer's
            prompt = prompt[len(self._bos_text) :]
        return prompt + self._suffix

    def _compiled(self, style: PromptStyle) -> ChatTemplate:
        engine = self._engine
        source = style.template or engine.metadata("tokenizer.chat_template")
        if not source:
            source = PLAIN
            self.notices.append(
                f"{engine.options.path} has no chat template, as base models have none. Prompts are written plainly: "
                "the texts, then 'Answer:'. If the model was tuned on another form, give it that: "
                "request_options={'chat_template': …}."
            )
        given = "the template of request_options" if style.template else f"the chat template in {engine.options.path}"
        values, thinking = json.loads(style.values), style.think > 0
        bos, eos = engine.special_text("bos"), engine.special_text("eos")
        try:
            template = ChatTemplate(source, bos, eos, values, thinking=thinking)
        except TemplateError as error:
            raise self._unusable(given, style, str(error)) from None
        if not template.start.understood:
            self.notices.append(
                f"{given[0].upper()}{given[1:]} ends its prompts in a form that is not understood: "
                f"{template.start.tail[-_TAIL:]!r}. If a thought or a header is open there, answers are scored in the "
                "wrong place. request_options takes 'chat_template_kwargs' to turn thinking off, and 'chat_template'."
            )
        return template

    def _ask_model(self) -> None:
        """Where the template is silent on thoughts, see whether the model begins its answer with one."""
        template, engine = self._template, self._engine
        silent = not self._suffix and self.thought is None and not closes(template.start.tail, template.forms)
        openings = {text: form for form in FORMS for text in [form.opening.strip().encode()]}
        if not silent or engine.options.vocab_only or openings.keys().isdisjoint(engine.marked_pieces.values()):
            return
        tokens = self.tokens(self.render(_QUESTION))
        if len(tokens) >= engine.n_ctx:
            return
        engine.forget()
        batch = engine.new_batch()
        batch.add(tokens, 0, 0, last_wanted=True)
        likeliest = int(engine.decode(batch)[-1].argmax())
        engine.forget()
        form = openings.get(engine.marked_pieces.get(likeliest, b""))
        if form is None:
            return
        opening = form.opening if form.opening.endswith("\n") else f"{form.opening}\n"
        if template.thinking:
            self.thought = ThoughtForm(opening, form.ending, form.closed(opening))
        else:
            self._suffix = opening + form.closed(opening)

    def _spaced_once(self, suffix: str) -> str:
        """Return `suffix` without its first space, where the tokenizer puts one behind a control token by itself."""
        tail = self._template.start.tail.removesuffix(suffix)
        last = [found.group() for found in self._control.finditer(tail)][-1:] if self._control is not None else []
        if not suffix.startswith(" ") or not last or not tail.endswith(last[0]):
            return suffix
        behind = self._engine.tokenize(f"{last[0]}x")[1:]
        return suffix[1:] if behind and self._engine.piece(behind[0]).startswith(b" ") else suffix

    def _unusable(self, given: str, style: PromptStyle, why: str) -> SkllmRayError:
        message = f"{given[0].upper()}{given[1:]} cannot be used: {why}."
        if style.template or style.values != "{}":
            hint = "Check 'chat_template' and 'chat_template_kwargs' of request_options."
            return ConfigurationError(message, hint)
        hint = "Another conversion may carry a working one, or give one: request_options={'chat_template': …}."
        return ModelLoadError(message, hint)

    def _markup(self, others: Iterable[str]) -> set[str]:
        """Return what else a text must not be able to write: what structures prompts, whatever kind of token it is.

        Of the tokens that a model's authors added, those with bars, those that its template writes, and those of
        thoughts. Others stay as they are: Gemma has such tokens for white space and for HTML, which texts are full of.
        """
        marks = self._template.markup
        thoughts = {mark for form in FORMS for mark in (form.opening, form.ending) if MARKUP.fullmatch(mark)}
        structural = {text for text in others if _BARS.search(text) or text in marks or text in thoughts}
        return structural | {mark for mark in marks if _PLAIN.search(mark) or mark in thoughts}

    def tokens(self, prompt: str) -> list[int]:
        """Return the tokens of a rendered prompt."""
        return self._with_bos(self._engine.tokenize(prompt))

    def split(
        self, prompt: str, key: Hashable, continuations: Callable[[], Sequence[str]], opening: str | None = None
    ) -> tuple[list[int], Trie]:
        """Return the tokens of `prompt`, and the trie of its continuations, tokenised with it as one string.

        `opening` is the beginning of all continuations whose probability is to be left out of the scores; None leaves
        out that of all tokens that they share, which spares the most logits.

        llama.cpp tokenises the stretches between control tokens one by one, so that what comes from the last control
        token on does not depend on the text before it: that part's trie is kept under `key`, and `continuations` is
        called only where it is not there. Whether a model's tokenizer really keeps them apart is tried once. Where the
        text stands behind the last control token, as in Llama 2's prompts, see `_split_behind`.
        """
        with self._lock:
            return self._split(prompt, key, continuations, opening)

    def _split(
        self, prompt: str, key: Hashable, continuations: Callable[[], Sequence[str]], opening: str | None
    ) -> tuple[list[int], Trie]:
        at = 0
        if self._control is not None and self._separable is not False:
            for match in self._control.finditer(prompt):
                at = match.start()
        if not at or len(prompt) - at > _LONGEST_REST:
            return self._split_behind(prompt, key, continuations, opening)
        head, rest = self._with_bos(self._beginning.tokens(prompt[:at])), prompt[at:]
        trie = self._tries.get((rest, key))
        if trie is None:
            texts = continuations()
            if self._separable is None:
                whole = self._with_bos(self._engine.tokenize(prompt + texts[0]))
                self._separable = head + self._engine.tokenize(rest + texts[0]) == whole
                if not self._separable:
                    return self._split(prompt, key, continuations, opening)
            if len(self._tries) >= _KEPT_TRIES:
                self._tries.clear()
            opened = None if opening is None else self._engine.tokenize(rest + opening)
            trie = self._trie([self._engine.tokenize(rest + text) for text in texts], opened)
            self._tries[(rest, key)] = trie
        return head, trie

    def _trie(self, continuations: Sequence[Sequence[int]], opened: Sequence[int] | None) -> Trie:
        most_shared = None if opened is None else common_length(opened, continuations[0])
        return Trie(continuations, self._engine.n_outputs, self._engine.n_sequences - 1, most_shared)

    def _split_behind(
        self, prompt: str, key: Hashable, continuations: Callable[[], Sequence[str]], opening: str | None
    ) -> tuple[list[int], Trie]:
        """Split where no control token does, a few tokens before the prompt's end.

        The continuations' tokens are kept with those few. They hold for another prompt if its tokens, with the first
        continuation behind it, end in the same ones: what differs stands further away.
        """
        kept = self._ends.get(key)
        if kept is not None:
            whole = self._with_bos(self._beginning.tokens(prompt + kept.first))
            at = len(whole) - len(kept.tokens)
            if at > 0 and whole[at:] == kept.tokens:
                return whole[:at], kept.trie
        texts = continuations()
        wholes = [self._with_bos(self._beginning.tokens(prompt + text)) for text in texts]
        bare = self._with_bos(self._beginning.tokens(prompt))
        at = min(common_length(bare, whole) for whole in wholes) - _KEPT_BEFORE_END
        opened = None if opening is None else self._with_bos(self._beginning.tokens(prompt + opening))
        if at <= 0:
            return [], self._trie(wholes, opened)
        trie = self._trie([whole[at:] for whole in wholes], opened and opened[at:])
        if len(self._ends) >= _KEPT_TRIES:
            self._ends.clear()
        self._ends[key] = _End(texts[0], wholes[0][at:], trie)
        return wholes[0][:at], trie

    def _with_bos(self, tokens: list[int]) -> list[int]:
        return tokens if self._bos is None else [self._bos, *tokens]

    def _defuse(self, content: str) -> str:
        """Break what the tokenizer would read as a control token: a text must not be able to end its own message."""
        if self._told is None:
            return content
        return self._told.sub(lambda match: match.group()[0] + _WORD_JOINER + match.group()[1:], content)


class Prompts:
    """The prompts of one call, each rendered once, with the thoughts that were added to them.

    Parameters
    ----------
    chat : ChatFormat
        What renders them.
    """

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._rendered: dict[int, tuple[Sequence[Message], str]] = {}
        self.tokens = chat.tokens
        self.split = chat.split
        self.forms = chat.forms

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt of `messages` up to where the answer begins."""
        kept = self._rendered.get(id(messages))
        if kept is None:
            kept = self._rendered[id(messages)] = (messages, self._chat.render(messages))
        return kept[1]

    def put(self, messages: Sequence[Message], prompt: str) -> None:
        """Let `prompt` be that of `messages` from here on."""
        self._rendered[id(messages)] = (messages, prompt)


@dataclass(frozen=True, slots=True)
class _End:
    """What stands behind the last tokens of prompts that end alike."""

    first: str
    """The first continuation."""
    tokens: list[int]
    """Its tokens, and those of the prompt's end."""
    trie: Trie


class _SharedBeginning:
    """Tokenises texts that begin alike, the beginning once: a prompt's instructions are often most of it.

    A text is cut before a space that stands between a word and a letter. There tokenizers cut it as well, unless a
    token reaches over such a space; whether the tokens are those of the whole text is tried whenever the beginning
    changes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cuts = engine.parts_at_spaces
        self._text = ""
        self._tokens: list[int] = []
        self._before = ""

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of `text`."""
        rest = text[len(self._text) :]
        if self._text and text.startswith(self._text) and _CUT.match(rest):
            return self._tokens + self._engine.tokenize(rest)
        whole = self._engine.tokenize(text)
        if self._cuts:
            self._begin(text, whole)
        return whole

    def _begin(self, text: str, whole: list[int]) -> None:
        length = common_length(text, self._text)
        if length < _WORTH_KEEPING:  # no row of the same kind, or the first one
            length = common_length(text, self._before)
        self._before, self._text = text, ""
        cuts = [match.start() for match in _CUT.finditer(text, 0, length)]
        if cuts and cuts[-1] >= _WORTH_KEEPING:
            tokens = self._engine.tokenize(text[: cuts[-1]])
            self._cuts = tokens + self._engine.tokenize(text[cuts[-1] :]) == whole
            if self._cuts:
                self._text, self._tokens = text[: cuts[-1]], tokens


def _pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds any of `texts`, the longest first; a tree, since there may be thousands."""
    tree: dict[str, Any] = {}
    for text in texts:
        if len(text) > 1:
            node = tree
            for character in text:
                node = node.setdefault(character, {})
            node[""] = {}
    return re.compile(_branches(tree)) if tree else None


def _branches(node: dict[str, Any]) -> str:
    ways = [re.escape(character) + _branches(rest) for character, rest in node.items() if character]
    if not ways:
        return ""
    together = ways[0] if len(ways) == 1 and "" not in node else f"(?:{'|'.join(ways)})"
    return f"{together}?" if "" in node else together


_PROBE: Message = {"role": "user", "content": "x"}
_QUESTION: tuple[Message, ...] = (
    {"role": "system", "content": "You classify texts. Answer in JSON."},
    {"role": "user", "content": "Is this text about money or about music? 'My card was declined.'"},
)
