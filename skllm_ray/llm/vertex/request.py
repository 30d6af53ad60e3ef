"""How one Gemini model on Vertex AI wants to be asked."""

from __future__ import annotations

import re
from typing import Any

from skllm_ray.llm.api.capabilities import FEW_ALTERNATIVES, FEWER, Asked, Learner, Question
from skllm_ray.llm.api.forms import REFUSAL, folded, form_of, is_about_system
from skllm_ray.llm.api.options import limits_in
from skllm_ray.llm.tiers import SHARED_REQUEST_TYPE
from skllm_ray.tasks.base import ChatRequest, Message

_ABOUT_LOG_PROBS = re.compile(r"log_?probs?\b|log probabilit", re.IGNORECASE)
_ABOUT_FORMAT = re.compile(
    r"response_?(json_?)?schema|response_?mime_?type|json (mode|schema)|controlled generation|structured output",
    re.IGNORECASE,
)


class VertexDialect(Learner):
    """Writes the configurations of requests, and leaves out what the model refused before."""

    limit_names = frozenset({"max_output_tokens"})

    def __init__(self, spec: Asked) -> None:
        super().__init__(spec)
        self._own.pop(SHARED_REQUEST_TYPE, None)  # it is a header

    def config(self, question: Question[ChatRequest]) -> dict[str, Any]:
        """Return the fields of the configuration that asks `question`; Google's guide leaves the temperature out."""
        request, left_out = question.request, self.left_out(question)
        system = "\n\n".join(message["content"] for message in request.messages if message["role"] == "system")
        config: dict[str, Any] = {}
        if system and self._takes_system(left_out):
            config["system_instruction"] = system
        limit = self.token_limit(question)
        if limit is not None and not limits_in(self._own):
            config["max_output_tokens"] = limit
        schema = request.choices.json_schema() if request.choices else request.json_schema
        form = form_of(self._facts.answer_form, left_out)
        if schema and form != "plain":
            config["response_mime_type"] = "application/json"
        if schema and form == "json_schema":
            config["response_json_schema"] = schema
        if self.wants_log_probs(request) and "logprobs" not in left_out:
            config["response_logprobs"] = True
            if n_alternatives := self.n_alternatives(request, left_out):
                config["logprobs"] = n_alternatives
        config |= self._own
        return {name: value for name, value in config.items() if name not in left_out}

    def turns(self, question: Question[ChatRequest]) -> list[Message]:
        """Return the messages that are no system instruction."""
        messages = question.request.messages
        if self._takes_system(self.left_out(question)):
            return [message for message in messages if message["role"] != "system"]
        return folded(messages)

    def doubts(self, question: Question[ChatRequest], config: dict[str, Any], message: str) -> bool:
        """Return whether to ask again, without what the model seems to refuse in `config`."""
        name = self._refused_in(config, message)
        if name is not None:
            question.without += (name,)
        return name is not None

    def _refused_in(self, config: dict[str, Any], message: str) -> str | None:
        if "response_logprobs" in config and _ABOUT_LOG_PROBS.search(message):
            return FEWER if config.get("logprobs", 0) > FEW_ALTERNATIVES else "logprobs"
        if "response_mime_type" in config and "response_mime_type" not in self._own and _ABOUT_FORMAT.search(message):
            return "json_schema" if "response_json_schema" in config else "json_object"
        if "system_instruction" in config and is_about_system(message):
            return "system"
        named = (name for name in sorted(config, key=len, reverse=True) if _names(message, name))
        return next(named, None) if REFUSAL.search(message) else None

    def _takes_system(self, left_out: set[str]) -> bool:
        return self._facts.system_role and "system" not in left_out


def _names(message: str, field: str) -> bool:
    """Return whether `message` names a field, as Python or as the wire writes it."""
    return re.search(rf"\b{field.replace('_', '_?')}\b", message, re.IGNORECASE) is not None
