"""How many tokens an answer may have, so that no model writes white space until its context ends. No SDK here.

An answer of a form has a bound: a label's from the longest label, an object's as its task knows it. One that a bound
cut off is asked for again: without the bound where the model thinks first, under a higher one where an object had not
come to its end. The first row that this helps teaches it to all others. What is lost in white space is not asked again.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from typing import Final

from skllm_ray.llm.api.answers import Answer
from skllm_ray.tasks.base import ChatRequest, Choices, RowError

UNBOUNDED: Final = "bound of answers"
"""What a model does not take that thinks before it answers."""
LOW_BOUND: Final = "low bound of objects"
"""What a model does not take whose objects are longer than their fields let expect."""
TOO_LARGE: Final = "bound of this answer"
"""What a server refuses that has less room than the bound; it tells of this row alone."""
BOUNDS: Final = frozenset({UNBOUNDED, LOW_BOUND, TOO_LARGE})

_RAISED: Final = 4
_ROOM: Final = 64  # tokens around a label: a fence, white space, a word before
_SLACK: Final = 8  # tokens that servers count otherwise, such as those that end an answer
_LONG: Final = 1024
_ABOUT_LENGTH: Final = re.compile(r"max_?(?:completion_?|output_?)?tokens|completion|output tokens", re.IGNORECASE)


def _again(message: str) -> RowError:
    return RowError("truncated", message, retryable=True, retry_after_s=0.0)


CUT_THOUGHT: Final = _again("The bound of an answer cut off what the model thought before it.")
"""The error of a try whose row is asked again at once, without that bound."""
CUT_OBJECT: Final = _again("The bound of an answer cut it off before its end.")
"""The error of one whose row is asked again at once, under a higher bound."""


class AnswerLimits:
    """The largest numbers of tokens that the answers of one model may have.

    Parameters
    ----------
    is_bounded : bool
        Whether answers have bounds: not where the user set a limit, or the model is known to think first.
    """

    def __init__(self, *, is_bounded: bool) -> None:
        self._is_bounded = is_bounded
        self._too_large = math.inf
        """The smallest bound of a long answer that the server had no room for."""

    def of(self, request: ChatRequest, left_out: set[str]) -> int | None:
        """Return the most tokens that an answer may have; None leaves it to the model."""
        most, bound = request.max_output_tokens, self._bound(request, left_out)
        if bound is None or bound >= self._too_large:
            return most
        return bound if most is None else min(bound, most)

    def lifted_for(self, request: ChatRequest, left_out: set[str], answer: Answer) -> tuple[str, RowError] | None:
        """Return what to leave out when a row is asked again that a bound cut off, and its error; None: it did not."""
        limit, written = self.of(request, left_out), answer.usage.completion_tokens
        if not answer.is_cut or limit is None or limit == request.max_output_tokens:
            return None
        if 0 < written < limit - _SLACK:  # another limit, of the server's own
            return None
        if answer.is_thinking and not (answer.is_endless and request.is_free_text):
            return UNBOUNDED, CUT_THOUGHT
        is_half = answer.error is not None and not answer.is_endless
        return (LOW_BOUND, CUT_OBJECT) if is_half and LOW_BOUND not in left_out else None

    def is_too_large(self, request: object, left_out: set[str], message: str) -> bool:
        """Return whether a server's refusal is about a bound that is more than it has room for."""
        limit = self.of(request, left_out) if isinstance(request, ChatRequest) else None
        if not isinstance(request, ChatRequest) or limit is None or limit == request.max_output_tokens:
            return False
        is_refused = _ABOUT_LENGTH.search(message) is not None
        if is_refused and limit > _LONG:  # of a shorter one, the prompt may be what is too long
            self._too_large = min(self._too_large, limit)
        return is_refused

    def _bound(self, request: ChatRequest, left_out: set[str]) -> int | None:
        if not self._is_bounded or request.limit_is_hard or not left_out.isdisjoint({UNBOUNDED, TOO_LARGE}):
            return None
        if request.choices is not None:
            return label_bound(request.choices)
        bound = request.answer_bound
        return bound * _RAISED if bound is not None and LOW_BOUND in left_out else bound


def exceeds(limit: object, written: int) -> bool:
    """Return whether an answer is longer than the limit that it was asked under."""
    return isinstance(limit, int) and written > limit + _SLACK


@lru_cache(maxsize=1024)
def label_bound(choices: Choices) -> int:
    """Return the most tokens that a label's answer may take: as many as its longest form has bytes, and some room.

    Examples
    --------
    >>> label_bound(Choices(("positive", "negative")))
    87
    """
    longest = max(len(json.dumps(label)) for label in choices.labels) + 2
    return len(choices.opening) + longest * (choices.max_labels if choices.multiple else 1) + _ROOM
