"""Texts that are too long for the context, with their middle cut out: never the instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from skllm_ray.tasks.base import ChatRequest

_GAP = " … "


def shortened(request: ChatRequest, room: int, count: Callable[[ChatRequest], int]) -> ChatRequest:
    """Return `request` with as much of its text as fits.

    Parameters
    ----------
    request : ChatRequest
        What is asked; its ``cut_text`` may be shortened.
    room : int
        The largest number of tokens.
    count : callable
        Returns how many tokens a request takes.

    Returns
    -------
    ChatRequest
        Unchanged where it fits, and where it would not fit without any text either.
    """
    text = request.cut_text
    n_tokens = count(request) if text else 0
    if not text or n_tokens <= room:
        return request
    n_bare = count(_with_text(request, text, ""))
    if n_bare > room:
        return request
    keep = len(text)
    while True:
        # In proportion to the tokens that have to go, and a little more, since tokens are not equally long.
        keep = min(keep - 1, int(0.98 * keep * (room - n_bare) / (n_tokens - n_bare)) - len(_GAP))
        cut = _with_text(request, text, middle_cut(text, keep))
        n_tokens = count(cut)
        if n_tokens <= room or keep <= 0:
            return cut


def middle_cut(text: str, keep: int) -> str:
    """Return about `keep` characters of `text`, from its beginning and its end.

    Examples
    --------
    >>> middle_cut("abcdefgh", 4)
    'ab … gh'
    """
    if keep <= 0:
        return ""
    return f"{text[: keep - keep // 2]}{_GAP}{text[len(text) - keep // 2 :]}"


def _with_text(request: ChatRequest, text: str, shorter: str) -> ChatRequest:
    last = request.messages[-1]
    content = shorter.join(last["content"].rsplit(text, 1))
    return replace(request, messages=(*request.messages[:-1], {**last, "content": content}))
