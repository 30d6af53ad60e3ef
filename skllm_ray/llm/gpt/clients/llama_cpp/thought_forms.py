"""How models write down what they think before they answer: where such a thought begins, where it ends, what follows.

A chat template that shows thoughts tells its form by itself (:mod:`.templates` asks it). This is the table of the forms
that are known besides, for templates that only open a thought, or that leave it to the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from skllm_ray.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ThoughtForm:
    """How a thought is written."""

    opening: str
    """What begins it."""
    ending: str
    """What ends it, as far as it tells that the thought is over: the model writes it."""
    closing: str = ""
    """All that stands between the thought and the answer; the ending by itself where nothing else is known."""

    def closed(self, before: str) -> str:
        """Return what to put behind `before`, which ends within a thought, so that the answer may begin."""
        if self.closing:
            return self.closing
        return f"\n{self.ending}\n\n" if before.endswith("\n") else self.ending


_NAMED = ("think", "thinking", "thought", "reasoning", "reason", "analysis", "reflection", "seed:think", "mm:think")
FORMS: tuple[ThoughtForm, ...] = (
    *(ThoughtForm(f"<{name}>", f"</{name}>") for name in _NAMED),
    ThoughtForm("<think:opensource>", "</think:opensource>"),
    ThoughtForm("[THINK]", "[/THINK]"),
    ThoughtForm("<|START_THINKING|>", "<|END_THINKING|>"),
    ThoughtForm("<|inner_prefix|>", "<|inner_suffix|>"),
    ThoughtForm("<|channel>thought\n", "<channel|>", "<channel|>"),
    ThoughtForm("<|channel|>analysis<|message|>", "<|end|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ThoughtForm("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    ThoughtForm("<|begin_of_thought|>", "<|end_of_thought|>"),
    ThoughtForm("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]", "\n[BEGIN FINAL RESPONSE]\n"),
)
"""The forms that are known. A new family of models is one more line."""
WRAPPERS = (("<response>", "</response>"), ("<answer>", "</answer>"), ("", "[END FINAL RESPONSE]"))
"""What some models put around the answer that follows a thought."""
MARKUP = re.compile(r"<[^<>\n]{1,60}>|\[/?[A-Z][A-Z _]{1,40}\]|\][~!]b\[?\]?|\[e~\[")
"""What looks like a control token in a template's text."""
_THINKS = re.compile(r"(?i)think|thought|reason|reflect|analy[sz]|deliberat|\bcot\b")


def left_open(text: str, forms: Sequence[ThoughtForm] = FORMS) -> ThoughtForm | None:
    """Return the form of the thought that `text` leaves open, or None.

    Examples
    --------
    >>> left_open("<|assistant|><think>").ending
    '</think>'
    >>> left_open("<think></think>") is None
    True
    """
    found, at = None, -1
    for form in forms:
        begins = text.rfind(form.opening)
        if begins > at and form.ending not in text[begins + len(form.opening) :]:
            found, at = form, begins
    if found is not None and any(form.ending in text[at + len(found.opening) :] for form in forms):
        return None
    return found


def without_thoughts(text: str, forms: Sequence[ThoughtForm] = FORMS) -> str:
    """Return `text` without the thoughts that it opens and closes, and without endings that stand alone."""
    for form in forms:
        opening, ending = re.escape(form.opening), re.escape(form.ending)
        text = re.sub(rf"\s*(?:{opening}(?:(?!{opening}).)*?)?{ending}\s*", "", text, flags=re.DOTALL)
    return text


def closes(text: str, forms: Sequence[ThoughtForm] = FORMS) -> bool:
    """Return whether `text` holds the end of a thought."""
    return any(form.ending in text for form in forms if form.ending != "<|end|>")


def looks_open(tail: str) -> bool:
    """Return whether the end of a prompt looks as if a thought, in a form that is not known, were open in it."""
    last = [found.group() for found in MARKUP.finditer(tail)][-2:]
    marks = [mark for mark in last if _THINKS.search(mark)]
    return bool(marks) and not marks[-1].startswith(("</", "[/")) and "END" not in marks[-1].upper()


def no_form(model: str) -> ConfigurationError:
    """Return the error of a model that is asked to think and has no form for it."""
    return ConfigurationError(
        f"request_options={{'think': …}}: the chat template of {model} knows no form of a thought.",
        "Leave 'think' out, or take a reasoning model. A template that thinks may be given as 'chat_template', or what "
        "turns thinking on in this one as 'chat_template_kwargs'.",
    )
