"""From messages to tokens: chat templates, and texts that cannot pass for control tokens."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, common_length
from skllm_ray.llm.gpt.clients.llama_cpp.scoring import Trie
from skllm_ray.tasks.base import Message

_KEPT_TRIES = 256
_WORD_JOINER = "\u2060"
_PROBE = "4f6b2c1d"
_CUT = re.compile(r"(?<!\s) (?=[A-Za-z])")
_WORTH_KEEPING = 200  # characters


class ChatFormat:
    """How one model wants a conversation written.

    Parameters
    ----------
    engine : Engine
        The loaded model; its file's own chat template is used.

    Raises
    ------
    ModelLoadError
        If the file has no chat template, or one that cannot be used.
    """

    def __init__(self, engine: Engine) -> None:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = engine.metadata("tokenizer.chat_template")
        if not template:
            raise ModelLoadError(
                f"{engine.options.path} has no chat template, so it cannot answer prompts.",
                "Use an instruction-tuned model; this one may serve for embeddings.",
            )
        self._engine = engine
        try:
            self._formatter: Any = Jinja2ChatFormatter(template, engine.special_text("eos"), engine.special_text("bos"))
        except Exception as error:  # noqa: BLE001 - jinja2 raises what the template makes it stumble over
            raise _unusable(engine, f"{type(error).__name__}: {error}") from None
        controls = engine.control_texts()
        self._control = re.compile("|".join(map(re.escape, controls))) if controls else None
        self._in_parts = self._takes_parts()
        self._takes_system = self._shows("system")
        self._separable: bool | None = None
        self._tries: dict[tuple[str, Hashable], Trie] = {}
        self._beginning = _SharedBeginning(engine)
        self._lock = threading.Lock()

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt up to where the answer begins."""
        clean = [{"role": message["role"], "content": self._defuse(message["content"])} for message in messages]
        return self._format(clean if self._takes_system else _fold_system(clean))

    def tokens(self, prompt: str) -> list[int]:
        """Return the tokens of a rendered prompt."""
        return self._with_bos(self._engine.tokenize(prompt))

    def split(self, prompt: str, key: Hashable, continuations: Callable[[], Sequence[str]]) -> tuple[list[int], Trie]:
        """Return the tokens of `prompt`, and the trie of its continuations, tokenised with it as one string.

        llama.cpp tokenises the stretches between control tokens one by one, so that what comes from the last control
        token on does not depend on the text before it: that part's trie is kept under `key`, and `continuations` is
        called only where it is not there. Whether a model's tokenizer really keeps them apart is tried once.
        """
        with self._lock:
            return self._split(prompt, key, continuations)

    def _split(self, prompt: str, key: Hashable, continuations: Callable[[], Sequence[str]]) -> tuple[list[int], Trie]:
        at = 0
        if self._control is not None and self._separable is not False:
            for match in self._control.finditer(prompt):
                at = match.start()
        head, rest = self._with_bos(self._beginning.tokens(prompt[:at])), prompt[at:]
        if not at:  # nothing to keep, the texts differ
            return head, self._trie(rest, continuations())
        trie = self._tries.get((rest, key))
        if trie is None:
            texts = continuations()
            if self._separable is None:
                whole = self._with_bos(self._engine.tokenize(prompt + texts[0]))
                self._separable = head + self._engine.tokenize(rest + texts[0]) == whole
                if not self._separable:
                    return self._split(prompt, key, continuations)
            if len(self._tries) >= _KEPT_TRIES:
                self._tries.clear()
            trie = self._tries[(rest, key)] = self._trie(rest, texts)
        return head, trie

    def _trie(self, rest: str, continuations: Sequence[str]) -> Trie:
        engine = self._engine
        return Trie([engine.tokenize(rest + text) for text in continuations], engine.n_outputs, engine.n_sequences - 1)

    def _with_bos(self, tokens: list[int]) -> list[int]:
        bos = self._engine.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def _defuse(self, content: str) -> str:
        """Break what the tokenizer would read as a control token: a text must not be able to end its own message."""
        if self._control is None:
            return content
        return self._control.sub(lambda match: match.group()[0] + _WORD_JOINER + match.group()[1:], content)

    def _format(self, messages: Sequence[dict[str, str]]) -> str:
        shaped: Any = messages
        if self._in_parts:
            shaped = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
        return str(self._formatter(messages=shaped).prompt)

    def _takes_parts(self) -> bool:
        """Return whether the template wants contents as lists of parts; raise if it shows a text in neither form."""
        why = ""
        for in_parts in (False, True):
            self._in_parts = in_parts
            try:
                if _PROBE in self._format([{"role": "user", "content": _PROBE}]):
                    return in_parts
                why = why or "it leaves the user's text out"
            except Exception as error:  # noqa: BLE001 - a template may raise whatever it likes
                why = why or f"{type(error).__name__}: {error}"
        raise _unusable(self._engine, why)

    def _shows(self, role: str) -> bool:
        """Return whether the template shows a message of `role` before the user's."""
        try:
            return _PROBE in self._format([{"role": role, "content": _PROBE}, {"role": "user", "content": "x"}])
        except Exception:  # noqa: BLE001 - templates refuse a role by raising whatever they like
            return False


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


def _unusable(engine: Engine, why: str) -> ModelLoadError:
    return ModelLoadError(
        f"The chat template in {engine.options.path} cannot be used: {why}.",
        "Another conversion of the model may carry a working one.",
    )


def _fold_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Put the system text at the head of the first user message, for models without a system role."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    others = [dict(message) for message in messages if message["role"] != "system"]
    if system and others:
        others[0]["content"] = f"{system}\n\n{others[0]['content']}"
    return others
