"""The lines of a batch in OpenAI's form: the same bodies that are sent directly, and answers read as direct ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from skllm_ray.config import Price
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.api import embeddings
from skllm_ray.llm.api.answer_limits import CUT_THOUGHT, label_bound
from skllm_ray.llm.api.answers import read
from skllm_ray.llm.api.capabilities import Question
from skllm_ray.llm.api.failures import AnswerError, failure, row_error
from skllm_ray.llm.api.options import thaw_options
from skllm_ray.llm.api.redaction import redact_unseen
from skllm_ray.llm.api.request_runner import whole
from skllm_ray.llm.api.response_body import UnreadableError
from skllm_ray.llm.api.server_message import Told, told_in
from skllm_ray.llm.gpt.clients.openai.request import Dialect
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.model_facts import price_of
from skllm_ray.llm.provider_batches.api import BatchApi
from skllm_ray.llm.provider_batches.lines import Form, LineResult
from skllm_ray.llm.provider_batches.record import BatchSpec
from skllm_ray.llm.spec import with_cost
from skllm_ray.llm.tiers import at_tier
from skllm_ray.tasks.base import ChatRequest, Embedding, Reply, RowError, Usage

_UNRUN: Final = frozenset({"batch_expired", "batch_cancelled"})
_NOT_DONE: Final = row_error("timeout", "The batch ended before this request was done.")


class OpenAIBatchApi(BatchApi):
    """Batches of a model at OpenAI, Azure OpenAI, or a server with the same API.

    Parameters
    ----------
    spec : OpenAISpec
        The model and its server.
    """

    def __init__(self, spec: OpenAISpec) -> None:
        tier = thaw_options(spec.request_options).get("service_tier", "auto")
        if tier not in {"auto", "default"}:
            raise ConfigurationError(
                f"request_options ask for service_tier={tier!r}, and a batch has none.",
                "Leave it out, or leave out delivery='batch'.",
            )
        self._spec = spec
        self._dialect = Dialect(spec)
        self.is_asked_singly = spec.api != "azure"

    def price(self, share: float | None = None) -> Price | None:
        """Return half of the standard price; for servers of one's own, all of it where nobody says otherwise."""
        known = self._spec.capabilities.price
        if share is None and self._spec.api == "custom_url":
            share = 1.0
        return None if known is None else at_tier(known, "batch", "openai", share)

    def knows(self, asked: ChatRequest | str) -> bool:
        """Return whether this process has seen such a request answered, so that what the server refuses is known."""
        return self._dialect.may_go(self._question(asked))

    def line(self, name: str, asked: ChatRequest | str) -> bytes | None:
        """Return the line that asks a request or embeds a text; None for one that must not be sent so."""
        question = self._question(asked)
        if isinstance(asked, str):
            body = self._dialect.embedding_body(question)
        elif self._dialect.unbounded(question) is not None:
            return None
        else:
            body = self._dialect.body(question)
        url = self._endpoint(embeds=isinstance(asked, str))
        line = {"custom_id": name, "method": "POST", "url": url, "body": body}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"  # ASCII: half of a character is one, too

    def name_of(self, told: Mapping[str, Any]) -> str:
        """Return a line's ``custom_id``."""
        name = told.get("custom_id")
        return name if isinstance(name, str) else ""

    def read(self, told: Mapping[str, Any], form: Form, price: Price | None) -> LineResult:
        """Return what came of a line: an answer as the direct way reads it, with what it cost."""
        name, error, response = self.name_of(told), told.get("error"), told.get("response")
        empty = Embedding() if form.embeds else Reply()
        if not isinstance(response, dict):
            code = error.get("code") if isinstance(error, dict) else None
            if code in _UNRUN:
                return LineResult(name, replace(empty, error=_NOT_DONE), unrun=True)
            found = Told() if error is None else told_in({"error": error}) or Told()
            return LineResult(name, replace(empty, error=_failure(500, found)))
        status, body = response.get("status_code"), response.get("body")
        try:
            if not isinstance(status, int) or status >= 400:
                return LineResult(name, replace(empty, error=_failure(status, told_in(body) or Told())))
            answer = self._vector(body, price) if form.embeds else self._reply(body, form, price)
        except AnswerError as failed:
            return LineResult(name, replace(empty, error=_failure(200, failed.told)))
        except UnreadableError as unreadable:
            lost = row_error("malformed_response", str(unreadable), retryable=unreadable.again)
            return LineResult(name, replace(empty, error=lost))
        return LineResult(name, answer)

    def order(self, *, embeds: bool, **content: Any) -> BatchSpec:
        """Return the spec of a batch of this model."""
        spec = self._spec
        return BatchSpec(
            service=spec.api,
            model=spec.model,
            endpoint=self._endpoint(embeds=embeds),
            base_url=spec.base_url,
            api_version=spec.api_version if spec.api == "azure" else None,
            org=spec.org,
            key_ref=spec.key_ref,
            headers=spec.headers,
            **content,
        )

    def _question(self, asked: ChatRequest | str) -> Question[Any]:
        return self._dialect.part([asked]) if isinstance(asked, str) else self._dialect.question(asked)

    def _endpoint(self, *, embeds: bool) -> str:
        path = "/embeddings" if embeds else "/chat/completions"
        return path if self._spec.api == "azure" else f"/v1{path}"

    def _vector(self, body: object, price: Price | None) -> Embedding:
        found = embeddings.read(body, 1)
        usage = self._priced(found.usage, found.model, price)
        vector = None if found.vector is None else found.vector[0]
        return replace(found, vector=vector, usage=usage)

    def _reply(self, body: object, form: Form, price: Price | None) -> Reply:
        question = self._dialect.question(form.request)
        answer = read(body, form.request, {})
        usage = self._priced(answer.usage, answer.model, price, wrote=bool(answer.text))
        if answer.is_thinking and form.choices is not None and _is_cut_by(label_bound(form.choices), answer.usage):
            return Reply(error=CUT_THOUGHT, usage=usage, model=answer.model)
        text = None if answer.error else whole(answer.text)
        reply = Reply(text, error=answer.error, usage=usage, model=answer.model)
        found = self._dialect.with_confidence(reply, answer.tokens, question)
        if found.error is not None and found.error.fatal:  # one answer without probabilities tells of no other
            return replace(found, error=replace(found.error, fatal=False))
        return found

    def _priced(self, usage: Usage, reported: str, price: Price | None, *, wrote: bool = False) -> Usage:
        if price is None and self._spec.costs_list_price:  # what an Azure deployment runs, its answers tell
            listed = price_of(reported)
            price = None if listed is None else at_tier(listed, "batch")
        return with_cost(usage, price, wrote=wrote)


def _failure(status: object, told: Told) -> RowError:
    return failure(status if isinstance(status, int) else 500, told, {}, partial(redact_unseen, secrets=()), "")


def _is_cut_by(bound: int, usage: Usage) -> bool:
    """Return whether an answer may have been cut by the bound of a label, and not by another limit."""
    return not usage.completion_tokens or usage.completion_tokens >= bound - 8
