"""A language model so small that its arithmetic can be followed: a vocabulary of bytes and a few words."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

BOS, USER, ASSISTANT = "<bos>", "<user>", "<assistant>"
_SPECIAL = (BOS, USER, ASSISTANT)
_WORDS = ('{"', '": "', '"}', '"},', '",', '".', "label", "good", " good", "bad", "ition", "pos", "positive", "neg")
_MORE_WORDS = ("ative", "neutral", "very", " very", " the", "oo", "od", "it", "so")
_SPECIALS = re.compile("|".join(map(re.escape, _SPECIAL)))


class TokenModel:
    """Tokens, and their probabilities behind any others; the same in every process.

    What comes next depends on the last three tokens, and on which words stand in the text before.

    Examples
    --------
    >>> model = TokenModel()
    >>> model.text(model.tokens("<user>so good")), len(model.tokens("<user>so good"))
    ('<user>so good', 3)
    >>> round(float(np.exp(model.log_probs([1, 2, 3])).sum()), 6)
    1.0
    """

    def __init__(self) -> None:
        words = [word.encode() for word in (*_WORDS, *_MORE_WORDS)]
        self.pieces: list[bytes] = [bytes([byte]) for byte in range(256)] + words
        self._by_piece = {piece: i for i, piece in enumerate(self.pieces)}
        self._longest = max(map(len, words))
        self.special = {text: len(self.pieces) + i for i, text in enumerate(_SPECIAL)}
        self.pieces += [text.encode() for text in _SPECIAL]

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text: at each place the longest that fits."""
        found: list[int] = []
        at = 0
        for match in _SPECIALS.finditer(text):
            found += [*self._plain(text[at : match.start()].encode()), self.special[match.group()]]
            at = match.end()
        return found + self._plain(text[at:].encode())

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of some tokens."""
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")

    def log_probs(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Return the log-probability of every token behind some."""
        logits = np.random.default_rng(zlib.crc32(str(list(tokens[-3:])).encode())).normal(0.0, 2.0, len(self.pieces))
        for token in set(tokens):
            logits[token] += 1.5 * (len(self.pieces[token]) > 2)
        logits -= logits.max()
        found: NDArray[np.float64] = logits - np.log(np.exp(logits).sum())
        return found

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return a conversation as the model reads it, up to where its answer begins."""
        turns = [f"{ASSISTANT if one['role'] == 'assistant' else USER}{one['content']}" for one in messages]
        return "".join([*turns, ASSISTANT])

    def write(self, tokens: Sequence[int], n_tokens: int) -> list[int]:
        """Return how the model goes on, with the likeliest token each time."""
        found = list(tokens)
        for _ in range(n_tokens):
            found.append(int(self.log_probs(found).argmax()))
        return found[len(tokens) :]

    def _plain(self, text: bytes) -> list[int]:
        found, at = [], 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next(end for end in ends if text[at:end] in self._by_piece)
            found.append(self._by_piece[text[at:end]])
            at = end
        return found
