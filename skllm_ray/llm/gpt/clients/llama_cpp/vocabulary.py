"""A model's tokens: texts to tokens and back, and which tokens are special."""

from __future__ import annotations

import ctypes
import re
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.library import metadata

_ACROSS = re.compile(rb"\S ")


class Vocabulary:
    """The tokenizer of a loaded model.

    Parameters
    ----------
    lib : module
        ``llama_cpp``.
    model : object
        The model.
    """

    def __init__(self, lib: ModuleType, model: Any) -> None:
        self.lib = lib
        self.model: Any = model
        self.vocab = lib.llama_model_get_vocab(model)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))

    def metadata(self, key: str) -> str | None:
        """Return a metadata value of the file, or None."""
        return metadata(self.lib, self.model, key)

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a rendered prompt: control tokens recognised, none added."""
        return self._tokenize(text, add_special=False, parse_special=True)

    def tokenize_text(self, text: str) -> list[int]:
        """Return the tokens of a bare text: no control token is read from it, the model's own are added."""
        return self._tokenize(text, add_special=True, parse_special=False)

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        encoded = text.encode("utf-8", "replace")
        size = len(encoded) + 8
        tokens = (self.lib.llama_token * size)()
        count = self.lib.llama_tokenize(self.vocab, encoded, len(encoded), tokens, size, add_special, parse_special)
        if count < 0:
            raise ValueError(f"llama.cpp could not tokenise a text of {len(encoded)} bytes.")
        return list(tokens[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self.lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    @property
    def bos(self) -> int | None:
        """The token that begins every prompt, or None if the model has none."""
        return self.bos_token if self.lib.llama_vocab_get_add_bos(self.vocab) else None

    def special_text(self, name: str) -> str:
        """Return the text of the special token `name` (``bos`` or ``eos``), or an empty string."""
        token = int(getattr(self.lib, f"llama_vocab_{name}")(self.vocab))
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    @property
    def bos_token(self) -> int | None:
        """The model's token of a beginning, whether or not its tokenizer puts it there by itself."""
        token = int(self.lib.llama_vocab_bos(self.vocab))
        return token if token >= 0 else None

    def special_texts(self) -> tuple[list[str], list[str]]:
        """Return the texts that llama.cpp reads as tokens of their own: control tokens, and user-defined ones."""
        lib, vocab = self.lib, self.vocab
        hidden = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        found: tuple[list[str], list[str]] = ([], [])
        for token in range(self.n_vocab):
            kind = int(lib.llama_vocab_get_attr(vocab, token))
            if kind & (hidden | lib.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = self.piece(token, special=True).decode("utf-8", "replace")
                found[0 if kind & hidden else 1].append(text)
        return found

    @cached_property
    def marked_pieces(self) -> dict[int, bytes]:
        """The texts of the control tokens, which have none in `pieces`, and of those that users defined."""
        lib, vocab = self.lib, self.vocab
        marked = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        return {
            token: self.piece(token, special=True)
            for token in range(self.n_vocab)
            if lib.llama_vocab_get_attr(vocab, token) & marked
        }

    @cached_property
    def quoted_tokens(self) -> NDArray[np.int64]:
        """The tokens whose text begins with a double quote."""
        return np.asarray([token for token, piece in enumerate(self.pieces) if piece.startswith(b'"')], np.int64)

    @cached_property
    def quotes(self) -> NDArray[np.int64]:
        """The tokens whose text is a double quote and nothing else."""
        return np.asarray([token for token, piece in enumerate(self.pieces) if piece == b'"'], np.int64)

    @cached_property
    def quoting(self) -> frozenset[int]:
        """The same as a set."""
        return frozenset(self.quotes.tolist())

    @cached_property
    def parts_at_spaces(self) -> bool:
        """Whether no token reaches from the end of a word over the space behind it."""
        return not any(_ACROSS.search(piece) for piece in self.pieces)

    @cached_property
    def pieces(self) -> list[bytes]:
        """Each token's bytes."""
        return [self.piece(token) for token in range(self.n_vocab)]

    def is_end(self, token: int) -> bool:
        """Return whether `token` ends a generation."""
        return bool(self.lib.llama_vocab_is_eog(self.vocab, token))
