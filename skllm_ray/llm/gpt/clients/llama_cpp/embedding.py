"""Embeddings: whole texts packed into batches, pooled by the model's own setting, of unit length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.library import take_errors
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError

_TOKENS = 512  # in one decode; a longer text comes alone
_MOST_TEXTS = 64


class CutText(str):
    """A text whose middle may be cut out where it is longer than the context."""

    __slots__ = ()


Vector = tuple[NDArray[np.float32], int] | ContextOverflowError | None


class Embedder:
    """A second context over an engine's model, for embeddings alone.

    It is as wide as the longest text so far: its working memory grows with its width, times the vocabulary.

    Parameters
    ----------
    engine : Engine
        The loaded model, whose weights are shared.

    Raises
    ------
    ModelLoadError
        If llama.cpp cannot open the context.
    """

    def __init__(self, engine: Engine) -> None:
        lib = self._lib = engine.lib
        self._engine = engine
        trained = int(lib.llama_model_n_ctx_train(engine.model))
        self.n_ctx = min(trained, max(engine.n_ctx, _TOKENS), 8192)
        self._width = min(_TOKENS, self.n_ctx)
        self._most_texts = min(_MOST_TEXTS, engine.n_sequences)  # a recurrent state is allocated for each
        self._pooling_type = lib.LLAMA_POOLING_TYPE_UNSPECIFIED
        self._context: Any = self._open()
        if lib.llama_pooling_type(self._context) == lib.LLAMA_POOLING_TYPE_NONE:  # a chat model: the mean over the text
            lib.llama_free(self._context)
            self._pooling_type = lib.LLAMA_POOLING_TYPE_MEAN
            self._context = self._open()
        self.n_dims = int(lib.llama_model_n_embd(engine.model))
        self._batch = Batch()

    def _open(self) -> Any:
        lib, engine = self._lib, self._engine
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self._width  # pooling needs a whole text in one pass
        params.n_seq_max = self._most_texts
        params.n_outputs_max = params.n_outputs_max_per_seq = max(self._width, self._most_texts)  # fewer abort
        params.n_threads = params.n_threads_batch = max(1, engine.options.n_threads)
        params.embeddings = True
        params.pooling_type = self._pooling_type
        params.kv_unified = True
        params.no_perf = True
        take_errors()
        context = lib.llama_init_from_model(engine.model, params)
        if not context:
            raise ModelLoadError(f"llama.cpp cannot open {engine.options.path} for embeddings: {take_errors()}")
        return context

    def _widen(self, n_tokens: int) -> None:
        if n_tokens > self._width:
            self._lib.llama_free(self._context)
            self._context = None
            self._width = min(self.n_ctx, max(n_tokens, 2 * self._width))
            self._context = self._open()

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """Return every text's vector, of shape (n_dims,) and unit length, and how many tokens the text has.

        A text without tokens has None, one that is longer than the context a ``ContextOverflowError``, unless it is a
        `CutText`.
        """
        found: list[Vector] = [None] * len(texts)
        rows = []
        for index, text in enumerate(texts):
            tokens = self._engine.tokenize_text(text)
            if len(tokens) > self.n_ctx and isinstance(text, CutText):
                tokens = tokens[: self.n_ctx - self.n_ctx // 2] + tokens[len(tokens) - self.n_ctx // 2 :]
            if len(tokens) > self.n_ctx:
                found[index] = ContextOverflowError(len(tokens), self.n_ctx)
            elif tokens:
                rows.append((index, tokens))
        rows.sort(key=lambda row: len(row[1]))
        self._widen(len(rows[-1][1]) if rows else 0)
        for group in _packed(rows, self._most_texts):
            self._batch.clear()
            for sequence, (_, tokens) in enumerate(group):
                self._batch.add(tokens, 0, sequence, wanted=True)
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
            take_errors()
            code = self._lib.llama_decode(self._context, self._batch.part(self._lib, 0, len(self._batch)))
            if code != 0:
                raise RuntimeError(f"llama_decode failed with code {code}: {take_errors()}")
            for sequence, (index, tokens) in enumerate(group):
                pointer = self._lib.llama_get_embeddings_seq(self._context, sequence)
                vector = np.ctypeslib.as_array(pointer, (self.n_dims,)).copy()
                length = np.float32(max(float(np.linalg.norm(vector)), 1e-12))
                found[index] = (np.asarray(vector / length, np.float32), len(tokens))
        return found

    def close(self) -> None:
        """Free the context. The model belongs to the engine."""
        if self._context is not None:
            self._lib.llama_free(self._context)
            self._context = None


def _packed(rows: Sequence[tuple[int, list[int]]], most: int) -> Iterator[list[tuple[int, list[int]]]]:
    group: list[tuple[int, list[int]]] = []
    n_tokens = 0
    for row in rows:
        if group and (n_tokens + len(row[1]) > _TOKENS or len(group) == most):
            yield group
            group, n_tokens = [], 0
        group.append(row)
        n_tokens += len(row[1])
    if group:
        yield group
