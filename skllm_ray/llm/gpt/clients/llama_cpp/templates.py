"""Chat templates: what they render, and what they leave open before the answer.

Where the answer begins is asked of the template itself. It renders a conversation that ends with an answer, and one
with a thought before the answer; what it puts in between is its own form of both. A table of known forms serves where
it shows neither (:mod:`.thought_forms`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from skllm_ray.llm.gpt.clients.llama_cpp.thought_forms import (
    FORMS,
    MARKUP,
    ThoughtForm,
    closes,
    left_open,
    looks_open,
    without_thoughts,
)

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)
"""The template of models that come without one: the texts alone, and where the answer is to begin."""
_USER, _ANSWER, _THOUGHT = "4f6b2c1d", "9e1a7b3c", "5d8c0f2e"
_OFF: dict[str, Any] = {"enable_thinking": False, "thinking": False, "thinking_mode": "disabled", "thinking_budget": 0}
_ON: dict[str, Any] = {"enable_thinking": True, "thinking": True, "thinking_mode": "enabled"}
_EFFORTS = ("reasoning_effort", "reasoning_strength")
_LEAST = ("none", "no_think", "minimal", "low")
_SOME = ("medium", "high", "low")
_GIVEN_BY_US = ("messages", "add_generation_prompt", "bos_token", "eos_token")
_IS_DATA = re.compile(r"""['"](?:type|blocks)['"]""")  # a list of parts, written out as it stands
_MAX_TEMPLATE = 200_000  # characters: real ones have 17,000 at most


class TemplateError(Exception):
    """A template that cannot be used, with the reason."""

    def __init__(self, why: str, *, hopeless: bool = False) -> None:
        super().__init__(why)
        self.hopeless = hopeless
        """Whether it need not be tried with other variables."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where an answer begins."""

    suffix: str
    """What stands between the rendered prompt and the answer."""
    tail: str
    """The end of a prompt, from behind the user's text to where the answer begins."""
    understood: bool = True
    """Whether it is known that no thought and no header is open there."""


