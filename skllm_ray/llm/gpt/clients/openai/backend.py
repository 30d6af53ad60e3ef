"""Chat with an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.api import embeddings
from skllm_ray.llm.api.answers import Answer, read
from skllm_ray.llm.api.capabilities import Question
from skllm_ray.llm.api.failures import Refusals, classify, headers_of, told_of
from skllm_ray.llm.api.forms import is_about_system
from skllm_ray.llm.api.http_client import HttpClient
from skllm_ray.llm.api.options import limits_in
from skllm_ray.llm.api.redaction import redact
from skllm_ray.llm.api.request_runner import RequestKind, RequestRunner, whole
from skllm_ray.llm.api.response_body import StatusError, bytes_of_vectors, most_bytes, parsed
from skllm_ray.llm.api.token_estimate import TokenEstimate
from skllm_ray.llm.base import Backend
from skllm_ray.llm.gpt.clients.openai.exact_scores import SCORES, ExactScores
from skllm_ray.llm.gpt.clients.openai.headers import OPENAI_URL, address, left_of_quotas, sent_headers
from skllm_ray.llm.gpt.clients.openai.request import Dialect
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.rate_limit.adaptive_concurrency import FIRST, FIRST_OF_A_SERVER
from skllm_ray.llm.rate_limit.permits import Permit
from skllm_ray.llm.spec import with_cost
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError, Usage

_REREAD_S = 1.0
_UNAUTHORIZED = 401
_MOST_KEYS = 4  # former ones, which messages may still quote


class OpenAIBackend(Backend):
    """An open client of one model: OpenAI's, Azure's, or any server's that speaks the same API.

    Parameters
    ----------
    spec : OpenAISpec
        The model and its server.
    key : str
        The API key, which is wrapped in a `Secret`; its text stands in the headers that are sent alone.
    read_key : callable, optional
        Looks the key up again, after the server refused the one in use: keys that a resolver or a file gives may change
        while the client is open.
    headers : mapping of str to Secret, optional
        Extra HTTP headers.
    """

    def __init__(
        self,
        spec: OpenAISpec,
        key: str,
        read_key: Callable[[], str] | None = None,
        headers: Mapping[str, Secret] | None = None,
    ) -> None:
        self._spec = spec
        key = Secret(key)
        self._keys = [key]
        self._read_key = read_key
        self._reading = asyncio.Lock()
        self._read_at = -math.inf
        self._extra_headers = headers or {}
        self._headers = sent_headers(spec, key, self._extra_headers)
        self._http = HttpClient(spec.patience.timeout_s, spec.patience.connect_s)
        self._dialect = Dialect(spec)
        self._tokens = TokenEstimate()
        self._where = spec.base_url or OPENAI_URL
        self._refusals = Refusals(self._where)
        self._scores = ExactScores(spec, self._send)
        bucket = f"{self._where} {spec.model} {key.fingerprint}{' ' + spec.org if spec.org else ''}"
        first = FIRST_OF_A_SERVER if spec.api == "custom_url" else FIRST
        self._runner = RequestRunner(spec.patience, bucket, spec.limit, self._where, first)

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, in order. Failures are replies with an ``error``.

        Warns
        -----
        SkllmRayWarning
            Once for every parameter that the server does not accept, and that is left out from then on.
        """
        return self.complete_each(requests, None)

    def complete_each(self, requests: Sequence[ChatRequest], tell: Callable[[int, Reply], None] | None) -> list[Reply]:
        """Do what `complete` does, and call `tell` with each reply and its position when it arrives."""
        return self._dialect.ask_all(requests, self._ask, self._runner, self._tokens, tell)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, in order. Failures are embeddings with an ``error``.

        Many texts travel in one request; where it fails as one of its texts may make it fail, they are asked again in
        halves, until that text stands alone.
        """
        dialect, tokens = self._dialect, self._tokens
        kind = RequestKind(
            self._ask_vectors,
            lambda part: sum(map(tokens.of_text, part.request)),
            Embedding,
            dialect.turn,
            lambda part: embeddings.tries_of(part.request),
        )
        found = embeddings.in_parts(
            texts,
            lambda parts: self._runner.run(list(map(dialect.part, parts)), kind),
            repeats_lost=self._spec.patience.repeats_lost,
        )
        dialect.tell()
        return embeddings.of_one_length(found)

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._runner.close(self._http.close)

    async def _ask(self, question: Question[ChatRequest], permit: Permit) -> Reply | None:
        """Ask once; None where the server merely did not understand, and is asked in another way."""
        refused = self._dialect.unbounded(question)
        if refused is not None:
            return Reply(error=refused)
        body = self._dialect.body(question)
        with self._refusals.asking():
            try:
                scored = await self._scored(question, permit)
                if scored is not None:
                    self._dialect.came(question, None)
                    self._refusals.answered()
                    return scored
                told, headers = await self._send("/chat/completions", body, permit)
                answer = read(told, question.request, headers)
                reply = self._reply(answer, question)
                self._tokens.learn(question.request, reply.usage)
            except Exception as error:  # noqa: BLE001  the boundary: one row's failure must not lose the others' replies
                texts = [message["content"] for message in body["messages"]]
                failure = self._classify(error, texts, permit, 1)
                if self._doubts(question, body, error, failure):
                    return None
                self._dialect.failed(question, failure)
                return Reply(error=failure)
        self._dialect.overran(next(iter(limits_in(body)), None), reply.usage)
        cut = self._dialect.lifts_bound(question, answer)
        if cut is not None:
            return replace(reply, text=None, error=cut)
        self._dialect.came(question, reply.error)
        self._refusals.answered()
        return reply

    async def _scored(self, question: Question[ChatRequest], permit: Permit) -> Reply | None:
        """Return the exactly scored reply; None where the server cannot tell one."""
        dialect, request = self._dialect, question.request
        if not self._scores.wants(request) or SCORES in dialect.refused:
            return None
        found = await self._scores.reply(request, dialect.messages(question), permit)
        if self._scores.is_refused:
            dialect.refused.add(SCORES)
        if found is not None:
            self._tokens.learn(request, found.usage)
        return None if found is None else replace(found, usage=self._priced(found.usage, found.model))

    async def _ask_vectors(self, question: Question[Sequence[str]], permit: Permit) -> Embedding | None:
        texts, body = question.request, self._dialect.embedding_body(question)
        most_bytes.set(bytes_of_vectors(len(texts)))
        with self._refusals.asking():
            try:
                answer, headers = await self._send("/embeddings", body, permit)
                found = embeddings.read(answer, len(texts), headers)
            except Exception as error:  # noqa: BLE001  as above
                failure = self._classify(error, texts, permit, len(texts))
                if self._doubts(question, body, error, failure):
                    return None
                self._dialect.failed(question, failure)
                return Embedding(error=failure)
        self._dialect.came(question, found.error)
        self._refusals.answered()
        return replace(found, usage=self._priced(found.usage, found.model))

    async def _send(self, path: str, body: dict[str, Any], permit: Permit) -> tuple[object, Mapping[str, str]]:
        """Post `body` to a path below the base URL, or to another address of the same server."""
        key, url = self._keys[-1], address(self._spec, path)
        try:
            answer = await self._http.post(url, body, self._headers)
        except StatusError as error:
            if error.answer.status != _UNAUTHORIZED or not await self._has_another_key(key):
                raise
            answer = await self._http.post(url, body, self._headers)
        permit.left = left_of_quotas(answer.headers)
        return parsed(answer.content), answer.headers

    async def _has_another_key(self, refused: Secret) -> bool:
        """Return whether the client has another key than `refused` by now; one task looks it up for all."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._keys[-1] == refused and self._read_key is not None and now - self._read_at > _REREAD_S:
                self._read_at = now
                with contextlib.suppress(ConfigurationError):
                    found = Secret(await asyncio.to_thread(self._read_key))
                    if found != refused:
                        self._keys = [*self._keys[-_MOST_KEYS:], found]
                        self._headers = sent_headers(self._spec, found, self._extra_headers)
            return self._keys[-1] != refused

    def _doubts(self, question: Question[Any], body: dict[str, Any], error: Exception, failure: RowError) -> bool:
        if failure.kind not in {"bad_request", "server_error", "context_length"}:
            return False
        told = told_of(error)
        said = f"{told.code} {told.message}"
        if failure.kind == "context_length":
            return self._dialect.blames_bound(question, said)
        if failure.kind == "server_error" and not is_about_system(said):
            return False  # some servers fail where a model's template has no such role
        return (
            self._dialect.doubts(question, body, told.param, said)
            or self._dialect.blames_bound(question, f"{told.param} {said}")
            or self._dialect.blames_log_probs(question, failure)
        )

    def _classify(self, error: Exception, texts: Sequence[str], permit: Permit, n_rows: int) -> RowError:
        hidden = [*self._keys, *self._extra_headers.values()]
        found = classify(error, partial(redact, secrets=hidden, texts=texts), self._where)
        failure = self._refusals.judge(found, is_one_rows=n_rows == 1)
        headers = headers_of(error)
        if headers is not None:
            permit.left = left_of_quotas(headers)
        if failure.kind == "rate_limit":
            permit.refusal_s = -1.0 if failure.retry_after_s is None else failure.retry_after_s
        return failure

    def _reply(self, answer: Answer, question: Question[ChatRequest]) -> Reply:
        text = None if answer.error else whole(answer.text)
        usage = self._priced(answer.usage, answer.model, answer.tier, wrote=bool(answer.text))
        reply = Reply(text, error=answer.error, usage=usage, model=answer.model)
        return self._dialect.with_confidence(reply, answer.tokens, question)

    def _priced(self, usage: Usage, reported: str, served: str = "", *, wrote: bool = False) -> Usage:
        return with_cost(usage, self._spec.answer_price(reported, served), wrote=wrote)
