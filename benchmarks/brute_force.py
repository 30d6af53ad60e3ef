"""The reference of all scores: one full forward pass per label, each in a context of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
from skllm_ray.llm.gpt.clients.llama_cpp.decoding import common_length
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.library import load_model, take_errors
from skllm_ray.tasks import ChatRequest

_MOST_TOKENS = 512  # in one decode


class BruteForce:
    """A model that knows nothing of shared beginnings, of copies and of batches.

    Parameters
    ----------
    path : Path
        The GGUF file.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = Engine(EngineOptions(str(path), vocab_only=True))
        self.chat = ChatFormat(self._tokenizer)
        self.n_vocab = self._tokenizer.n_vocab
        self._lib = self._tokenizer.lib
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model: Any = load_model(self._lib, str(path), params)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokenizer.close()
        self._lib.llama_model_free(self._model)

    def log_probs(self, request: ChatRequest) -> NDArray[np.float64]:
        """Return the log-probability of each label of a request, normalised over the labels."""
        if request.choices is None:
            raise ValueError("The request has no labels.")
        prompt = self.chat.render(request.messages)
        begun = self.chat.tokens(prompt)
        scores = []
        for label in request.choices.labels:
            tokens = self.chat.tokens(prompt + request.choices.answer([label])[:-1])
            first = common_length(tokens, begun)
            scores.append(self.score(tokens[:first], tokens[first:]))
        return log_softmax(np.asarray(scores))

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """Return the log-probability of an answer that ends with a quote, or any token that begins with one."""
        found = log_softmax(self.logits([*prompt, *answer[:-1]], len(prompt) - 1))
        inner = sum(found[at, token] for at, token in enumerate(answer[:-1]))
        return float(inner + np.log(np.exp(found[-1, self._tokenizer.quoted_tokens]).sum()))

    def written(self, prompt: Sequence[int], most: int) -> list[int]:
        """Return the greedy continuation of a prompt, each token by a pass over everything before it."""
        tokens = list(prompt)
        while len(tokens) < len(prompt) + most:
            token = int(self.logits(tokens, len(tokens) - 1)[-1].argmax())
            if self._tokenizer.is_end(token):
                break
            tokens.append(token)
        return tokens[len(prompt) :]

    def logits(self, tokens: Sequence[int], first: int) -> NDArray[np.float64]:
        """Return the logits behind each token from position `first` on, of a fresh context."""
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = max(256, len(tokens))
        params.n_batch = params.n_ubatch = min(_MOST_TOKENS, len(tokens))
        params.n_seq_max = params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = lib.llama_init_from_model(self._model, params)
        batch, found = Batch(), []
        try:
            for start in range(0, len(tokens), _MOST_TOKENS):
                part = tokens[start : start + _MOST_TOKENS]
                wanted = np.arange(start, start + len(part)) >= first
                batch.clear()
                batch.add(part, start, 0, wanted=wanted)
                if lib.llama_decode(context, batch.part(lib, 0, len(batch))) != 0:
                    raise RuntimeError(f"llama_decode failed: {take_errors()}")
                if wanted.any():
                    shape = int(wanted.sum()), self.n_vocab
                    found.append(np.ctypeslib.as_array(lib.llama_get_logits(context), shape).astype(np.float64))
        finally:
            lib.llama_free(context)
        return np.concatenate(found)


def log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the softmax over the last axis."""
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
