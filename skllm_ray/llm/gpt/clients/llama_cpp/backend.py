"""The GGUF backend: requests in, scored replies out, one engine per process."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skllm_ray.config import GGUFResources, RateLimit
from skllm_ray.errors import NotSupportedError
from skllm_ray.llm.base import Placement, SecretResolver
from skllm_ray.llm.gpt.clients.llama_cpp.catalog import check_name
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat
from skllm_ray.llm.gpt.clients.llama_cpp.download import local_file
from skllm_ray.llm.gpt.clients.llama_cpp.engine import ContextOverflowError, Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.library import require_installed
from skllm_ray.tasks.base import ChatRequest, Choices, Embedding, Reply, RowError, Usage


@dataclass(frozen=True, slots=True)
class GGUFSpec:
    """A GGUF model and how it is loaded. The settings of the driver travel in it."""

    name: str
    """What follows ``gguf::``: a catalogue name, a path, or ``owner/repo/file.gguf``."""
    n_gpu_layers: int = 0
    download_path: str = ""
    verbose: bool = False
    resources: GGUFResources = field(default_factory=GGUFResources)
    n_threads: int | None = None
    """llama.cpp threads; a model actor sets its own share, None takes this machine's cores, eight at most."""

    @property
    def model(self) -> str:
        """The model's name, with its namespace."""
        return f"gguf::{self.name}"

    @property
    def gives_probabilities(self) -> bool:
        """Labels are scored."""
        return True

    @property
    def placement(self) -> Placement:
        """One actor per replica; a GPU each where layers go to a GPU."""
        given = self.resources
        default_gpus = 0.0 if self.n_gpu_layers == 0 else 1.0
        return Placement(
            stateful=True,
            num_cpus=given.num_cpus,
            num_gpus=default_gpus if given.num_gpus is None else given.num_gpus,
            min_replicas=given.min_replicas,
            max_replicas=given.max_replicas,
        )

    @property
    def limit(self) -> RateLimit | None:
        """A local model has no quota."""
        return None

    @property
    def key(self) -> str:
        """The model alone: a changed GPU setting does not reload a loaded model."""
        return self.model

    def check(self) -> None:
        """Raise if llama.cpp is missing, the name is unknown, or the file is on this machine and damaged."""
        require_installed()
        check_name(self.name)

    def open(self, resolve_secret: SecretResolver) -> GGUFBackend:  # noqa: ARG002 - a local model has no secret
        """Load the model into this process, downloading the file first if needed."""
        path = local_file(self.name, self.download_path)
        return GGUFBackend(path, self.model, self.n_gpu_layers, self.n_threads or _own_threads(), verbose=self.verbose)


