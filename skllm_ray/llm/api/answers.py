"""What a chat's answer is: a text, or which failure. The one place that decides it, whoever the server is. No SDK here.

Answers come in OpenAI's form, or, from Vertex AI, are brought into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from skllm_ray.llm.api.failures import AnswerError, count_of, row_error
from skllm_ray.llm.api.response_body import UnreadableError
from skllm_ray.llm.api.server_message import Told, told_in
from skllm_ray.tasks.base import TRUNCATED, ChatRequest, RowError, Usage, answer_start

_WHOLE: Final = frozenset({"", "stop", "stop_sequence", "end_turn", "eos", "eos_token", "complete", "completed"})
"""Reasons for which a free text is whole; some servers give none."""
_CUT: Final = frozenset(
    {
        "length",
        "max_tokens",
        "max_output_tokens",
        "model_length",
        "max_length",
        "token_limit",
        "model_context_window_exceeded",
    }
)
_FILTERED: Final = frozenset(
    {
        "content_filter",
        "content_filtered",
        "safety",
        "recitation",
        "language",
        "blocklist",
        "prohibited_content",
        "spii",
        "model_armor",
        "image_safety",
        "refusal",
        "guardrail_intervened",
        "sensitive",
    }
)
_BROKEN_OFF: Final = frozenset(
    {"error", "abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource", "network_error"}
)
_TOOLS: Final = frozenset(
    {"tool_calls", "tool_call", "function_call", "tool_use", "unexpected_tool_call", "malformed_function_call"}
)
_REASON: Final = re.compile(r"[\w.-]{1,40}")
_ENDLESS: Final = re.compile(r"(?:\s{48}|(\S)\1{48})\s*\Z")
_VALUE_BEGINS: Final = re.compile(r"{\s*[\"}]|\[\s*[\[\]{\"\d-]")
_THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking")
_JSON_BEGINS: Final = re.compile(r"\s*(?:```\w*\s*)?[{\[]")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is read of an answer."""

    text: str | None = None
    error: RowError | None = None
    tokens: list[dict[str, Any]] | None = None
    """Its tokens with their log probabilities, where they came along."""
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    tier: str = ""
    """The tier that served it, as the provider names it; empty where it names none."""
    is_cut: bool = False
    """Whether a limit on tokens ended it."""
    is_endless: bool = False
    """Whether it was lost in white space, or in one character, when that limit ended it."""
    is_thinking: bool = False
    """Whether all of it that there is may be thought, and not yet an answer."""


def read(answer: object, request: ChatRequest, headers: Mapping[str, str]) -> Answer:
    """Return what an answer with a good status is.

    Raises
    ------
    AnswerError
        If it tells of a failure of the server.
    UnreadableError
        If it has no form that is known.
    """
    choice = _choice(answer, headers)
    assert isinstance(answer, dict)  # noqa: S101  it has choices
    message = choice["message"]
    thought = _thought(message)
    text = _text(message.get("content"))
    if not (text or "").strip() and thought and not request.is_free_text and _is_whole_json(thought):
        text = thought  # some servers take an answer that is held to a form for a thought
    reason = _reason(choice.get("finish_reason"))
    cut = reason.lower() in _CUT
    usage = answer.get("usage")
    return Answer(
        text,
        _failure(message, text, thought, reason, request),
        _tokens(choice.get("logprobs")),
        _usage(usage),
        str(answer.get("model") or ""),
        tier if isinstance(tier := answer.get("service_tier"), str) else "",
        cut,
        cut and _ENDLESS.search(text or "") is not None,
        cut and _is_thinking(text, thought, usage),
    )


