"""The log probabilities of an answer's tokens, by where the tokens end in its text. No SDK here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skllm_ray.llm.api.label_probabilities import is_told, piece

_DIGITS = 4


def token_ends(tokens: Sequence[dict[str, Any]], text: str) -> tuple[tuple[int, float], ...] | None:
    """Return where each token of `text` ends, in characters, and its log probability.

    Parameters
    ----------
    tokens : sequence of dict
        ``choices[0].logprobs.content`` of an OpenAI-compatible answer; what was thought may stand before the answer.
    text : str
        The answer.

    Returns
    -------
    tuple of (int, float), or None
        None where the tokens are not those of the text, or their numbers none.

    Examples
    --------
    >>> token_ends([{"token": "{}", "logprob": -0.5}, {"token": " ", "logprob": -0.25}], "{} ")
    ((2, -0.5), (3, -0.25))
    """
    if not tokens or not all(is_told(token) for token in tokens):
        return None
    pieces, whole = [piece(token) for token in tokens], text.encode("utf-8", "surrogateescape")
    n_before = len(b"".join(pieces)) - len(whole)
    if n_before < 0 or not b"".join(pieces).endswith(whole):
        return None
    found, at, end = [], -n_before, 0
    for token, one in zip(tokens, pieces, strict=True):
        begun, at = max(at, 0), at + len(one)
        if at > 0:
            end += sum(byte & 0xC0 != 0x80 for byte in whole[begun:at])  # a character counts where it begins
            found.append((end, round(min(0.0, float(token["logprob"])), _DIGITS)))
    return tuple(found)