class GGUFBackend:
    """A loaded model. Calls from several threads take turns."""

    def __init__(self, path: Path, model: str, n_gpu_layers: int, n_threads: int, *, verbose: bool = False) -> None:
        self._engine = Engine(EngineOptions(str(path), None, n_gpu_layers, n_threads, verbose=verbose))
        self._format: ChatFormat | None = None
        self._model = model
        self._lock = threading.Lock()

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        return self._engine.n_ctx

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request: the best label, and the log-probabilities of all."""
        with self._lock:
            if self._format is None:
                self._format = ChatFormat(self._engine)
            replies: list[Reply | None] = [None] * len(requests)
            single = [i for i, r in enumerate(requests) if r.choices is not None and not r.choices.multiple]
            multiple = [i for i, r in enumerate(requests) if r.choices is not None and r.choices.multiple]
            for chosen, answer in ((single, self._choose_one), (multiple, self._choose_many)):
                if chosen:
                    for i, reply in zip(chosen, answer([requests[i] for i in chosen], self._format), strict=True):
                        replies[i] = reply
            return [reply or self._unsupported() for reply in replies]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Not offered in this release."""
        raise NotSupportedError(f"{self._model} offers no embeddings in this release.", f"{len(texts)} asked for.")

    def close(self) -> None:
        """Unload the model."""
        with self._lock:
            self._engine.close()

    def _choose_one(self, requests: Sequence[ChatRequest], chat: ChatFormat) -> list[Reply]:
        prompts, tails = [], []
        for request in requests:
            choices = _choices(request)
            continuations = [choices.answer([label])[:-1] for label in choices.labels]  # up to the closing quote
            head, ends = chat.tokenize(chat.render(request.messages), continuations, (choices, ""))
            prompts.append(head)
            tails.append(ends)
        return [
            self._single_reply(request, scores, _prompt_length(head, ends))
            for request, scores, head, ends in zip(requests, self._score(prompts, tails), prompts, tails, strict=True)
        ]

    def _single_reply(self, request: ChatRequest, scores: Scores, n_prompt: int) -> Reply:
        if isinstance(scores, ContextOverflowError):
            return self._too_long(scores)
        choices = _choices(request)
        log_probs = _normalise(scores)
        label = choices.labels[int(np.argmax(log_probs))]
        return Reply(
            text=choices.answer([label]),
            log_probs=tuple(log_probs.tolist()),
            usage=Usage(prompt_tokens=n_prompt),
            model=self._model,
        )

    def _choose_many(self, requests: Sequence[ChatRequest], chat: ChatFormat) -> list[Reply]:
        """Let each answer grow label by label, the best continuation each time, until closing it is the best."""
        prompts = [chat.render(request.messages) for request in requests]
        chosen: list[list[str]] = [[] for _ in requests]
        replies: list[Reply | None] = [None] * len(requests)
        lengths = [0] * len(requests)
        open_rows = list(range(len(requests)))
        while open_rows:
            heads, tails, options = [], [], []
            for i in open_rows:
                choices = _choices(requests[i])
                left = [label for label in choices.labels if label not in chosen[i]]
                ends = [choices.answer([*chosen[i], label])[:-2] for label in left] + [choices.answer(chosen[i])]
                head, tokens = chat.tokenize(prompts[i], ends, (choices, json.dumps(chosen[i])))
                heads.append(head)
                tails.append(tokens)
                options.append(left)
                lengths[i] = _prompt_length(head, tokens)
            still_open = []
            for i, scores, left in zip(open_rows, self._score(heads, tails), options, strict=True):
                choices = _choices(requests[i])
                if isinstance(scores, ContextOverflowError):
                    replies[i] = self._too_long(scores)
                    continue
                # To go on is as likely as all labels together; only then do they compete with one another.
                goes_on = bool(left) and float(np.logaddexp.reduce(scores[:-1])) > float(scores[-1])
                if goes_on:
                    chosen[i].append(left[int(np.argmax(scores[:-1]))])
                if goes_on and len(chosen[i]) < choices.max_labels:
                    still_open.append(i)
                    continue
                usage = Usage(prompt_tokens=lengths[i])
                replies[i] = Reply(text=choices.answer(chosen[i]), usage=usage, model=self._model)
            open_rows = still_open
        return [reply or self._unsupported() for reply in replies]

    def _score(self, prompts: Sequence[list[int]], tails: Sequence[list[list[int]]]) -> list[Scores]:
        """Score, with the trivial case of a single continuation left out of the engine."""
        several = [i for i, ends in enumerate(tails) if len(ends) > 1]
        found = self._engine.score([prompts[i] for i in several], [tails[i] for i in several])
        results: list[Scores] = [np.zeros(1)] * len(prompts)
        for i, scores in zip(several, found, strict=True):
            results[i] = scores
        return results

    def _too_long(self, overflow: ContextOverflowError) -> Reply:
        message = f"The prompt takes {overflow.n_tokens:,} tokens; {self._model} has a context of {overflow.n_ctx:,}."
        return Reply(error=RowError("context_length", message), model=self._model)

    def _unsupported(self) -> Reply:
        message = "GGUF models answer classifications; free text is not offered yet."
        return Reply(error=RowError("not_supported", message, fatal=True), model=self._model)


Scores = NDArray[np.float64] | ContextOverflowError
"""A row's log-probabilities, one per continuation, or why there are none."""


def _prompt_length(head: Sequence[int], ends: Sequence[Sequence[int]]) -> int:
    shared = min(map(len, ends))
    while shared and len({tuple(end[:shared]) for end in ends}) > 1:
        shared -= 1
    return len(head) + shared


def _normalise(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), np.float64)


def _own_threads() -> int:
    return min(8, os.cpu_count() or 1)


def _choices(request: ChatRequest) -> Choices:
    if request.choices is None:
        raise TypeError("A request without choices cannot be scored.")
    return request.choices
