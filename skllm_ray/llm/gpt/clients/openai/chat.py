"""Chat with an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from skllm_ray.config import Secret
from skllm_ray.errors import MissingKeyError
from skllm_ray.llm.gate import Permit
from skllm_ray.llm.gpt.clients.openai import embeddings
from skllm_ray.llm.gpt.clients.openai.dialect import Dialect
from skllm_ray.llm.gpt.clients.openai.dispatch import Dispatcher, Job, whole
from skllm_ray.llm.gpt.clients.openai.errors import Refusals, classify, count_of, row_error
from skllm_ray.llm.gpt.clients.openai.headers import left_of_quotas
from skllm_ray.llm.gpt.clients.openai.redaction import redact
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.lessons import Question, is_about_system
from skllm_ray.llm.models import price_of
from skllm_ray.llm.tokens import TokenEstimate
from skllm_ray.tasks.base import TRUNCATED, ChatRequest, Embedding, Reply, RowError, Usage

if TYPE_CHECKING:
    import openai

_OPENAI_URL = "https://api.openai.com/v1"
_REREAD_S = 1.0
_MOST_KEYS = 4  # former ones, which messages may still quote


class OpenAIBackend:
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
    """

    def __init__(self, spec: OpenAISpec, key: str, read_key: Callable[[], str] | None = None) -> None:
        self._spec = spec
        key = Secret(key)
        self._keys = [key]
        self._read_key = read_key
        self._reading = asyncio.Lock()
        self._read_at = -math.inf
        self._client = _open_client(spec, key)
        self._response_type = _response_type()
        self._dialect = Dialect(spec)
        self._tokens = TokenEstimate()
        self._refusals = Refusals()
        bucket = f"{spec.base_url or _OPENAI_URL} {spec.model} {key.fingerprint}{' ' + spec.org if spec.org else ''}"
        self._dispatcher = Dispatcher(spec.patience, bucket, spec.limit)

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
        return self._dialect.ask_all(requests, self._ask, self._dispatcher, self._tokens, tell)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, in order. Failures are embeddings with an ``error``.

        Many texts travel in one request; where a server refuses one, its texts are asked again in halves, until the
        refused text stands alone.
        """
        dialect, tokens = self._dialect, self._tokens
        job = Job(self._ask_vectors, lambda part: sum(map(tokens.of_text, part.request)), Embedding, dialect.turn)
        found = embeddings.in_parts(texts, lambda parts: self._dispatcher.run(list(map(dialect.part, parts)), job))
        dialect.tell()
        return found

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._dispatcher.close(self._client.close)

    async def _ask(self, question: Question[ChatRequest], permit: Permit) -> Reply | None:
        """Ask once; None where the server merely did not understand, and is asked in another way."""
        body = self._dialect.body(question)
        try:
            answer = await self._send("/chat/completions", body, permit)
            reply = self._read(answer, question)
            self._tokens.learn(question.request, reply.usage)
        except Exception as error:  # noqa: BLE001  the boundary: one row's failure must not lose the others' replies
            failure = self._classify(error, [message["content"] for message in body["messages"]], permit)
            if self._doubts(question, body, error, failure):
                return None
            self._dialect.failed(question, failure)
            return Reply(error=failure)
        self._dialect.came(question, reply.error)
        self._refusals.answered()
        return reply

    async def _ask_vectors(self, question: Question[Sequence[str]], permit: Permit) -> Embedding | None:
        texts, body = question.request, self._dialect.embedding_body(question)
        try:
            answer = await self._send("/embeddings", body, permit)
            found = embeddings.read(answer, len(texts))
        except Exception as error:  # noqa: BLE001  as above
            failure = self._classify(error, texts, permit)
            if self._doubts(question, body, error, failure):
                return None
            self._dialect.failed(question, failure)
            return Embedding(error=failure)
        self._dialect.came(question, found.error)
        self._refusals.answered()
        return replace(found, usage=self._priced(found.usage, found.model))

    async def _send(self, path: str, body: dict[str, Any], permit: Permit) -> object:
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
        return json.loads(response.content)

    async def _has_another_key(self, refused: Secret) -> bool:
        """Return whether the client has another key than `refused` by now; one task looks it up for all."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._keys[-1] == refused and self._read_key is not None and now - self._read_at > _REREAD_S:
                self._read_at = now
                with contextlib.suppress(MissingKeyError):
                    found = Secret(await asyncio.to_thread(self._read_key))
                    if found != refused:
                        self._keys = [*self._keys[-_MOST_KEYS:], found]
                        self._client.api_key = found.reveal()
            return self._keys[-1] != refused

    def _doubts(self, question: Question[Any], body: dict[str, Any], error: Exception, failure: RowError) -> bool:
        import openai

        if not isinstance(error, openai.APIStatusError) or failure.kind not in {"bad_request", "server_error"}:
            return False
        said = _said(error)
        if failure.kind == "server_error" and not is_about_system(said):
            return False  # some servers fail where a model's template has no such role
        return self._dialect.doubts(question, body, error.param, said)

    def _classify(self, error: Exception, texts: Sequence[str], permit: Permit) -> RowError:
        failure = self._refusals.judge(classify(error, partial(redact, secrets=self._keys, texts=texts)))
        headers = getattr(getattr(error, "response", None), "headers", None)
        if headers is not None:
            permit.left = left_of_quotas(headers)
        if failure.kind == "rate_limit":
            permit.refusal_s = -1.0 if failure.retry_after_s is None else failure.retry_after_s
        return failure

    def _read(self, answer: object, question: Question[ChatRequest]) -> Reply:
        """Return the reply in `answer`, whose form nobody checked."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message")
        if not isinstance(answer, dict) or not isinstance(message, dict):
            what = "no choices" if isinstance(answer, dict) else "no JSON object"
            return Reply(error=row_error("malformed_response", f"The answer holds {what}."))
        text = _text(message.get("content"))
        error = _refusal(message, text, choice.get("finish_reason"), question.request)
        model = str(answer.get("model") or "")
        usage = self._priced(_usage(answer.get("usage")), model)
        log_probs = None
        if error is None and text is not None and self._dialect.wants_log_probs(question.request):
            told = choice.get("logprobs")
            log_probs, error = self._dialect.read_log_probs(
                told.get("content") if isinstance(told, dict) else None, text, question
            )
        return Reply(None if error else whole(text), log_probs, error=error, usage=usage, model=model)

    def _priced(self, usage: Usage, reported: str) -> Usage:
        spec = self._spec
        if usage == Usage():  # the server told nothing, which is not to say that it cost nothing
            return usage
        price = spec.price
        if price is None and spec.costs_list_price:
            price = price_of(spec.model if spec.api == "openai" else reported)
        if price is None:
            return usage
        cost = price.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        return replace(usage, cost_usd=cost)


def _response_type() -> Any:
    """Return the type of a raw response in the transport that this SDK uses: httpx2's, or httpx's."""
    import openai

    client = next(base for base in openai.DefaultAsyncHttpxClient.__mro__ if base.__name__ == "AsyncClient")
    return sys.modules[client.__module__.partition(".")[0]].Response


def _open_client(spec: OpenAISpec, key: Secret) -> openai.AsyncOpenAI:
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
            http_client=_transport(timeout),
        )
    base_url = spec.base_url or _OPENAI_URL
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key.reveal(),
        organization=spec.org,
        timeout=timeout,
        max_retries=0,
        http_client=_transport(timeout),
    )


def _transport(timeout: Any) -> Any:
    """Return the SDK's own aiohttp transport, which takes a third of the CPU time of its default one."""
    import openai

    return openai.DefaultAioHttpClient(timeout=timeout)


def _said(error: openai.APIStatusError) -> str:
    return f"{error.code or ''} {error.message}"


def _text(content: object) -> str | None:
    """Return the text of a message's content: a string, or the texts among a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, (str, dict))]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if found else None


def _refusal(message: dict[str, Any], text: str | None, finish_reason: object, request: ChatRequest) -> RowError | None:
    if finish_reason == "content_filter":
        return row_error("content_filter", "The server's content filter stopped the answer.")
    if message.get("refusal"):
        return row_error("content_filter", "The model refused to answer.")
    if finish_reason == "length" and (request.is_free_text or not (text or "").strip()):
        return TRUNCATED
    if text is None:
        return row_error("malformed_response", f"The answer is empty (finish_reason={finish_reason}).")
    return None


def _usage(usage: object) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    n_prompt = count_of(usage.get("prompt_tokens"))
    n_cached = count_of(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(n_prompt, count_of(usage.get("completion_tokens")), min(n_cached, n_prompt))