class ChatTemplate:
    """A chat template, with what turns thinking on or off in it.

    Parameters
    ----------
    source : str
        The template.
    bos, eos : str
        The texts of the model's tokens that begin and end a text.
    values : mapping of str to object
        Other variables; they override those that turn thinking off and on.
    thinking : bool
        Whether the model is to think.

    Raises
    ------
    TemplateError
        If it cannot be compiled, or does not show the user's text.
    """

    def __init__(
        self,
        source: str,
        bos: str = "",
        eos: str = "",
        values: Mapping[str, Any] | None = None,
        *,
        thinking: bool = False,
    ) -> None:
        from skllm_ray.llm.gpt.clients.llama_cpp.sandbox import TemplateEnvironment

        if len(source) > _MAX_TEMPLATE:
            raise TemplateError(f"it has {len(source):,} characters, more than {_MAX_TEMPLATE:,}")
        self.source = source
        self.thinking = thinking
        now = datetime.now()
        dates = {"datetime": f"{now:%b %d %Y}", "date_string": f"{now:%d %b %Y}", "functions": ""}
        self._fixed = {**dates, "bos_token": bos, "eos_token": eos}
        self._asked = dict(values or {})
        self._environment = TemplateEnvironment()
        try:
            self._template: Any = self._environment.from_string(source)
        except Exception as error:  # noqa: BLE001 - jinja2 and Python raise what the template makes them stumble over
            raise TemplateError(_reason(error)) from None
        self._in_parts = False
        self._values: dict[str, Any] = {}
        self._choose()
        self._takes_system = self._shows("system")
        self._before = ""
        self._own = self._own_form()
        self._forms = FORMS if self._own is None else (self._own, *FORMS)
        self.start = self._find_start()
        self.thought = self._find_thought() if thinking else None
        """How a thought is written behind a rendered prompt; None where none is asked for, or no form is known."""

    @property
    def forms(self) -> Sequence[ThoughtForm]:
        """The forms of thoughts that its model may write: its own first."""
        return self._forms

    @property
    def markup(self) -> set[str]:
        """What the template itself writes that looks like a control token."""
        return {found.group() for found in MARKUP.finditer(self.source)}

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt of `messages`, up to where the template ends it.

        Raises
        ------
        TemplateError
            If the template refuses the messages, takes too long, or makes too much.
        """
        return self._rendered(messages if self._takes_system else fold_system(messages))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = True) -> str:
        shaped: Sequence[Mapping[str, Any]] = messages
        if self._in_parts:
            shaped = [
                {**message, "content": [{"type": "text", "text": message["content"]}]}
                if isinstance(message["content"], str)
                else message
                for message in messages
            ]
        values = {**self._fixed, **self._values, **self._asked, "add_generation_prompt": prompt}
        from skllm_ray.llm.gpt.clients.llama_cpp.sandbox import TemplateLimitError

        try:
            return self._environment.render_messages(self._template, shaped, values)
        except Exception as error:  # noqa: BLE001 - a template may raise whatever it likes
            raise TemplateError(_reason(error), hopeless=isinstance(error, TemplateLimitError)) from None

    def _choose(self) -> None:
        """Take the first variables, and the first form of contents, with which the template shows a text."""
        why = ""
        found: list[tuple[bool, dict[str, Any]]] = []
        for in_parts in (False, True):
            for values in self._candidates():
                self._in_parts, self._values = in_parts, values
                try:
                    prompt = self._rendered([{"role": "user", "content": _USER}])
                except TemplateError as error:
                    if error.hopeless:
                        raise
                    why = why or str(error)
                    continue
                if _USER not in prompt:
                    why = why or "it leaves the user's text out"
                    continue
                if self._fits(prompt.rpartition(_USER)[2]):
                    return
                found.append((in_parts, values))
            if found:
                break
        if not found:
            raise TemplateError(why)
        self._in_parts, self._values = found[0]

    def _fits(self, tail: str) -> bool:
        """Return whether a prompt's end is what was asked for: with a thought, or without one."""
        is_open = left_open(tail) is not None
        return not self.thinking or is_open or not closes(tail)

    def _candidates(self) -> Iterator[dict[str, Any]]:
        used = {name for name in (*_OFF, *_EFFORTS) if re.search(rf"\b{name}\b", self.source)}
        switches = {name: value for name, value in (_ON if self.thinking else _OFF).items() if name in used}
        efforts = [name for name in _EFFORTS if name in used]
        values = [
            value for value in (_SOME if self.thinking else _LEAST) if re.search(rf"['\"]{value}['\"]", self.source)
        ]
        levels = [dict.fromkeys(efforts, value) for value in values or (() if self.thinking else ("low",))]
        for level in [{}, *levels] if self.thinking else [*levels, {}]:
            yield switches | level
        yield {}

    def _shows(self, role: str) -> bool:
        """Return whether the template shows a message of `role` before the user's."""
        try:
            return _ANSWER in self._rendered([{"role": role, "content": _ANSWER}, {"role": "user", "content": _USER}])
        except TemplateError:
            return False

    @property
    def _tail(self) -> str:
        return self._rendered([{"role": "user", "content": _USER}]).rpartition(_USER)[2]

    def _answered(self) -> str | None:
        """Return what the template writes between the user's text and an answer, or None if it shows no answer."""
        found = self._between({"content": _ANSWER}, _ANSWER)
        return None if found is None or left_open(found) else found  # some go on with a last answer, thought and all

    def _between(self, fields: Mapping[str, Any], mark: str) -> str | None:
        messages = [{"role": "user", "content": _USER}, {"role": "assistant", **fields}]
        try:
            shown = self._rendered(messages, prompt=False)
        except TemplateError:
            return None
        _, found, rest = shown.rpartition(_USER)
        return rest.partition(mark)[0] if found and mark in rest else None

    def _own_form(self) -> ThoughtForm | None:
        """Return the form in which the template shows a thought before an answer, if it shows any."""
        parts = [{"type": "thinking", "thinking": _THOUGHT}, {"type": "text", "text": _ANSWER}]
        blocks = [{"type": "thoughts", "text": _THOUGHT}, {"type": "response", "text": _ANSWER}]
        fields: list[dict[str, Any]] = [
            {name: _THOUGHT, "content": _ANSWER} for name in ("reasoning_content", "reasoning", "thinking")
        ]
        for one in [*fields, {"content": parts}, {"content": {"blocks": blocks}}]:
            text = self._between(one, _ANSWER)
            before, found, closing = (text or "").partition(_THOUGHT)
            if found and closing.strip() and not _IS_DATA.search(before + closing):
                self._before = before
                return _form_of(before, closing, self._answered() or "")
        return None

    def _find_start(self) -> Start:
        tail, answered = self._tail, self._answered()
        form = self._opened(tail)
        if form is not None:
            suffix = form.closing
        elif self.thinking:
            suffix = ""
        else:
            suffix = _header(tail, answered, self._forms) or self._empty_thought(tail, answered)
        whole = tail + suffix
        return Start(suffix, whole, left_open(whole, self._forms) is None and not looks_open(whole))

    def _opened(self, tail: str) -> ThoughtForm | None:
        """Return how to go on with the thought that a prompt leaves open, or None."""
        form = left_open(tail, self._forms)
        return None if form is None else self._whole(tail, form)

    def _whole(self, before: str, form: ThoughtForm) -> ThoughtForm:
        """Return the form with all that stands between a thought, opened at the end of `before`, and the answer."""
        own = self._own
        if own is not None and own.ending == form.ending:
            return ThoughtForm("", own.ending, own.closing)
        closing = form.closed(before)
        return ThoughtForm("", form.ending, closing + _header(before + closing, self._answered(), self._forms).lstrip())

    def _empty_thought(self, tail: str, answered: str | None) -> str:
        """Return an empty thought, where the model begins with one and nothing in the prompt forbids it."""
        opening = self._own_opening(tail)
        if self._own is None or not opening or closes(tail, self._forms) or answered is None or self._has_switch():
            return ""
        return opening + self._own.closing

    def _own_opening(self, tail: str) -> str:
        """Return what opens the template's own form of a thought behind `tail`; empty where it does not fit there."""
        return self._before[len(tail) :] if self._before.startswith(tail) else ""

    def _has_switch(self) -> bool:
        """Return whether a prompt with thinking turned on differs from one with thinking turned off."""
        messages = [{"role": "user", "content": _USER}]
        off, values = self._rendered(messages), self._values
        try:
            self._values = {name: value for name, value in _ON.items() if name in values}
            return self._rendered(messages) != off
        except TemplateError:
            return False
        finally:
            self._values = values

    def _find_thought(self) -> ThoughtForm | None:
        tail = self._tail
        form = self._opened(tail)
        if form is not None:
            return form
        opening = self._own_opening(tail)
        if self._own is not None and opening:
            return ThoughtForm(opening, self._own.ending, self._own.closing)
        for form in FORMS:
            if form.ending in self.source and form.opening.strip() in self.source:
                opening = form.opening
                if any(opening + newline in self.source for newline in ("\n", "\\n")):
                    opening += "\n"
                return replace(self._whole(tail + opening, form), opening=opening)
        return None


