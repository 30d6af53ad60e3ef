"""Chat with an OpenAI-compatible server."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from skllm_ray.errors import NotSupportedError, SkllmRayWarning
from skllm_ray.llm.gpt.clients.openai.dialect import Dialect
from skllm_ray.llm.gpt.clients.openai.dispatch import Dispatcher
from skllm_ray.llm.gpt.clients.openai.errors import classify, redact, row_error
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError, Usage

if TYPE_CHECKING:
    import openai

_OPENAI_URL = "https://api.openai.com/v1"
_LONGEST_CONNECT_S = 10.0


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
        self._dialect = Dialect(spec)
        self._dispatcher = Dispatcher(spec.patience, spec.max_concurrency)

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, in order. Failures are replies with an ``error``.

        Warns
        -----
        SkllmRayWarning
            Once for every parameter that the server does not accept, and that is left out from then on.
        """
        replies = self._dispatcher.run(requests, self._ask)
        while self._dialect.notices:
            warnings.warn(self._dialect.notices.pop(0), SkllmRayWarning, stacklevel=2)
        return replies

    def embed(self, texts: Sequence[str]) -> list[Embedding]:  # noqa: ARG002  the protocol's signature
        """Raise `NotSupportedError`: a chat model has no vectors."""
        raise NotSupportedError(f"{self._spec.model} was opened as a chat model, which does not embed texts.")

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._dispatcher.close(self._client.close)

    async def _ask(self, request: ChatRequest) -> Reply:
        """Ask once; what the server merely does not understand is put differently and asked again."""
        import openai

        attempts = 0
        while True:
            body = self._dialect.body(request)
            attempts += 1
            try:
                return _read(await self._send(body), attempts)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                failure = self._classify(error, request)
                if failure.kind != "bad_request" or not self._dialect.learn(body, error.param, _said(error)):
                    return Reply(error=failure, attempts=attempts)
            except Exception as error:  # noqa: BLE001  the boundary: one row's failure must not lose the others' replies
                return Reply(error=self._classify(error, request), attempts=attempts)

    async def _send(self, body: dict[str, Any]) -> object:
        rest = {name: value for name, value in body.items() if name not in {"model", "messages"}}
        return await self._client.chat.completions.create(
            model=body["model"], messages=body["messages"], extra_body=rest
        )

    def _classify(self, error: Exception, request: ChatRequest) -> RowError:
        texts = [message["content"] for message in request.messages]
        return classify(error, partial(redact, secrets=[self._key], texts=texts))


def _open_client(spec: OpenAISpec, key: str) -> openai.AsyncOpenAI:
    import openai

    timeout_s = spec.patience.timeout_s
    timeout = openai.Timeout(timeout_s, connect=min(timeout_s, _LONGEST_CONNECT_S))
    if spec.api == "azure":
        return openai.AsyncAzureOpenAI(
            azure_endpoint=spec.base_url or "",
            azure_deployment=spec.model,
            api_version=spec.api_version,
            api_key=key,
            organization=spec.org,
            timeout=timeout,
            max_retries=0,
        )
    base_url = spec.base_url or _OPENAI_URL
    return openai.AsyncOpenAI(base_url=base_url, api_key=key, organization=spec.org, timeout=timeout, max_retries=0)


def _said(error: openai.APIStatusError) -> str:
    return f"{error.code or ''} {error.message}"


def _read(completion: object, attempts: int) -> Reply:
    """Return the reply in `completion`, of which the SDK checks neither the type nor the fields."""
    choices: Any = getattr(completion, "choices", None) or [None]
    message = getattr(choices[0], "message", None)
    if message is None:
        what = "no JSON object" if isinstance(completion, str) else "no choices"
        return Reply(error=row_error("malformed_response", f"The answer holds {what}."), attempts=attempts)
    error = _refusal(message, getattr(choices[0], "finish_reason", None))
    usage, model = _usage(getattr(completion, "usage", None)), str(getattr(completion, "model", None) or "")
    return Reply(None if error else message.content, error=error, usage=usage, attempts=attempts, model=model)


def _refusal(message: Any, finish_reason: str | None) -> RowError | None:
    if finish_reason == "content_filter":
        return row_error("content_filter", "The server's content filter stopped the answer.")
    if getattr(message, "refusal", None):
        return row_error("content_filter", "The model refused to answer.")
    if not isinstance(message.content, str):
        empty = f"The answer is empty (finish_reason={finish_reason})."
        return row_error("malformed_response", empty, retryable=finish_reason != "length")
    return None


def _usage(usage: Any) -> Usage:
    details = getattr(usage, "prompt_tokens_details", None)
    return Usage(
        prompt_tokens=getattr(usage, "prompt_tokens", None) or 0,
        completion_tokens=getattr(usage, "completion_tokens", None) or 0,
        cached_tokens=getattr(details, "cached_tokens", None) or 0,
    )
