"""From messages to tokens: chat templates, and texts that cannot pass for control tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.scoring import Trie
from skllm_ray.tasks.base import Message

_KEPT_TRIES = 256
_WORD_JOINER = "\u2060"


class ChatFormat:
    """How one model wants a conversation written.

    Parameters
    ----------
    engine : Engine
        The loaded model; its file's own chat template is used.

    Raises
    ------
    ModelLoadError
        If the file has no chat template.
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
        self._formatter: Any = Jinja2ChatFormatter(template, engine.special_text("eos"), engine.special_text("bos"))
        controls = engine.control_texts()
        self._control = re.compile("|".join(map(re.escape, controls))) if controls else None
        self._takes_system = self._has_system_role()
        self._tries: dict[tuple[str, Hashable], Trie] = {}

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt up to where the answer begins."""
        clean = [{"role": message["role"], "content": self._defuse(message["content"])} for message in messages]
        if not self._takes_system:
            clean = _fold_system(clean)
        return str(self._formatter(messages=clean).prompt)

    def tokens(self, prompt: str) -> list[int]:
        """Return the tokens of a rendered prompt."""
        return self._with_bos(self._engine.tokenize(prompt))

    def split(self, prompt: str, key: Hashable, continuations: Callable[[], Sequence[str]]) -> tuple[list[int], Trie]:
        """Return the tokens of `prompt`, and the trie of its continuations, tokenised with it as one string.

        llama.cpp tokenises the stretches between control tokens one by one, so that what follows the last control
        token does not depend on the text before it: that part's trie is kept under `key`, and `continuations` is
        called only where it is not there.
        """
        at = 0
        if self._control is not None:
            for match in self._control.finditer(prompt):
                at = match.end()
        head, rest = self._with_bos(self._engine.tokenize(prompt[:at])), prompt[at:]
        if not at:  # no control token at all: nothing to keep, the texts differ
            return head, self._trie(rest, continuations())
        trie = self._tries.get((rest, key))
        if trie is None:
            if len(self._tries) >= _KEPT_TRIES:
                self._tries.clear()
            trie = self._tries[(rest, key)] = self._trie(rest, continuations())
        return head, trie

    def _trie(self, rest: str, continuations: Sequence[str]) -> Trie:
        return Trie([self._engine.tokenize(rest + text) for text in continuations], self._engine.n_outputs)

    def _with_bos(self, tokens: list[int]) -> list[int]:
        bos = self._engine.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def _defuse(self, content: str) -> str:
        """Break what the tokenizer would read as a control token: a text must not be able to end its own message."""
        if self._control is None:
            return content
        return self._control.sub(lambda match: match.group()[0] + _WORD_JOINER + match.group()[1:], content)

    def _has_system_role(self) -> bool:
        probe = "4f6b2c1d"
        messages = [{"role": "system", "content": probe}, {"role": "user", "content": "x"}]
        try:
            return probe in self._formatter(messages=messages).prompt
        except Exception:  # noqa: BLE001 - templates refuse a role by raising whatever they like
            return False


def _fold_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Put the system text at the head of the first user message, for models without a system role."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    others = [dict(message) for message in messages if message["role"] != "system"]
    if system and others:
        others[0]["content"] = f"{system}\n\n{others[0]['content']}"
    return others
