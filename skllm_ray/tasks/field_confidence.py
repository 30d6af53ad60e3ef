"""How sure a model was of each value in an answer of JSON: from the probabilities of the tokens that wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from skllm_ray.tasks.base import Reply, answer_start

Span: TypeAlias = tuple[int, int]
"""Where a value begins and ends in a text, in characters."""

_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder(strict=False)


class Written:
    """An answer's text, and the probabilities of its tokens.

    Parameters
    ----------
    reply : Reply
        What the backend said.
    value : object
        What the task read of it; where it is not the first JSON value of the text, no probability is told.

    Examples
    --------
    >>> text = '{"name": "Ann", "age": 7}'
    >>> reply = Reply(text, token_log_probs=((9, 0.0), (14, np.log(0.5)), (23, 0.0), (25, np.log(0.25))))
    >>> written = Written(reply, {"name": "Ann", "age": 7})
    >>> {name: round(written.probability([span]), 2) for name, span in written.members().items()}
    {'name': 0.5, 'age': 0.25}
    """

    def __init__(self, reply: Reply, value: Any) -> None:
        self._tokens, self._text = reply.token_log_probs or (), reply.text or ""
        self._start = self._begin(value) if self._tokens else -1

    @property
    def is_known(self) -> bool:
        """Whether there are probabilities."""
        return self._start >= 0

    def members(self, at: int | None = None) -> dict[str | int, Span]:
        """Return where the values of an object or an array stand, by name or position.

        Parameters
        ----------
        at : int or None, default=None
            Where it begins; None is the answer itself.
        """
        text = self._text
        found: dict[str | int, Span] = {}
        at = self._start if at is None else at
        if text[at : at + 1] not in {"{", "["}:
            return {}
        has_names, at = text[at] == "{", self._behind_space(at + 1)
        while text[at] not in "}]":
            name: str | int = len(found)
            if has_names:
                name, at = _DECODER.raw_decode(text, at)
                at = self._behind_space(self._behind_space(at) + 1)
            _, end = _DECODER.raw_decode(text, at)
            found[name] = (at, end)
            at = self._behind_space(end)
            at = self._behind_space(at + 1) if text[at] == "," else at
        return found

    def probability(self, spans: Sequence[Span]) -> float:
        """Return how likely the tokens in some spans were, together, each after all that stands before it."""
        total, begun = 0.0, 0
        for end, log_prob in self._tokens:
            if any(begun < stop and start < end for start, stop in spans):
                total += log_prob
            begun = max(begun, end)
        return float(np.exp(total))

    def _begin(self, value: Any) -> int:
        opening = "[" if isinstance(value, list) else "{"
        at = self._text.find(opening, answer_start(self._text))
        while at >= 0:
            try:
                found = _DECODER.raw_decode(self._text, at)[0]
            except (ValueError, RecursionError):
                at = self._text.find(opening, at + 1)
                continue
            return at if found == value else -1
        return -1

    def _behind_space(self, at: int) -> int:
        while self._text[at] in _SPACE:
            at += 1
        return at


def without_tokens(reply: Reply) -> Reply:
    """Return a reply whose probabilities have been read, and need not travel on."""
    return reply if reply.token_log_probs is None else replace(reply, token_log_probs=None)
