"""The GGUF backend: requests in, scored replies out, one engine per process."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import warn
from skllm_ray.llm.base import Backend
from skllm_ray.llm.gpt.clients.llama_cpp.branching import best, open_scorer, score
from skllm_ray.llm.gpt.clients.llama_cpp.chat import ChatFormat, Prompts
from skllm_ray.llm.gpt.clients.llama_cpp.embedding import Embedder, Vector
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine, EngineOptions
from skllm_ray.llm.gpt.clients.llama_cpp.generation import Generated, Generator
from skllm_ray.llm.gpt.clients.llama_cpp.search import Found
from skllm_ray.llm.gpt.clients.llama_cpp.templates import TemplateError
from skllm_ray.llm.gpt.clients.llama_cpp.thinking import UNFINISHED, answer_text, think
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError, Scores, Trie, tokens_needed
from skllm_ray.llm.gpt.clients.llama_cpp.truncation import shortened
from skllm_ray.tasks.base import TRUNCATED, ChatRequest, Choices, Embedding, PromptStyle, Reply, RowError, Usage

_logger = logging.getLogger(__name__)


class GGUFBackend(Backend):
    """A loaded model. Calls from several threads take turns in decoding; tokens are made ready meanwhile."""

    def __init__(
        self,
        path: Path,
        model: str,
        n_gpu_layers: int,
        n_threads: int,
        *,
        n_ctx: int | None = None,
        verbose: bool = False,
    ) -> None:
        self._engine = Engine(EngineOptions(str(path), n_ctx, n_gpu_layers, n_threads, verbose=verbose))
        self._formats: dict[PromptStyle, ChatFormat] = {}
        self._generator: Generator | None = None
        self._embedder: Embedder | None = None
        self._model = model
        self._lock = threading.Lock()  # of the context: one call decodes
        self._idle = threading.Condition()
        self._n_calls = 0

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        return self._engine.n_ctx

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request: a label with the log-probabilities of all, several labels, or free text."""
        with self._at_work():
            if self._engine.is_embedding_model:
                return [_free(self._unsupported("is an embedding model: it answers no prompts"))] * len(requests)
            replies: list[Reply | None] = [None] * len(requests)
            for style in dict.fromkeys(request.style for request in requests):
                rows = [i for i, request in enumerate(requests) if request.style == style]
                for i, reply in zip(rows, self._complete([requests[i] for i in rows], style), strict=True):
                    replies[i] = _free(reply)
            return replies  # type: ignore[return-value]

    def _complete(self, requests: Sequence[ChatRequest], style: PromptStyle) -> list[Reply]:
        """Return the replies to requests whose prompts are written in one style."""
        chat = self._chat(style)
        for notice in (*self._engine.notices, *chat.notices):
            warn(notice)
        prompts = Prompts(chat)
        replies: list[Reply | None] = [None] * len(requests)
        asked: dict[int, ChatRequest] = {}
        count = partial(self._needed_with_thought, prompts=prompts)
        for i, request in enumerate(requests):
            try:
                asked[i] = shortened(request, self._engine.n_ctx, count)
                prompts.render(asked[i].messages)
            except TemplateError as error:
                del asked[i]
                why = f"The chat template of {self._model} does not take this row: {error}."
                replies[i] = Reply(error=RowError("bad_request", why), model=self._model)
        thoughts = self._think(asked, prompts, chat)
        for kind, answer in ((_SINGLE, self._choose_one), (_MULTIPLE, self._choose_many), (_FREE, self._write)):
            chosen = [i for i, request in asked.items() if _kind(request) == kind]
            if chosen:
                for i, reply in zip(chosen, answer([asked[i] for i in chosen], prompts), strict=True):
                    replies[i] = _with_thought(reply, thoughts.get(i, 0))
        return replies  # type: ignore[return-value]

    def _think(self, asked: Mapping[int, ChatRequest], prompts: Prompts, chat: ChatFormat) -> dict[int, int]:
        """Let the model think about each request; return how many tokens it wrote for each."""
        if chat.thought is None:
            return {}
        needed = partial(self._needed, chat=prompts)
        with self._lock:
            written = think(self._engine, self._writer(), chat, prompts, list(asked.values()), needed)
        return dict(zip(asked, written, strict=True))

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one vector of unit length per text, pooled as the model says, else the mean over the text."""
        with self._at_work(), self._lock:
            if self._embedder is None:
                self._embedder = Embedder(self._engine)
            return [_free(self._embedding(found)) for found in self._embedder.embed(texts)]

    def close(self) -> None:
        """Unload the model as soon as no call is at work with it."""
        with self._idle:
            self._idle.wait_for(lambda: self._n_calls == 0)
            for part in (self._generator, self._embedder, self._engine):
                if part is not None:
                    part.close()
            self._generator = self._embedder = None

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._idle:
            if self._engine.model is None:
                raise RuntimeError(f"{self._model} has been unloaded.")
            self._n_calls += 1
        try:
            yield
        finally:
            with self._idle:
                self._n_calls -= 1
                self._idle.notify_all()

    def _chat(self, style: PromptStyle) -> ChatFormat:
        with self._idle:
            if style not in self._formats:
                if len(self._formats) >= _KEPT_FORMATS:
                    self._formats.clear()
                with self._lock:  # it may ask the model
                    self._formats[style] = ChatFormat(self._engine, style)
            return self._formats[style]

    def _writer(self) -> Generator:
        if self._generator is None:
            self._generator = Generator(self._engine)
        return self._generator

    # --- one label ------------------------------------------------------------------------------------------------

    def _choose_one(self, requests: Sequence[ChatRequest], chat: Prompts) -> list[Reply]:
        exact = any(_choices(request).exact for request in requests)
        scorer = open_scorer(self._engine, exact=exact)
        at_once = _TOKENISED_AHEAD if self._engine.options.n_gpu_layers else len(requests)
        split = [self._split_one(request, chat) for request in requests[:at_once]]  # while another call still decodes
        scored: dict[int, Scores] = {}
        with self._lock:
            for start in range(0, len(requests), at_once):
                split += [self._split_one(request, chat) for request in requests[len(split) : start + at_once]]
                rows = [i for i in range(start, len(split)) if not self._is_searched(requests[i], split[i])]
                scored |= zip(rows, scorer.add([split[i][0] for i in rows], [split[i][1] for i in rows]), strict=True)
            scorer.finish()
            searched = [i for i in range(len(requests)) if i not in scored]
            heads, tries = [split[i][0] for i in searched], [split[i][1] for i in searched]
            found = dict(zip(searched, self._best(heads, tries, exact), strict=True))
        return [
            self._one_reply(request, scored[i] if i in scored else found[i], split[i])
            for i, request in enumerate(requests)
        ]

    def _best(self, heads: Sequence[list[int]], tries: Sequence[Trie], exact: bool) -> list[Found]:
        """Return the likeliest label of each row: that of exact scores where they are asked for and labels are few."""
        return best(self._engine, heads, tries, exact=exact and all(trie.n_nodes <= _MANY_NODES for trie in tries))

    def _one_reply(self, request: ChatRequest, found: Scores | Found, split: tuple[list[int], Trie]) -> Reply:
        if isinstance(found, ContextOverflowError):
            return self._too_long(found)
        if isinstance(found, np.ndarray):
            return self._scored_reply(request, found, split)
        choices = _choices(request)
        text = choices.answer([choices.labels[found]])
        return Reply(text=text, usage=_usage(split), model=self._model)

    def _is_searched(self, request: ChatRequest, split: tuple[list[int], Trie]) -> bool:
        engine, n_nodes = self._engine, split[1].n_nodes
        many = n_nodes > _MANY_NODES or (not engine.overlaps and n_nodes * engine.n_vocab > _MANY_LOGITS)
        return _choices(request).best_only and (many or not engine.sequences.shares_tokens)

    def _split_one(self, request: ChatRequest, chat: Prompts) -> tuple[list[int], Trie]:
        choices = _choices(request)
        return chat.split(
            chat.render(request.messages),
            choices,
            lambda: [choices.answer([label])[:-1] for label in choices.labels],  # up to the closing quote
            choices.opening,  # what labels share counts in their mass
        )

    def _scored_reply(self, request: ChatRequest, scores: NDArray[np.float64], split: tuple[list[int], Trie]) -> Reply:
        choices = _choices(request)
        log_mass = float(np.logaddexp.reduce(scores))
        log_probs = scores - log_mass
        return Reply(
            text=choices.answer([choices.labels[int(log_probs.argmax())]]),
            log_probs=tuple(log_probs.tolist()),
            usage=_usage(split),
            model=self._model,
            label_mass=min(1.0, math.exp(log_mass)),
        )

    # --- several labels -------------------------------------------------------------------------------------------

    def _choose_many(self, requests: Sequence[ChatRequest], chat: Prompts) -> list[Reply]:
        """Let each answer grow label by label, the best continuation each time, until closing it is the best."""
        prompts = [chat.render(request.messages) for request in requests]
        chosen: list[list[str]] = [[] for _ in requests]
        likely = [0.0] * len(requests)  # the log-probability of each answer so far, among all that could stand there
        replies: list[Reply | None] = [None] * len(requests)
        open_rows = list(range(len(requests)))
        while open_rows:
            left = {i: [label for label in _choices(requests[i]).labels if label not in chosen[i]] for i in open_rows}
            split = [self._split_many(prompts[i], requests[i], chosen[i], left[i], chat) for i in open_rows]
            exact = any(_choices(requests[i]).exact for i in open_rows)
            with self._lock:
                found = score(self._engine, [head for head, _ in split], [trie for _, trie in split], exact=exact)
            still_open = []
            for i, scores, parts in zip(open_rows, found, split, strict=True):
                if isinstance(scores, ContextOverflowError):
                    replies[i] = self._too_long(scores)
                    continue
                # To go on is as likely as all labels together; only then do they compete with one another.
                goes_on = bool(left[i]) and float(np.logaddexp.reduce(scores[:-1])) > float(scores[-1])
                step = int(np.argmax(scores[:-1])) if goes_on else -1
                likely[i] += float(scores[step] - np.logaddexp.reduce(scores))
                if goes_on:
                    chosen[i].append(left[i][int(np.argmax(scores[:-1]))])
                choices = _choices(requests[i])
                if goes_on and len(chosen[i]) < choices.max_labels:
                    still_open.append(i)
                    continue
                usage = _usage(parts)
                text = choices.answer(chosen[i])
                replies[i] = Reply(text, log_probs=(min(0.0, likely[i]),), usage=usage, model=self._model)
            open_rows = still_open
        return replies  # type: ignore[return-value]

    def _split_many(
        self, prompt: str, request: ChatRequest, chosen: Sequence[str], left: Sequence[str], chat: Prompts
    ) -> tuple[list[int], Trie]:
        choices = _choices(request)
        return chat.split(
            prompt,
            (choices, tuple(chosen)),
            lambda: [choices.answer([*chosen, label])[:-2] for label in left] + [choices.answer(chosen)],
        )

    # --- free text ------------------------------------------------------------------------------------------------

    def _write(self, requests: Sequence[ChatRequest], chat: Prompts) -> list[Reply]:
        prompts = [chat.tokens(chat.render(request.messages)) for request in requests]
        with self._lock:
            written = self._writer().generate(
                prompts,
                [request.json_schema for request in requests],
                [request.max_output_tokens for request in requests],
                [request.stop for request in requests],
                tells=[request.tells_tokens for request in requests],
            )
        return [
            self._too_long(found) if isinstance(found, ContextOverflowError) else self._reply(found, request, chat)
            for request, found in zip(requests, written, strict=True)
        ]

    def _reply(self, found: Generated, request: ChatRequest, chat: Prompts) -> Reply:
        usage = Usage(found.n_prompt, found.n_written)
        if not request.is_free_text:
            return Reply(found.text, usage=usage, model=self._model, token_log_probs=found.log_probs)
        if found.finish_reason == "length" and request.max_output_tokens is None:  # the context is full
            return Reply(error=TRUNCATED, usage=usage, model=self._model)
        thinks = request.style.think > 0
        text, is_open = answer_text(self._engine, found, chat.forms, request.stop, thought=thinks)
        return Reply(None if is_open else text, error=UNFINISHED if is_open else None, usage=usage, model=self._model)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _needed(self, request: ChatRequest, chat: Prompts) -> int:
        """Return how many tokens of the context a request takes, its answer included."""
        choices = request.choices
        if choices is None:
            answer = min(request.max_output_tokens or _WRITTEN_TOKENS, self._engine.n_ctx // 2)
            return len(chat.tokens(chat.render(request.messages))) + answer
        if not choices.multiple:
            return tokens_needed(*self._split_one(request, chat))
        longest = sorted(choices.labels, key=len, reverse=True)[: choices.max_labels - 1]
        prompt, needed = chat.render(request.messages), 0
        for chosen in (
            longest[:0],
            longest,
        ):  # the first step, and the last one as if the longest labels had been chosen
            left = [label for label in choices.labels if label not in chosen]
            needed = max(needed, tokens_needed(*self._split_many(prompt, request, chosen, left, chat)))
        return needed

    def _needed_with_thought(self, request: ChatRequest, prompts: Prompts) -> int:
        """Return how many tokens a request takes where its text is cut so that there is room for a thought."""
        return self._needed(request, prompts) + min(request.style.think, self._engine.n_ctx // 2)

    def _embedding(self, found: Vector) -> Embedding:
        if found is None:
            return Embedding(error=RowError("bad_request", "The text has no tokens."), model=self._model)
        if isinstance(found, ContextOverflowError):
            return Embedding(error=self._too_long(found).error, model=self._model)
        vector, n_tokens = found
        return Embedding(vector, Usage(n_tokens), model=self._model)

    def _too_long(self, overflow: ContextOverflowError) -> Reply:
        message = f"The prompt takes {overflow.n_tokens:,} tokens; {self._model} has a context of {overflow.n_ctx:,}."
        return Reply(error=RowError("context_length", message), model=self._model)

    def _unsupported(self, why: str) -> Reply:
        return Reply(error=RowError("not_supported", f"{self._model} {why}.", fatal=True), model=self._model)


_SINGLE, _MULTIPLE, _FREE = "single", "multiple", "free"
_KEPT_FORMATS = 8
_WRITTEN_TOKENS = 256  # room for an answer that nobody bounded, where a text is cut
_TOKENISED_AHEAD = 64  # rows: what a GPU decodes while the next ones are tokenised
_MANY_LOGITS = 1 << 18  # of a row, the same on a CPU
_MANY_NODES = 64  # of a trie, from which on a search for the best label alone is faster than scoring all


A = TypeVar("A", Reply, Embedding)


def _free(answer: A) -> A:
    """Return an answer of a model that costs nothing."""
    return replace(answer, usage=replace(answer.usage, cost_usd=0.0))


def _kind(request: ChatRequest) -> str:
    if request.choices is None:
        return _FREE
    return _MULTIPLE if request.choices.multiple else _SINGLE


def _usage(split: tuple[list[int], Trie]) -> Usage:
    head, trie = split
    return Usage(prompt_tokens=len(head) + len(trie.shared))


def _with_thought(reply: Reply, n_thought: int) -> Reply:
    """Count a thought as written, not as part of the prompt that the answer was asked with."""
    if not n_thought or (reply.error is not None and not reply.usage.prompt_tokens):
        return reply
    usage = replace(
        reply.usage,
        prompt_tokens=max(0, reply.usage.prompt_tokens - n_thought),
        completion_tokens=reply.usage.completion_tokens + n_thought,
    )
    return replace(reply, usage=usage)


def _choices(request: ChatRequest) -> Choices:
    if request.choices is None:
        raise TypeError("A request without choices cannot be scored.")
    return request.choices
