"""Thinking before an answer, and answers without the thoughts that a model writes before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat, Prompts
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.generation import Generated, Generator
from skllm_ray.llm.gpt.clients.llama_cpp.thought_forms import WRAPPERS, ThoughtForm
from skllm_ray.tasks.base import ChatRequest, RowError

_MARGIN = 8  # tokens: a thought that is read again may have a few more
UNFINISHED = RowError("truncated", "The answer ended within the model's thought, before there was any text.")
"""The error of a free text that is a thought without an end."""


def think(
    engine: Engine,
    generator: Generator,
    chat: ChatFormat,
    prompts: Prompts,
    requests: Sequence[ChatRequest],
    needed: Callable[[ChatRequest], int],
) -> list[int]:
    """Let the model think about each request, and put the thought, closed by its own form, behind the prompt.

    Parameters
    ----------
    engine, generator : Engine, Generator
        The model, and what writes with it.
    chat : ChatFormat
        Its prompts, for a model that is to think.
    prompts : Prompts
        The prompts of this call, which grow by the thoughts.
    requests : sequence of ChatRequest, of length n_rows
        What is asked.
    needed : callable
        Returns how many tokens of the context a request takes without a thought.

    Returns
    -------
    list of int
        The tokens that were written for each request.
    """
    form = chat.thought
    if form is None:
        return [0] * len(requests)
    n_closing = len(engine.tokenize(form.closing)) + _MARGIN
    begun = [prompts.render(request.messages) + form.opening for request in requests]
    most = [min(one.style.think, engine.n_ctx - needed(one) - n_closing) for one in requests]
    able = [i for i, room in enumerate(most) if room > 0]
    written = generator.generate(
        [chat.tokens(begun[i]) for i in able],
        [None] * len(able),
        [most[i] for i in able],
        [(form.ending,)] * len(able),
        with_controls=True,
    )
    found = dict(zip(able, written, strict=True))
    n_written = [0] * len(requests)
    for i, request in enumerate(requests):
        thought = found.get(i)
        text = ""
        if isinstance(thought, Generated):
            text, n_written[i] = thought.text.removesuffix("\ufffd"), thought.n_written
        prompts.put(request.messages, begun[i] + joined(text, form.closing))
    return n_written


def joined(thought: str, closing: str) -> str:
    r"""Return a thought with what closes it, without white space that both have.

    Examples
    --------
    >>> joined("a, so b.\n", "\n</think>\n\n")
    'a, so b.\n</think>\n\n'
    """
    return (thought.rstrip("\n") if closing.startswith("\n") else thought) + closing


def answer_text(
    engine: Engine, found: Generated, forms: Sequence[ThoughtForm], stops: Sequence[str], *, thought: bool = False
) -> tuple[str, bool]:
    """Return a free text without thoughts, and whether it ended within one.

    Thoughts are found in the tokens, with the texts of control tokens in their places: joined pieces have lost them.

    Parameters
    ----------
    engine : Engine
        The model.
    found : Generated
        What it wrote.
    forms : sequence of ThoughtForm
        The forms of thoughts that it may have written.
    stops : sequence of str
        The strings before which the text ends.
    thought : bool, default=False
        Whether it had thought before, and may now wrap its answer up.
    """
    controls = engine.marked_pieces
    pieces = [controls.get(token) or engine.pieces[token] for token in found.tokens]
    whole = b"".join(pieces)
    cut, is_open = _thoughts(whole, set(pieces), forms)
    if not cut:
        return (unwrapped(found.text) if thought else found.text), False
    kept = bytearray()
    for token, piece, end in zip(found.tokens, pieces, accumulate(map(len, pieces)), strict=True):
        if engine.pieces[token]:  # control tokens have none
            kept += whole[max(cut, end - len(piece)) : end]
    text = kept.decode("utf-8", "replace").lstrip()
    for stop in stops:
        text = text.partition(stop)[0]
    return unwrapped(text), is_open


def _thoughts(whole: bytes, pieces: set[bytes], forms: Sequence[ThoughtForm]) -> tuple[int, bool]:
    """Return how many of the first bytes are thoughts, and whether the last of them has no end."""
    at = 0
    while True:
        start = len(whole) - len(whole[at:].lstrip())
        for form in forms:
            opening, ending = form.opening.strip().encode(), form.ending.encode()
            if opening and whole.startswith(opening, start):
                end = whole.find(ending, start + len(opening))
                if end < 0:
                    return len(whole), True
                at = _behind(whole, end, form)
                break
            # An end without a beginning, if it is one token: the prompt had left the thought open.
            if form.opening and ending in pieces and at == 0 and opening not in whole and ending != b"<|end|>":
                at = _behind(whole, whole.find(ending), form)
                break
        else:
            return at, False


def _behind(whole: bytes, end: int, form: ThoughtForm) -> int:
    closing = form.closing.strip().encode()
    return end + len(closing if closing and whole.startswith(closing, end) else form.ending.encode())


def unwrapped(text: str) -> str:
    """Return an answer without the tags that some models put around it after a thought.

    Examples
    --------
    >>> unwrapped("<response>Yes.</response>")
    'Yes.'
    """
    for begin, end in WRAPPERS:
        inner = text.strip()
        if inner.startswith(begin) or inner.endswith(end):
            text = inner.removeprefix(begin).removesuffix(end).strip()
    return text