def _form_of(before: str, closing: str, answered: str) -> ThoughtForm:
    """Return the form of a thought that stands between `before` and `closing`, where no thought is `answered`."""
    for form in FORMS:
        if closing.lstrip().startswith(form.ending) and before.rstrip().endswith(form.opening.strip()):
            return replace(form, closing=closing)
    marks = list(MARKUP.finditer(before))
    at = _shared(before, answered)
    at = min([at, *(mark.start() for mark in marks if mark.start() < at < mark.end())])
    opening = before[at:].strip() or (marks[-1].group() if marks else before)
    first = MARKUP.search(closing)
    return ThoughtForm(opening, first.group() if first else closing.strip(), closing)


def _shared(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _header(tail: str, answered: str | None, forms: Sequence[ThoughtForm]) -> str:
    """Return what the template writes before an answer and leaves out of a prompt: a channel, a recipient."""
    if answered is None:
        return ""
    if answered.startswith(tail):
        return answered[len(tail) :]
    base, whole = without_thoughts(tail, forms).rstrip(), without_thoughts(answered, forms).rstrip()
    if whole.startswith(base):
        return whole[len(base) :]
    starts = [mark.start() for mark in MARKUP.finditer(answered)]
    for last, at in reversed(list(itertools.pairwise(starts))):  # a thought in a turn of its own stands in between
        if tail.endswith(answered[last:at]):
            return answered[at:]
    return ""


def read_template(given: str) -> str:
    """Return a template that is given as text, or as the path of a file that holds it.

    Raises
    ------
    TemplateError
        If the file cannot be read.
    """
    if "{" in given or "\n" in given:
        return given
    try:
        path = Path(given).expanduser()
        if path.stat().st_size > 4 * _MAX_TEMPLATE:
            raise TemplateError("the file is too large")
        return path.read_text("utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        why = _reason(error)
        raise TemplateError(f"it is no template, which has braces, and no file that can be read: {why}") from None


def reserved(values: Mapping[str, Any]) -> list[str]:
    """Return which of `values` a template may not be given, because this library gives them."""
    return [name for name in values if name in _GIVEN_BY_US]


def fold_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the system text at the head of the first user message, for models without a system role."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    others = [dict(message) for message in messages if message["role"] != "system"]
    if system and others:
        others[0]["content"] = f"{system}\n\n{others[0]['content']}"
    return others


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "TemplateLimitError" else f"{type(error).__name__}: {text[:300]}"
