"""How one OpenAI-compatible endpoint and model want to be asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from skllm_ray.llm.api.capabilities import FEW_ALTERNATIVES, FEWER, Learner, Question
from skllm_ray.llm.api.forms import REFUSAL, folded, form_of, is_about_system
from skllm_ray.llm.api.options import limits_in
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.model_facts import AnswerForm
from skllm_ray.tasks.base import ChatRequest, Message

_LOG_PROBS = {"logprobs", "top_logprobs"}
_TOKEN_LIMITS = ("max_completion_tokens", "max_tokens")
_NEEDED = {"model", "messages", "input"}
_ABOUT_FORMAT = re.compile(
    r"response_format|json_schema|json_object|structured outputs?|guided_\w+|failed to parse grammar", re.IGNORECASE
)


class Dialect(Learner):
    """Writes the bodies of requests, and leaves out what the server refused before.

    Parameters
    ----------
    spec : OpenAISpec
        Names the model and the user's own options.
    """

    limit_names = frozenset(_TOKEN_LIMITS)

    def __init__(self, spec: OpenAISpec) -> None:
        super().__init__(spec)
        self._options = ({"temperature": 0} if self._facts.sampling else {}) | self._own
        self._token_limits = sorted(_TOKEN_LIMITS, key=self._facts.length_parameter.__ne__)

    def part(self, texts: Sequence[str]) -> Question[Sequence[str]]:
        """Return texts to embed as a question."""
        return Question(texts, ("embeddings", *self._own))

    def body(self, question: Question[ChatRequest]) -> dict[str, Any]:
        """Return the JSON body that asks `question`."""
        request, left_out = question.request, self.left_out(question)
        body: dict[str, Any] = {"model": self._model, "messages": self.messages(question)}
        schema = request.choices.json_schema() if request.choices else request.json_schema
        form = form_of(self._facts.answer_form, left_out)
        if schema and form != "plain" and "response_format" not in left_out:
            body["response_format"] = _response_format(form, schema)
        limit, name = self.token_limit(question), self._limit_name(left_out)
        if limit is not None and name:
            body[name] = limit
        if self.wants_log_probs(request) and "logprobs" not in left_out:
            body["logprobs"] = True
            if n_alternatives := self.n_alternatives(request, left_out):
                body["top_logprobs"] = n_alternatives
        return body | {name: value for name, value in self._options.items() if name not in left_out}

    def messages(self, question: Question[ChatRequest]) -> list[Message]:
        """Return the conversation in the roles that the server takes."""
        takes_system = self._facts.system_role and "system" not in self.left_out(question)
        return list(question.request.messages) if takes_system else folded(question.request.messages)

    def _limit_name(self, left_out: set[str]) -> str | None:
        """Return how to limit an answer; None where the server takes no limit, or the user set one."""
        if limits_in(self._own):
            return None
        return next((name for name in self._token_limits if name not in left_out), None)

    def embedding_body(self, question: Question[Sequence[str]]) -> dict[str, Any]:
        """Return the JSON body that asks for the vectors of texts."""
        texts, left_out = question.request, self.left_out(question)
        body: dict[str, Any] = {"model": self._model, "input": list(texts), "encoding_format": "base64", **self._own}
        return {name: value for name, value in body.items() if name not in left_out}

    def doubts(self, question: Question[Any], body: dict[str, Any], param: str | None, message: str) -> bool:
        """Return whether to ask again, without what the server seems to refuse in `body`."""
        name = self._refused_in(body, param, message)
        if name is not None:
            question.without += (name,)
        return name is not None

    def _refused_in(self, body: dict[str, Any], param: str | None, message: str) -> str | None:
        if "response_format" in body and "response_format" not in self._own and _is_about_format(param, message):
            return str(body["response_format"]["type"])
        if body.get("top_logprobs", 0) > FEW_ALTERNATIVES and "logprobs" in f"{param} {message}":
            return FEWER
        name = _refused_name(body, param, message)
        if name is None and _has_system(body) and is_about_system(message):
            return "system"
        return "logprobs" if name in _LOG_PROBS else name


def _response_format(form: AnswerForm, schema: dict[str, Any]) -> dict[str, Any]:
    if form == "json_object":
        return {"type": form}
    return {"type": form, "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _is_about_format(param: str | None, message: str) -> bool:
    if _top(param) not in {"", "messages", "response_format"}:
        return False  # it is about another parameter, whatever the message repeats
    return _ABOUT_FORMAT.search(f"{param} {message}") is not None


def _has_system(body: dict[str, Any]) -> bool:
    return any(message["role"] == "system" for message in body.get("messages", ()))


def _refused_name(body: dict[str, Any], param: str | None, message: str) -> str | None:
    """Return the parameter of `body` that the server does not know; None where it is another complaint."""
    if not REFUSAL.search(message):
        return None
    optional = body.keys() - _NEEDED
    if param:
        return _top(param) if _top(param) in optional else None
    return next((name for name in sorted(optional, key=len, reverse=True) if re.search(rf"\b{name}\b", message)), None)


def _top(param: str | None) -> str:
    """Return the parameter itself of a path such as ``messages[0].content``."""
    return re.split(r"[.\[]", param or "")[0]
