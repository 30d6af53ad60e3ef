"""How many tokens a request will cost, before it is sent: learnt from what the server counted before."""

from __future__ import annotations

from skllm_ray.tasks.base import ChatRequest, Usage

_PER_MESSAGE = 8
_FIRST_ANSWER = 256
_MARGIN = 1.05


class TokenEstimate:
    """Estimates on the high side: what a quota sets aside too much is given back, what it lacks is a 429.

    Examples
    --------
    >>> TokenEstimate().of_text("x" * 300)
    100
    """

    def __init__(self) -> None:
        self._per_byte = 1 / 3
        self._answer = float(_FIRST_ANSWER)
        self._seen = False

    def of_text(self, text: str) -> int:
        """Return the tokens of a text."""
        return max(1, round(_size(text) * self._per_byte))

    def of_request(self, request: ChatRequest) -> int:
        """Return the tokens of a request and its answer."""
        prompt = sum(self.of_text(message["content"]) + _PER_MESSAGE for message in request.messages)
        if request.max_output_tokens is not None:
            return prompt + request.max_output_tokens
        return prompt + round(self._answer)

    def learn(self, request: ChatRequest, usage: Usage) -> None:
        """Note what a request cost."""
        if not usage.prompt_tokens:
            return
        size = sum(_size(message["content"]) for message in request.messages)
        self._per_byte = _follow(self._per_byte, usage.prompt_tokens / max(1, size), self._seen)
        self._answer = _follow(self._answer, usage.completion_tokens + 1.0, self._seen)
        self._seen = True


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _follow(old: float, new: float, seen: bool) -> float:
    """Rise at once, fall slowly, but believe the first measurement."""
    new *= _MARGIN
    return new if not seen or new > old else old * 0.98 + new * 0.02
