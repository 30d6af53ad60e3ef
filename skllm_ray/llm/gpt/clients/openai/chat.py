"""Chat with an OpenAI-compatible server."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from skllm_ray.config import Secret
from skllm_ray.errors import SkllmRayWarning
from skllm_ray.llm.gate import Permit
from skllm_ray.llm.gpt.clients.openai import embeddings
from skllm_ray.llm.gpt.clients.openai.dialect import Dialect
from skllm_ray.llm.gpt.clients.openai.dispatch import Dispatcher, Job, whole
from skllm_ray.llm.gpt.clients.openai.errors import classify, redact, row_error
from skllm_ray.llm.gpt.clients.openai.headers import left_of_quotas
from skllm_ray.llm.gpt.clients.openai.logprobs import label_log_probs
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.models import price_of
from skllm_ray.llm.tokens import TokenEstimate
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError, Usage

if TYPE_CHECKING:
    import openai

_OPENAI_URL = "https://api.openai.com/v1"


class OpenAIBackend:
    """An open client of one model: OpenAI's, Azure's, or any server's that speaks the same API.

    Parameters
    ----------
    spec : OpenAISpec
        The model and its server.
    key : str
        The API key.
    """

    def __init__(self, spec: OpenAISpec, key: str) -> None:
        self._spec = spec
        self._key = key
        self._client = _open_client(spec, key)
        self._response_type = _response_type()
        self._dialect = Dialect(spec)
        self._tokens = TokenEstimate()
        bucket = (
            f"{spec.base_url or _OPENAI_URL} {spec.model} {Secret(key).fingerprint}{' ' + spec.org if spec.org else ''}"
        )
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
        replies = self._dispatcher.run(requests, Job(self._ask, self._tokens.of_request, Reply), tell)
        self._tell()
        return replies

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, in order. Failures are embeddings with an ``error``.

        Many texts travel in one request; where a server refuses one, its texts are asked again in halves, until the
        refused text stands alone.
        """
        job = Job(self._ask_vectors, lambda part: sum(map(self._tokens.of_text, part)), Embedding)
        found = embeddings.in_parts(texts, lambda parts: self._dispatcher.run(parts, job))
        self._tell()
        return found

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._dispatcher.close(self._client.close)

    def _tell(self) -> None:
        while self._dialect.notices:
            warnings.warn(self._dialect.notices.pop(0), SkllmRayWarning, stacklevel=3)

    async def _ask(self, request: ChatRequest, permit: Permit) -> Reply | None:
        """Ask once; None where the server merely did not understand, and is asked in another way."""
        body = self._dialect.body(request)
        try:
            answer = await self._send("/chat/completions", body, permit)
            reply = self._read(answer, request, body)
            self._tokens.learn(request, reply.usage)
        except Exception as error:  # noqa: BLE001  the boundary: one row's failure must not lose the others' replies
            failure = self._classify(error, [message["content"] for message in request.messages], permit)
            if failure.kind == "bad_request" and self._learn(error, body):
                return Reply(error=_no_log_probs(self._spec)) if self._dialect.refused_log_probs() else None
            return Reply(error=failure)
        return reply

    async def _ask_vectors(self, texts: Sequence[str], permit: Permit) -> Embedding | None:
        body = self._dialect.embedding_body(texts)
        try:
            answer = await self._send("/embeddings", body, permit)
            found = embeddings.read(answer, len(texts))
        except Exception as error:  # noqa: BLE001  as above
            failure = self._classify(error, texts, permit)
            if failure.kind == "bad_request" and self._learn(error, body):
                return None
            return Embedding(error=failure)
        return replace(found, usage=self._priced(found.usage, found.model))

    async def _send(self, path: str, body: dict[str, Any], permit: Permit) -> object:
        """Post `body`. The SDK's parsing into models is left out: it takes more time than all the rest."""
        response = await self._client.post(path, body=body, cast_to=self._response_type)
        permit.left = left_of_quotas(response.headers)
        return json.loads(response.content)

    def _learn(self, error: Exception, body: dict[str, Any]) -> bool:
        import openai

        if not isinstance(error, openai.APIStatusError):
            return False
        return self._dialect.learn(body, error.param, _said(error))

    def _classify(self, error: Exception, texts: Sequence[str], permit: Permit) -> RowError:
        failure = classify(error, partial(redact, secrets=[self._key], texts=texts))
        headers = getattr(getattr(error, "response", None), "headers", None)
        if headers is not None:
            permit.left = left_of_quotas(headers)
        if failure.kind == "rate_limit":
            permit.refusal_s = -1.0 if failure.retry_after_s is None else failure.retry_after_s
        return failure

    def _read(self, answer: object, request: ChatRequest, body: dict[str, Any]) -> Reply:
        """Return the reply in `answer`, whose form nobody checked."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message")
        if not isinstance(answer, dict) or not isinstance(message, dict):
            what = "no choices" if isinstance(answer, dict) else "no JSON object"
            return Reply(error=row_error("malformed_response", f"The answer holds {what}."))
        error = _refusal(message, choice.get("finish_reason"))
        model = str(answer.get("model") or "")
        usage = self._priced(_usage(answer.get("usage")), model)
        log_probs = None
        if "logprobs" in body and request.choices and error is None:
            told = choice.get("logprobs")
            tokens = told.get("content") if isinstance(told, dict) else None
            log_probs = label_log_probs(tokens, request.choices.labels) if tokens else None
            if not tokens:
                error = _no_log_probs(self._spec)
        text = None if error else whole(message["content"])
        return Reply(text, log_probs, error=error, usage=usage, model=model)

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


def _no_log_probs(spec: OpenAISpec) -> RowError:
    message = f"The server gives no log probabilities for {spec.model}, so there is no predict_proba; predict works."
    return RowError("not_supported", message, fatal=True)


def _response_type() -> Any:
    """Return the type of a raw response in the transport that this SDK uses: httpx2's, or httpx's."""
    import openai

    client = next(base for base in openai.DefaultAsyncHttpxClient.__mro__ if base.__name__ == "AsyncClient")
    return sys.modules[client.__module__.partition(".")[0]].Response


def _open_client(spec: OpenAISpec, key: str) -> openai.AsyncOpenAI:
    import openai

    timeout_s = spec.patience.timeout_s
    timeout = openai.Timeout(timeout_s, connect=spec.patience.connect_s)
    if spec.api == "azure":
        return openai.AsyncAzureOpenAI(
            azure_endpoint=spec.base_url or "",
            azure_deployment=spec.model,
            api_version=spec.api_version,
            api_key=key,
            organization=spec.org,
            timeout=timeout,
            max_retries=0,
            http_client=_transport(timeout),
        )
    base_url = spec.base_url or _OPENAI_URL
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key,
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


def _refusal(message: dict[str, Any], finish_reason: object) -> RowError | None:
    if finish_reason == "content_filter":
        return row_error("content_filter", "The server's content filter stopped the answer.")
    if message.get("refusal"):
        return row_error("content_filter", "The model refused to answer.")
    if not isinstance(message.get("content"), str):
        empty = f"The answer is empty (finish_reason={finish_reason})."
        return row_error("malformed_response", empty, retryable=finish_reason != "length")
    return None


def _usage(usage: object) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=(details.get("cached_tokens") or 0) if isinstance(details, dict) else 0,
    )
