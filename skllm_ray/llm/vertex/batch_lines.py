"""The lines of a batch on Vertex AI: the requests that are sent directly, and answers read as direct ones.

The order of the results is not that of the requests, and a line has no place for a name. So a request carries it as a
label, which comes back with the request beside each answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from skllm_ray.config import Price, SKLLMConfig
from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.api.answers import read
from skllm_ray.llm.api.failures import AnswerError, failure, row_error
from skllm_ray.llm.api.redaction import redact_unseen
from skllm_ray.llm.api.request_runner import whole
from skllm_ray.llm.api.response_body import UnreadableError
from skllm_ray.llm.api.server_message import Told, told_in
from skllm_ray.llm.provider_batches.api import BatchApi
from skllm_ray.llm.provider_batches.lines import Form, LineResult
from skllm_ray.llm.provider_batches.record import BatchSpec
from skllm_ray.llm.spec import with_cost
from skllm_ray.llm.tiers import at_tier
from skllm_ray.llm.vertex.answers import in_openai_form
from skllm_ray.llm.vertex.request import VertexDialect
from skllm_ray.llm.vertex.spec import VertexSpec
from skllm_ray.tasks.base import ChatRequest, Reply, RowError

LABEL: Final = "skllm_ray"
"""The label in which a request carries its line's name."""
_TOP: Final = frozenset({"systemInstruction", "safetySettings", "tools", "toolConfig", "labels", "cachedContent"})
"""Fields of a configuration that stand beside ``generationConfig`` on the wire."""
_ROLES: Final = {"user": "user", "assistant": "model"}
_STATUS: Final = re.compile(r"\b([45]\d\d)\b")


class VertexBatchApi(BatchApi):
    """Batches of a Gemini model on Vertex AI: chats alone.

    Parameters
    ----------
    spec : VertexSpec
        The model, its project and its location.
    """

    embeds = False

    def __init__(self, spec: VertexSpec) -> None:
        if spec.tier != "standard":
            raise ConfigurationError(
                f"request_options ask for the tier {spec.tier!r}, and a batch has none.",
                "Leave it out, or leave out delivery='batch'.",
            )
        self._spec = spec
        self._dialect = VertexDialect(spec)

    def price(self, share: float | None = None) -> Price | None:
        """Return half of the standard price; what was cached keeps its own."""
        known = self._spec.capabilities.price
        return None if known is None else at_tier(known, "batch", "google", share)

    def knows(self, asked: ChatRequest | str) -> bool:
        """Return whether this process has seen such a request answered, so that what the model refuses is known."""
        return not isinstance(asked, str) and self._dialect.may_go(self._dialect.question(asked))

    def line(self, name: str, asked: ChatRequest | str) -> bytes | None:
        """Return the line that asks a request; None for one that must not be sent so."""
        from google.genai import types

        if isinstance(asked, str):
            return None
        question = self._dialect.question(asked)
        if self._dialect.unbounded(question) is not None:
            return None
        config = types.GenerateContentConfig.model_validate(self._dialect.config(question))
        fields = config.model_dump(mode="json", by_alias=True, exclude_none=True)
        top = {field: value for field, value in fields.items() if field in _TOP}
        system = top.get("systemInstruction")
        if isinstance(system, str):
            top["systemInstruction"] = {"parts": [{"text": system}]}
        top["labels"] = {**top.get("labels", {}), LABEL: name.replace(".", "_")}
        turns = [
            {"role": _ROLES[turn["role"]], "parts": [{"text": turn["content"]}]}
            for turn in self._dialect.turns(question)
        ]
        own = {field: value for field, value in fields.items() if field not in _TOP}
        request = {"contents": turns, **top, "generationConfig": own}
        return json.dumps({"request": request}, separators=(",", ":")).encode() + b"\n"

    def name_of(self, told: Mapping[str, Any]) -> str:
        """Return the name in the request that stands beside an answer."""
        request = told.get("request")
        labels = request.get("labels") if isinstance(request, dict) else None
        name = labels.get(LABEL) if isinstance(labels, dict) else None
        return name.replace("_", ".") if isinstance(name, str) else ""

    def read(self, told: Mapping[str, Any], form: Form, price: Price | None) -> LineResult:
        """Return what came of a line: an answer as the direct way reads it, with what it cost."""
        name, response = self.name_of(told), told.get("response")
        if not isinstance(response, dict) or not response:
            return LineResult(name, Reply(error=_failed(told.get("status"))))
        try:
            return LineResult(name, self._reply(response, form, price))
        except AnswerError as failed:
            error = failure(200, failed.told, {}, partial(redact_unseen, secrets=()), "")
        except UnreadableError as unreadable:
            error = row_error("malformed_response", str(unreadable), retryable=unreadable.again)
        return LineResult(name, Reply(error=error))

    def order(self, *, embeds: bool, **content: Any) -> BatchSpec:
        """Return the spec of a batch of this model.

        Raises
        ------
        ConfigurationError
            If no bucket is set.
        """
        del embeds
        bucket = SKLLMConfig.get_google_bucket()
        if not bucket:
            raise ConfigurationError(
                "No bucket is set for the batches' files.", "Call SKLLMConfig.set_google_bucket('my-bucket')."
            )
        spec = self._spec
        return BatchSpec(
            service="vertex",
            model=spec.model,
            endpoint="generateContent",
            base_url=spec.base_url,
            project=spec.project,
            location=spec.location,
            bucket=bucket.removeprefix("gs://").strip("/"),
            **content,
        )

    def _reply(self, response: dict[str, Any], form: Form, price: Price | None) -> Reply:
        answer = read(in_openai_form(response), form.request, {})
        usage = with_cost(answer.usage, price, wrote=bool(answer.text))
        text = None if answer.error else whole(answer.text)
        reply = Reply(text, error=answer.error, usage=usage, model=answer.model)
        found = self._dialect.with_confidence(reply, answer.tokens, self._dialect.question(form.request))
        if found.error is not None and found.error.fatal:  # one answer without probabilities tells of no other
            return replace(found, error=replace(found.error, fatal=False))
        return found


def _failed(status: object) -> RowError:
    """Return what the status of a line without an answer means; Vertex AI writes an error's code and words into it."""
    told = told_in({"error": status}) if isinstance(status, dict) else None
    message = status if isinstance(status, str) else json.dumps(status, default=str)
    code = _STATUS.search(message)
    found = told or Told(message=message)
    return failure(int(code[1]) if code else 500, found, {}, partial(redact_unseen, secrets=()), "")
