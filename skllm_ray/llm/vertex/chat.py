"""Chat with Gemini on Vertex AI."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from skllm_ray.config import Secret
from skllm_ray.errors import MissingExtraError
from skllm_ray.llm.gate import Permit
from skllm_ray.llm.gpt.clients.openai.dispatch import Dispatcher, Job, whole
from skllm_ray.llm.gpt.clients.openai.errors import Refusals, row_error
from skllm_ray.llm.gpt.clients.openai.options import thaw_options
from skllm_ray.llm.gpt.clients.openai.redaction import redact
from skllm_ray.llm.lessons import Question
from skllm_ray.llm.tokens import TokenEstimate
from skllm_ray.llm.vertex.dialect import VertexDialect
from skllm_ray.llm.vertex.errors import classify, said
from skllm_ray.llm.vertex.spec import VertexSpec
from skllm_ray.tasks.base import TRUNCATED, ChatRequest, Embedding, Reply, RowError, Usage

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
        token = None if token is None else Secret(token)
        self._token = token
        self._client = _open_client(spec, token)
        self._dialect = VertexDialect(spec)
        self._tokens = TokenEstimate()
        self._refusals = Refusals()
        account = token.fingerprint if token else "default credentials"
        bucket = f"{spec.base_url or 'vertex'} {spec.project}/{spec.location} {spec.model} {account}"
        self._dispatcher = Dispatcher(spec.patience, bucket, spec.limit)

    def complete(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """Return one reply per request, in order. Failures are replies with an ``error``.

        Warns
        -----
        SkllmRayWarning
            Once for every field that the model does not accept, and that is left out from then on.
        """
        return self.complete_each(requests, None)

    def complete_each(self, requests: Sequence[ChatRequest], tell: Callable[[int, Reply], None] | None) -> list[Reply]:
        """Do what `complete` does, and call `tell` with each reply and its position when it arrives."""
        return self._dialect.ask_all(requests, self._ask, self._dispatcher, self._tokens, tell)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, in order. Failures are embeddings with an ``error``.

        Every text is a request of its own: some models make one vector of many texts.
        """
        return self._dispatcher.run(texts, Job(self._ask_vector, self._tokens.of_text, Embedding))

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._dispatcher.close(self._client.aio.aclose)
        self._client.close()

    async def _ask(self, question: Question[ChatRequest], permit: Permit) -> Reply | None:
        """Ask once; None where the model merely did not understand, and is asked in another way."""
        config = self._dialect.config(question)
        try:
            reply = self._read(await self._send(question, config), question)
            self._tokens.learn(question.request, reply.usage)
        except Exception as error:  # noqa: BLE001  the boundary: one row's failure must not lose the others' replies
            sent = [*self._dialect.turns(question), *question.request.messages]
            failure = self._classify(error, [message["content"] for message in sent], permit)
            if failure.kind == "bad_request" and self._dialect.doubts(question, config, said(error)):
                return None
            self._dialect.failed(question, failure)
            return Reply(error=failure)
        self._dialect.came(question, reply.error)
        self._refusals.answered()
        return reply

    async def _ask_vector(self, text: str, permit: Permit) -> Embedding:
        from google.genai import types

        try:
            options = types.EmbedContentConfig.model_validate(thaw_options(self._spec.request_options))
            answer = await self._client.aio.models.embed_content(
                model=self._spec.model, contents=[types.Content(parts=[types.Part(text=text)])], config=options
            )
            found = self._vector(answer)
        except Exception as error:  # noqa: BLE001  as above
            return Embedding(error=self._classify(error, [text], permit))
        self._refusals.answered()
        return found

    def _vector(self, answer: types.EmbedContentResponse) -> Embedding:
        found = answer.embeddings or []
        if len(found) != 1 or not found[0].values:
            message = f"The answer holds {len(found)} vectors for one text."
            return Embedding(error=row_error("malformed_response", message))
        told = found[0].statistics
        usage = self._priced(Usage(prompt_tokens=int(told.token_count or 0) if told else 0))
        return Embedding(np.asarray(found[0].values, dtype=np.float32), usage=usage, model=self._spec.model)

    def _classify(self, error: Exception, texts: Sequence[str], permit: Permit) -> RowError:
        secrets = [] if self._token is None else [self._token]
        failure = self._refusals.judge(classify(error, partial(redact, secrets=secrets, texts=texts)))
        if failure.kind == "rate_limit":
            permit.refusal_s = -1.0 if failure.retry_after_s is None else failure.retry_after_s
        return failure

    def _read(self, response: types.GenerateContentResponse, question: Question[ChatRequest]) -> Reply:
        usage, model = self._priced(_usage(response.usage_metadata)), response.model_version or ""
        error, log_probs = _refusal(response, question.request), None
        text = None if error else response.text
        if text is not None and response.candidates and self._dialect.wants_log_probs(question.request):
            log_probs, error = self._dialect.read_log_probs(_tokens(response.candidates[0]), text, question)
        return Reply(None if error else whole(text), log_probs, error=error, usage=usage, model=model)

    def _priced(self, usage: Usage) -> Usage:
        if self._spec.price is None or usage == Usage():  # who tells nothing has not said that it cost nothing
            return usage
        cost = self._spec.price.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        return replace(usage, cost_usd=cost)

    async def _send(self, question: Question[ChatRequest], config: dict[str, Any]) -> types.GenerateContentResponse:
        from google.genai import types

        turns: list[Any] = [
            types.Content(role=_ROLES[message["role"]], parts=[types.Part(text=message["content"])])
            for message in self._dialect.turns(question)
        ]
        return await self._client.aio.models.generate_content(
            model=self._spec.model, contents=turns, config=types.GenerateContentConfig.model_validate(config)
        )


def _open_client(spec: VertexSpec, token: Secret | None) -> genai.Client:
    try:
        from google import genai
        from google.genai import types
        from google.oauth2.credentials import Credentials
    except ImportError:
        raise MissingExtraError.for_extra("google-genai", "vertex") from None
    base_url, version = spec.base_url, None
    if base_url and re.search(r"/v\d\w*$", base_url):  # a gateway may speak another version than the SDK's own
        base_url, _, version = base_url.rpartition("/")
    http_options = types.HttpOptions(
        base_url=base_url,
        api_version=version,
        timeout=round(spec.patience.timeout_s * 1000),
        retry_options=types.HttpRetryOptions(attempts=1),  # None would retry a lost connection unasked
    )
    return genai.Client(
        vertexai=True,
        project=spec.project,
        location=spec.location,
        credentials=Credentials(token=token.reveal()) if token else None,
        http_options=http_options,
    )


def _tokens(candidate: types.Candidate) -> list[dict[str, Any]]:
    """Return a candidate's tokens in the form that OpenAI gave them."""
    told = candidate.logprobs_result
    if told is None or not told.chosen_candidates:
        return []
    tops = told.top_candidates or []
    tokens = []
    for position, chosen in enumerate(told.chosen_candidates):
        others = (tops[position].candidates or []) if position < len(tops) else []
        tokens.append(_token(chosen) | {"top_logprobs": [_token(other) for other in others]})
    return tokens


def _token(candidate: types.LogprobsResultCandidate) -> dict[str, Any]:
    return {"token": candidate.token or "", "logprob": candidate.log_probability or 0.0}


def _refusal(response: types.GenerateContentResponse, request: ChatRequest) -> RowError | None:
    blocked = response.prompt_feedback.block_reason if response.prompt_feedback else None
    if blocked:
        return row_error("content_filter", f"Gemini blocked the prompt ({blocked.value}).")
    if not response.candidates:
        return row_error("malformed_response", "The answer holds no candidates.")
    reason = response.candidates[0].finish_reason
    ended = reason.value if reason else "UNKNOWN"
    if ended in _BLOCKED:
        return row_error("content_filter", f"Gemini stopped the answer ({ended}).")
    if ended == "MAX_TOKENS" and (request.is_free_text or not (response.text or "").strip()):
        return TRUNCATED
    if response.text is None:
        return row_error("malformed_response", f"The answer is empty (finish_reason={ended}).")
    return None


def _usage(usage: types.GenerateContentResponseUsageMetadata | None) -> Usage:
    if usage is None:
        return Usage()
    return Usage(
        prompt_tokens=usage.prompt_token_count or 0,
        completion_tokens=(usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
        cached_tokens=usage.cached_content_token_count or 0,
    )
