"""Chat with Gemini on Vertex AI."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from skllm_ray.errors import MissingExtraError, NotSupportedError
from skllm_ray.llm.gpt.clients.openai.dispatch import Dispatcher
from skllm_ray.llm.gpt.clients.openai.errors import redact, row_error
from skllm_ray.llm.gpt.clients.openai.options import thaw_options
from skllm_ray.llm.vertex.errors import classify
from skllm_ray.llm.vertex.spec import VertexSpec
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError, Usage

if TYPE_CHECKING:
    from google import genai
    from google.genai import types

_BLOCKED = {"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"}
_ROLES = {"user": "user", "assistant": "model"}


class VertexBackend:
    """An open client of one Gemini model.

    Parameters
    ----------
    spec : VertexSpec
        The model, its project and its location.
    token : str or None
        An access token; None uses the application default credentials.
    """

    def __init__(self, spec: VertexSpec, token: str | None) -> None:
        self._spec = spec
        self._token = token
        self._client = _open_client(spec, token)
        self._dispatcher = Dispatcher(spec.patience, spec.max_concurrency)

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, in order. Failures are replies with an ``error``."""
        return self._dispatcher.run(requests, self._ask)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:  # noqa: ARG002  the protocol's signature
        """Raise `NotSupportedError`: a chat model has no vectors."""
        raise NotSupportedError(f"{self._spec.model} was opened as a chat model, which does not embed texts.")

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._dispatcher.close(self._client.aio.aclose)
        self._client.close()

    async def _ask(self, request: ChatRequest) -> Reply:
        try:
            return _read(await self._send(request))
        except Exception as error:  # noqa: BLE001  the boundary: one row's failure must not lose the others' replies
            texts = [message["content"] for message in request.messages]
            return Reply(error=classify(error, partial(redact, secrets=[self._token or ""], texts=texts)))

    async def _send(self, request: ChatRequest) -> types.GenerateContentResponse:
        from google.genai import types

        turns: list[Any] = [
            types.Content(role=_ROLES[message["role"]], parts=[types.Part(text=message["content"])])
            for message in request.messages
            if message["role"] != "system"
        ]
        config = types.GenerateContentConfig.model_validate(_config(request) | thaw_options(self._spec.request_options))
        return await self._client.aio.models.generate_content(model=self._spec.model, contents=turns, config=config)


def _open_client(spec: VertexSpec, token: str | None) -> genai.Client:
    try:
        from google import genai
        from google.genai import types
        from google.oauth2.credentials import Credentials
    except ImportError:
        raise MissingExtraError.for_extra("google-genai", "vertex") from None
    http_options = types.HttpOptions(
        base_url=spec.base_url,
        timeout=round(spec.patience.timeout_s * 1000),
        retry_options=types.HttpRetryOptions(attempts=1),  # None would retry a lost connection unasked
    )
    return genai.Client(
        vertexai=True,
        project=spec.project,
        location=spec.location,
        credentials=Credentials(token=token) if token else None,
        http_options=http_options,
    )


def _config(request: ChatRequest) -> dict[str, Any]:
    """Return the configuration of one request. Gemini 3's guide says to leave the temperature out."""
    system = "\n\n".join(message["content"] for message in request.messages if message["role"] == "system")
    schema = request.choices.json_schema() if request.choices else request.json_schema
    config: dict[str, Any] = {"system_instruction": system or None, "max_output_tokens": request.max_output_tokens}
    if schema:
        config |= {"response_mime_type": "application/json", "response_json_schema": schema}
    return config


def _read(response: types.GenerateContentResponse) -> Reply:
    usage, model = _usage(response.usage_metadata), response.model_version or ""
    error = _refusal(response)
    return Reply(None if error else response.text, error=error, usage=usage, model=model)


def _refusal(response: types.GenerateContentResponse) -> RowError | None:
    blocked = response.prompt_feedback.block_reason if response.prompt_feedback else None
    if blocked:
        return row_error("content_filter", f"Gemini blocked the prompt ({blocked.value}).")
    if not response.candidates:
        return row_error("malformed_response", "The answer holds no candidates.")
    reason = response.candidates[0].finish_reason
    ended = reason.value if reason else "UNKNOWN"
    if ended in _BLOCKED:
        return row_error("content_filter", f"Gemini stopped the answer ({ended}).")
    if response.text is None:
        message = f"The answer is empty (finish_reason={ended})."
        return row_error("malformed_response", message, retryable=ended != "MAX_TOKENS")
    return None


def _usage(usage: types.GenerateContentResponseUsageMetadata | None) -> Usage:
    if usage is None:
        return Usage()
    return Usage(
        prompt_tokens=usage.prompt_token_count or 0,
        completion_tokens=(usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
        cached_tokens=usage.cached_content_token_count or 0,
    )
