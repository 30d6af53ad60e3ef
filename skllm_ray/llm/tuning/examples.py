"""Examples to tune on, in each service's form."""

from __future__ import annotations

import json
from typing import Any

from skllm_ray.llm.tuning.spec import ServiceName
from skllm_ray.tasks.base import ChatRequest


def example_line(service: ServiceName, request: ChatRequest, answer: str) -> bytes:
    """Return one line of a data set: what will be asked, and what should be answered.

    Examples
    --------
    >>> example_line("openai", ChatRequest(({"role": "user", "content": "2 + 2"},)), "4")
    b'{"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]}'
    """
    if service == "vertex":
        line = _gemini_line(request, answer)
    else:
        line = {"messages": [*request.messages, {"role": "assistant", "content": answer}]}
    return json.dumps(line, ensure_ascii=False).encode()


def _gemini_line(request: ChatRequest, answer: str) -> dict[str, Any]:
    system = "\n\n".join(message["content"] for message in request.messages if message["role"] == "system")
    turns = [_turn(_ROLES[m["role"]], m["content"]) for m in request.messages if m["role"] != "system"]
    line: dict[str, Any] = {"contents": [*turns, _turn("model", answer)]}
    return {"systemInstruction": _turn("system", system), **line} if system else line


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text}]}


_ROLES = {"user": "user", "assistant": "model"}
