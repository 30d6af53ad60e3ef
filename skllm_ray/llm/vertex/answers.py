"""Gemini's answers, brought into the form in which :mod:`skllm_ray.llm.api.answers` reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from skllm_ray.llm.api.failures import AnswerError, count_of, row_error
from skllm_ray.llm.api.response_body import UnreadableError
from skllm_ray.llm.api.server_message import told_in
from skllm_ray.tasks.base import Embedding, Usage


def in_openai_form(answer: Any) -> Any:
    """Return an answer of ``generateContent`` in the form of a chat's; what has another form, as it is.

    Examples
    --------
    >>> answer = {"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]}
    >>> in_openai_form(answer)["choices"][0]["message"]
    {'content': 'Hi'}
    """
    if not isinstance(answer, dict) or told_in(answer) is not None:
        return answer
    feedback = answer.get("promptFeedback")
    blocked = feedback.get("blockReason") if isinstance(feedback, dict) else None
    candidates = answer.get("candidates")
    choices = [_choice(one) for one in candidates] if isinstance(candidates, list) else None
    if blocked:
        choices = [{"message": {}, "finish_reason": f"content_filter.{blocked}"}]
    told = answer.get("usageMetadata")
    tier = told.get("trafficType") if isinstance(told, dict) else None
    if tier == "TRAFFIC_TYPE_UNSPECIFIED":
        tier = None
    return {"choices": choices, "model": answer.get("modelVersion"), "usage": _usage(told), "service_tier": tier}


def read_vector(answer: Any) -> Embedding:
    """Return the vector of one text in an answer of ``embedContent``, or of ``predict``.

    Raises
    ------
    AnswerError
        If the answer tells of a failure of the service.
    """
    told = told_in(answer)
    if told is not None:
        raise AnswerError(told, {})
    answer = answer if isinstance(answer, dict) else {}
    items = answer.get("predictions") or answer.get("embeddings") or [answer.get("embedding")]
    items = (
        [item.get("embeddings", item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    )
    values = items[0].get("values") if len(items) == 1 and isinstance(items[0], dict) else None
    try:
        vector = np.asarray(values, np.float32) if values else np.zeros(0, np.float32)
    except (ValueError, TypeError, OverflowError):
        vector = np.zeros(0, np.float32)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        message = f"The answer holds {len(items)} vectors for one text, or one of no finite numbers."
        return Embedding(error=row_error("malformed_response", message))
    counts = [answer.get("usageMetadata"), items[0].get("statistics")]
    tokens = [
        count_of(one.get("promptTokenCount") or one.get("token_count")) for one in counts if isinstance(one, dict)
    ]
    return Embedding(vector, usage=Usage(prompt_tokens=max(tokens, default=0)))


def _choice(candidate: Any) -> dict[str, Any]:
    if not isinstance(candidate, dict):
        raise UnreadableError("The answer holds no candidates.")
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    found = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    texts = [part["text"] for part in found if isinstance(part.get("text"), str) and not part.get("thought")]
    thoughts = [part["text"] for part in found if isinstance(part.get("text"), str) and part.get("thought")]
    message: dict[str, Any] = {"content": "".join(texts) if texts else None}
    if thoughts:
        message["reasoning"] = "".join(thoughts)
    if any("functionCall" in part for part in found):
        message["tool_calls"] = True
    return {
        "message": message,
        "finish_reason": candidate.get("finishReason"),
        "logprobs": {"content": _tokens(candidate.get("logprobsResult"))},
    }


def _tokens(told: Any) -> list[dict[str, Any]] | None:
    """Return a candidate's tokens in the form that OpenAI gave them."""
    chosen = told.get("chosenCandidates") if isinstance(told, dict) else None
    if not isinstance(chosen, list) or not all(isinstance(one, dict) for one in chosen):
        return None
    tops = told.get("topCandidates")
    others = [top.get("candidates") for top in tops if isinstance(top, dict)] if isinstance(tops, list) else []
    return [
        _token(one) | {"top_logprobs": [_token(other) for other in (others[i] or []) if isinstance(other, dict)]}
        if i < len(others) and isinstance(others[i], list)
        else _token(one)
        for i, one in enumerate(chosen)
    ]


def _token(candidate: dict[str, Any]) -> dict[str, Any]:
    return {"token": candidate.get("token"), "logprob": candidate.get("logProbability")}


def _usage(told: Any) -> dict[str, Any] | None:
    if not isinstance(told, dict):
        return None
    thoughts = count_of(told.get("thoughtsTokenCount"))
    return {
        "prompt_tokens": told.get("promptTokenCount"),
        "completion_tokens": count_of(told.get("candidatesTokenCount")) + thoughts,
        "prompt_tokens_details": {"cached_tokens": told.get("cachedContentTokenCount")},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }
