"""Chat with Gemini on Vertex AI."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from skllm_ray.config import Secret
from skllm_ray.errors import MissingExtraError
from skllm_ray.llm.api.answers import Answer, read
from skllm_ray.llm.api.capabilities import Question
from skllm_ray.llm.api.embeddings import of_one_length
from skllm_ray.llm.api.failures import Refusals
from skllm_ray.llm.api.options import limits_in
from skllm_ray.llm.api.redaction import redact
from skllm_ray.llm.api.request_runner import RequestKind, RequestRunner, whole
from skllm_ray.llm.api.response_body import client, latest_body, parsed
from skllm_ray.llm.api.token_estimate import TokenEstimate
from skllm_ray.llm.base import Backend
from skllm_ray.llm.rate_limit.permits import Permit
from skllm_ray.llm.spec import with_cost
from skllm_ray.llm.vertex.answers import in_openai_form, read_vector
from skllm_ray.llm.vertex.errors import classify, told_of
from skllm_ray.llm.vertex.request import VertexDialect
from skllm_ray.llm.vertex.spec import VertexSpec, fields_of
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError

if TYPE_CHECKING:
    from google import genai
    from google.genai import types

_TIER = "X-Vertex-AI-LLM-Shared-Request-Type"
_ROLES = {"user": "user", "assistant": "model"}


class VertexBackend(Backend):
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
        self._price = spec.capabilities.price
        token = None if token is None else Secret(token)
        self._token = token
        self._http = client(spec.patience.timeout_s)
        self._client = _open_client(spec, token, self._http)
        self._dialect = VertexDialect(spec)
        self._tokens = TokenEstimate()
        account = token.fingerprint if token else "default credentials"
        bucket = f"{spec.base_url or 'vertex'} {spec.project}/{spec.location} {spec.model} {account}"
        self._where = spec.base_url or f"Vertex AI, {spec.project}/{spec.location}"
        self._refusals = Refusals(self._where)
        self._runner = RequestRunner(spec.patience, bucket, spec.limit, self._where)

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
        return self._dialect.ask_all(requests, self._ask, self._runner, self._tokens, tell)

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text, in order. Failures are embeddings with an ``error``.

        Every text is a request of its own: some models make one vector of many texts.
        """
        kind = RequestKind(self._ask_vector, self._tokens.of_text, Embedding)
        return of_one_length(self._runner.run(texts, kind))

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._runner.close(self._close)
        self._client.close()

    async def _ask(self, question: Question[ChatRequest], permit: Permit) -> Reply | None:
        """Ask once; None where the model merely did not understand, and is asked in another way."""
        refused = self._dialect.unbounded(question)
        if refused is not None:
            return Reply(error=refused)
        config = self._dialect.config(question)
        with self._refusals.asking():
            try:
                answer = read(in_openai_form(await self._send(question, config)), question.request, {})
                reply = self._reply(answer, question)
                self._tokens.learn(question.request, reply.usage)
            except Exception as error:  # noqa: BLE001  the boundary: one row's failure must not lose the others' replies
                sent = [*self._dialect.turns(question), *question.request.messages]
                failure = self._classify(error, [message["content"] for message in sent], permit)
                if self._doubts(question, config, failure, told_of(error).message):
                    return None
                self._dialect.failed(question, failure)
                return Reply(error=failure)
        self._dialect.overran(next(iter(limits_in(config)), None), reply.usage)
        cut = self._dialect.lifts_bound(question, answer)
        if cut is not None:
            return replace(reply, text=None, error=cut)
        self._dialect.came(question, reply.error)
        self._refusals.answered()
        return reply

    def _doubts(self, question: Question[ChatRequest], config: dict[str, Any], failure: RowError, message: str) -> bool:
        dialect = self._dialect
        if failure.kind == "bad_request" and dialect.doubts(question, config, message):
            return True
        is_refused = failure.kind in {"bad_request", "context_length"}
        return (is_refused and dialect.blames_bound(question, message)) or dialect.blames_log_probs(question, failure)

    async def _ask_vector(self, text: str, permit: Permit) -> Embedding:
        from google.genai import types

        options = fields_of(self._spec.request_options)
        with self._refusals.asking():
            try:
                await self._client.aio.models.embed_content(
                    model=self._spec.model,
                    contents=[types.Content(parts=[types.Part(text=text)])],
                    config=types.EmbedContentConfig.model_validate(options),
                )
                found = read_vector(parsed(latest_body.get()))  # the SDK drops errors
            except Exception as error:  # noqa: BLE001  as above
                return Embedding(error=self._classify(error, [text], permit))
        self._refusals.answered()
        return replace(found, usage=with_cost(found.usage, self._price), model=self._spec.model)

    def _classify(self, error: Exception, texts: Sequence[str], permit: Permit) -> RowError:
        hide = partial(redact, secrets=[] if self._token is None else [self._token], texts=texts)
        failure = self._refusals.judge(classify(error, hide, self._where))
        if failure.kind == "rate_limit":
            permit.refusal_s = -1.0 if failure.retry_after_s is None else failure.retry_after_s
        return failure

    def _reply(self, answer: Answer, question: Question[ChatRequest]) -> Reply:
        text = None if answer.error else whole(answer.text)
        usage = with_cost(answer.usage, self._spec.answer_price(answer.tier), wrote=bool(answer.text))
        reply = Reply(text, error=answer.error, usage=usage, model=answer.model)
        return self._dialect.with_confidence(reply, answer.tokens, question)

    async def _send(self, question: Question[ChatRequest], config: dict[str, Any]) -> Any:
        from google.genai import types

        turns: list[Any] = [
            types.Content(role=_ROLES[message["role"]], parts=[types.Part(text=message["content"])])
            for message in self._dialect.turns(question)
        ]
        whole_config = types.GenerateContentConfig.model_validate(config | {"should_return_http_response": True})
        answer = await self._client.aio.models.generate_content(
            model=self._spec.model, contents=turns, config=whole_config
        )
        return _body_of(answer)

    async def _close(self) -> None:
        await self._client.aio.aclose()
        await self._http.aclose()


def _body_of(answer: types.GenerateContentResponse) -> Any:
    """Return what the service sent. The SDK's parsing is left out: it drops what it does not know, errors too."""
    http = answer.sdk_http_response
    return parsed(http.body or "" if http else "")


def _open_client(spec: VertexSpec, token: Secret | None, http: Any = None) -> genai.Client:
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
        headers={_TIER: "flex"} if spec.tier == "flex" else None,
        timeout=round(spec.patience.timeout_s * 1000),
        httpx_async_client=http,
        retry_options=types.HttpRetryOptions(attempts=1),  # None would retry a lost connection unasked
    )
    return genai.Client(
        vertexai=True,
        project=spec.project,
        location=spec.location,
        credentials=Credentials(token=token.reveal()) if token else None,
        http_options=http_options,
    )
