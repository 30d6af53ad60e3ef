"""What one endpoint and model accept, learnt from what they refuse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from skllm_ray.llm.gpt.clients.openai.options import thaw_options
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.tasks.base import ChatRequest

_FORMATS = ("json_schema", "json_object", "plain")
_OUR_OPTIONS = {"temperature": 0}
_LOG_PROBS = {"logprobs": True, "top_logprobs": 5}
_TOKEN_LIMITS = {
    "openai": ("max_completion_tokens", "max_tokens"),
    "azure": ("max_completion_tokens", "max_tokens"),
    "custom_url": ("max_tokens", "max_completion_tokens"),  # the older name is what other servers know
}
_NEEDED = {"model", "messages", "input"}
_ABOUT_FORMAT = re.compile(
    r"response_format|json_schema|json_object|structured outputs?|guided_\w+|failed to parse grammar", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"unsupported|not[ _]support|unrecogni[sz]ed|unknown|unexpected|not (permitted|allowed)|extra (inputs|fields)"
    r"|only the default|deprecated|not available",
    re.IGNORECASE,
)


class Dialect:
    """Writes the bodies of requests, and leaves out what the server refused before.

    Parameters
    ----------
    spec : OpenAISpec
        Names the model and the user's own options.

    Attributes
    ----------
    notices : list of str
        What the user should be told; whoever tells it takes it out.
    """

    def __init__(self, spec: OpenAISpec) -> None:
        self._model = spec.model
        self._own = set(thaw_options(spec.request_options))
        self._options = _OUR_OPTIONS | thaw_options(spec.request_options)
        self._token_limits = _TOKEN_LIMITS[spec.api]
        self._format = 0
        self._refused: set[str] = set()
        self._log_probs = spec.log_probs
        self.notices: list[str] = []

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """Return the JSON body that asks `request`."""
        body: dict[str, Any] = {"model": self._model, "messages": list(request.messages)}
        schema = request.choices.json_schema() if request.choices else request.json_schema
        if schema and self._format < _FORMATS.index("plain"):
            body["response_format"] = _response_format(_FORMATS[self._format], schema)
        limit_name = next((name for name in self._token_limits if name not in self._refused), None)
        if request.max_output_tokens is not None and limit_name:
            body[limit_name] = request.max_output_tokens
        if self._log_probs and request.choices and not request.choices.multiple:
            body |= {name: value for name, value in _LOG_PROBS.items() if name not in self._refused}
        return body | {name: value for name, value in self._options.items() if name not in self._refused}

    def embedding_body(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the JSON body that asks for the vectors of `texts`."""
        options = {
            name: value for name, value in self._options.items() if name not in _OUR_OPTIONS or name in self._own
        }
        body: dict[str, Any] = {"model": self._model, "input": list(texts), "encoding_format": "base64", **options}
        return {name: value for name, value in body.items() if name not in self._refused}

    def refused_log_probs(self) -> bool:
        """Return whether the server was asked for probabilities and does not know the parameter."""
        return not self._refused.isdisjoint(_LOG_PROBS)

    def learn(self, body: dict[str, Any], param: str | None, message: str) -> bool:
        """Return whether asking again makes sense, now that the server refused `body` with a 400."""
        if "response_format" in body and "response_format" not in self._options and _is_about_format(param, message):
            sent = _FORMATS.index(body["response_format"]["type"])
            self._format = max(self._format, sent + 1)
            return True
        name = _refused_name(body, param, message)
        if name is None:
            return False
        if name not in self._refused:
            self._refused.add(name)
            if name in _LOG_PROBS:
                return True  # the row's own error says so
            self.notices.append(f"{self._model} does not accept {name!r}: asking on without it.")
        return True


def _response_format(form: str, schema: dict[str, Any]) -> dict[str, Any]:
    if form == "json_object":
        return {"type": form}
    return {"type": form, "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _is_about_format(param: str | None, message: str) -> bool:
    if _top(param) not in {"", "messages", "response_format"}:
        return False  # it is about another parameter, whatever the message repeats
    return _ABOUT_FORMAT.search(f"{param} {message}") is not None


def _refused_name(body: dict[str, Any], param: str | None, message: str) -> str | None:
    """Return the parameter of `body` that the server does not know; None where it is another complaint."""
    if not _REFUSAL.search(message):
        return None
    optional = body.keys() - _NEEDED
    if param:
        return _top(param) if _top(param) in optional else None
    return next((name for name in sorted(optional, key=len, reverse=True) if re.search(rf"\b{name}\b", message)), None)


def _top(param: str | None) -> str:
    """Return the parameter itself of a path such as ``messages[0].content``."""
    return re.split(r"[.\[]", param or "")[0]
