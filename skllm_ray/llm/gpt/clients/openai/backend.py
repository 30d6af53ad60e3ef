"""Chat with an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from skllm_ray.config import Secret
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.api import embeddings
from skllm_ray.llm.api.answers import Answer, read
from skllm_ray.llm.api.capabilities import CUT_THOUGHT, Question, is_about_system
from skllm_ray.llm.api.failures import Refusals, classify, headers_of, told_of
from skllm_ray.llm.api.options import limits_in
from skllm_ray.llm.api.redaction import redact
from skllm_ray.llm.api.request_runner import RequestKind, RequestRunner, whole
from skllm_ray.llm.api.response_body import bytes_of_vectors, client, most_bytes, parsed, response_type
from skllm_ray.llm.api.token_estimate import TokenEstimate
from skllm_ray.llm.base import Backend
from skllm_ray.llm.gpt.clients.openai.headers import left_of_quotas
from skllm_ray.llm.gpt.clients.openai.request import Dialect
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.model_facts import price_of
from skllm_ray.llm.rate_limit.permits import Permit
from skllm_ray.llm.spec import with_cost
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError, Usage

if TYPE_CHECKING:
    import openai

_OPENAI_URL = "https://api.openai.com/v1"
_REREAD_S = 1.0
_MOST_KEYS = 4  # former ones, which messages may still quote


class OpenAIBackend(Backend):
    """An open client of one model: OpenAI's, Azure's, or any server's that speaks the same API.

    Parameters
    ----------
    spec : OpenAISpec
        The model and its server.
    key : str
        The API key, which is wrapped in a `Secret`; only the SDK gets its text.
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
        self._price = spec.capabilities.price
        key = Secret(key)
        self._keys = [key]
        self._read_key = read_key
        self._reading = asyncio.Lock()
        self._read_at = -math.inf
        self._hidden = list((headers or {}).values())
        self._client = _open_client(spec, key, headers or {})
        self._response_type = response_type()
        self._dialect = Dialect(spec)
        self._tokens = TokenEstimate()
        self._where = spec.base_url or _OPENAI_URL
        self._refusals = Refusals(self._where)
        bucket = f"{self._where} {spec.model} {key.fingerprint}{' ' + spec.org if spec.org else ''}"
        self._runner = RequestRunner(spec.patience, bucket, spec.limit, self._where)

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
        self._runner.close(self._client.close)

    async def _ask(self, question: Question[ChatRequest], permit: Permit) -> Reply | None:
        """Ask once; None where the server merely did not understand, and is asked in another way."""
        refused = self._dialect.unbounded(question)
        if refused is not None:
            return Reply(error=refused)
        body = self._dialect.body(question)
        with self._refusals.asking():
            try:
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
        if answer.is_thinking and self._dialect.lifts_bound(question, reply.usage):
            return replace(reply, text=None, error=CUT_THOUGHT)
        self._dialect.came(question, reply.error)
        self._refusals.answered()
        return reply

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
        """Post `body`. The SDK's parsing into models is left out: it takes more time than all the rest."""
        import openai

        key = self._keys[-1]
        try:
            response = await self._client.post(path, body=body, cast_to=self._response_type)
        except openai.AuthenticationError:
            if not await self._has_another_key(key):
                raise
            response = await self._client.post(path, body=body, cast_to=self._response_type)
        permit.left = left_of_quotas(response.headers)
        return parsed(response.content), response.headers

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
                        self._client.api_key = found.reveal()
            return self._keys[-1] != refused

    def _doubts(self, question: Question[Any], body: dict[str, Any], error: Exception, failure: RowError) -> bool:
        if failure.kind not in {"bad_request", "server_error"}:
            return False
        told = told_of(error)
        said = f"{told.code} {told.message}"
        if failure.kind == "server_error" and not is_about_system(said):
            return False  # some servers fail where a model's template has no such role
        return self._dialect.doubts(question, body, told.param, said)

    def _classify(self, error: Exception, texts: Sequence[str], permit: Permit, n_rows: int) -> RowError:
        found = classify(error, partial(redact, secrets=[*self._keys, *self._hidden], texts=texts), self._where)
        failure = self._refusals.judge(found, is_one_rows=n_rows == 1)
        headers = headers_of(error)
        if headers is not None:
            permit.left = left_of_quotas(headers)
        if failure.kind == "rate_limit":
            permit.refusal_s = -1.0 if failure.retry_after_s is None else failure.retry_after_s
        return failure

    def _reply(self, answer: Answer, question: Question[ChatRequest]) -> Reply:
        text, error, log_probs = answer.text, answer.error, None
        if error is None and text is not None and self._dialect.wants_log_probs(question.request):
            log_probs, error = self._dialect.read_log_probs(answer.tokens, text, question)
        usage = self._priced(answer.usage, answer.model)
        return Reply(None if error else whole(text), log_probs, error=error, usage=usage, model=answer.model)

    def _priced(self, usage: Usage, reported: str) -> Usage:
        price = self._price
        if price is None and self._spec.costs_list_price:  # what an Azure deployment runs, its answers tell
            price = price_of(reported)
        return with_cost(usage, price)


def _open_client(spec: OpenAISpec, key: Secret, headers: Mapping[str, Secret]) -> openai.AsyncOpenAI:
    import openai

    timeout_s = spec.patience.timeout_s
    timeout = openai.Timeout(timeout_s, connect=spec.patience.connect_s)
    if spec.api == "azure":
        return openai.AsyncAzureOpenAI(
            azure_endpoint=spec.base_url or "",
            azure_deployment=spec.model,
            api_version=spec.api_version,
            api_key=key.reveal(),
            organization=spec.org,
            timeout=timeout,
            max_retries=0,
            default_headers={name: value.reveal() for name, value in headers.items()},
            http_client=client(timeout),
        )
    base_url = spec.base_url or _OPENAI_URL
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key.reveal(),
        organization=spec.org,
        timeout=timeout,
        max_retries=0,
        default_headers={name: value.reveal() for name, value in headers.items()},
        http_client=client(timeout),
    )