def _choice(answer: object, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the first choice, which has a message; raise what the answer is in place of one that has."""
    told = told_in(answer)
    if told is not None:
        raise AnswerError(told, headers)
    if not isinstance(answer, dict):
        raise UnreadableError("The answer holds no JSON object.")
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise UnreadableError("The answer holds no choices.")
    if choice.get("error"):
        raise AnswerError(told_in({"error": choice["error"]}) or Told(own=True), headers)
    if not isinstance(choice.get("message"), dict):
        raise UnreadableError("The answer's first choice holds no message.")
    return choice


def _failure(
    message: dict[str, Any], text: str | None, thought: str, reason: str, request: ChatRequest
) -> RowError | None:
    """Return why an answer is none, if it is none."""
    kind, is_empty = reason.lower().partition(".")[0], not (text or "").strip()
    matters = request.is_free_text or is_empty  # an answer that has a form tells by itself whether it is whole
    if kind in _FILTERED:
        return row_error("content_filter", f"The server's content filter stopped the answer (finish_reason={reason}).")
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return row_error("content_filter", "The model refused to answer.")
    if kind in _BROKEN_OFF:
        return row_error("server_error", f"The server broke the answer off (finish_reason={reason}).")
    if kind in _CUT:
        matters = matters or (request.json_schema is not None and not _is_whole(text or ""))
        told = TRUNCATED if kind == "length" else replace(TRUNCATED, message=f"{TRUNCATED.message} ({reason})")
        return told if matters else None
    if is_empty and (kind in _TOOLS or message.get("tool_calls") or message.get("function_call")):
        return _no_answer(f"The model called a tool in place of an answer (finish_reason={reason or 'none'}).")
    if kind not in _WHOLE and matters:
        return _no_answer(f"The answer may not be whole: it ended for another reason (finish_reason={reason}).")
    if is_empty and thought:
        return _no_answer("The model thought and gave no answer: all is in the answer's reasoning.")
    if text is None:
        return row_error("malformed_response", f"The answer is empty (finish_reason={reason or 'none'}).")
    return None


def _no_answer(message: str) -> RowError:
    """Return the error of an answer that is paid for and that the model would give again."""
    return row_error("malformed_response", message, retryable=False)


def _reason(told: object) -> str:
    if not isinstance(told, str):
        return "" if told is None else "unreadable"
    reason = told.strip()
    return reason if not reason or _REASON.fullmatch(reason) else "unreadable"


def _thought(message: dict[str, Any]) -> str:
    return next((told for name in _THOUGHTS if isinstance(told := message.get(name), str) and told.strip()), "")


def _is_whole_json(thought: str) -> bool:
    try:
        return isinstance(json.loads(thought), dict)
    except (ValueError, RecursionError):
        return False


def _is_whole(text: str) -> bool:
    """Return whether an answer that was cut holds a whole value: what is inside one that has no end is none."""
    found = _VALUE_BEGINS.search(text, answer_start(text))
    if found is None:
        return False
    try:
        json.JSONDecoder(strict=False).raw_decode(text, found.start())
    except (ValueError, RecursionError):
        return False
    return True


def _is_thinking(text: str | None, thought: str, usage: object) -> bool:
    """Return whether an answer that was cut may have been on the way to one, and not lost in its own form."""
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    hidden = isinstance(details, dict) and count_of(details.get("reasoning_tokens")) > 0
    if thought or hidden or not text:
        return True
    is_lost = not text.strip() or (answer_start(text) == 0 and _JSON_BEGINS.match(text) is not None)
    return not is_lost


def _text(content: object) -> str | None:
    """Return the text of a message's content: a string, or the texts among a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, (str, dict))]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if found else None


def _tokens(told: object) -> list[dict[str, Any]] | None:
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, list) or not all(isinstance(token, dict) for token in content):
        return None
    return content


def _usage(usage: object) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    n_prompt = count_of(usage.get("prompt_tokens"))
    n_cached = count_of(details.get("cached_tokens")) if isinstance(details, dict) else 0
    n_written = count_of(usage.get("completion_tokens")) or max(0, count_of(usage.get("total_tokens")) - n_prompt)
    return Usage(n_prompt, n_written, min(n_cached, n_prompt))
