"""The forms in which OpenAI and Vertex AI write chats and embeddings, and the answer that servers give by default."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skllm_ray.testing.backend import _hashed_words
from skllm_ray.testing.script import prompt_of


def openai_form(
    body: dict[str, Any], text: str | None, finish_reason: str, told: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return an answer as OpenAI writes it; without choices where `text` is None."""
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": text},
    }
    if body.get("logprobs") and text is not None:
        choice["logprobs"] = {"content": [_openai_token(*token) for token in _log_probs(body, text, told)]}
    n_prompt, n_answer = len(prompt_of(body)) // 4, len(text or "") // 4
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", ""),
        "choices": [] if text is None else [choice],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer},
    }


def _log_probs(
    body: dict[str, Any], text: str, told: Mapping[str, float] | None
) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return the tokens of an answer, each with its alternatives and their probabilities; untold, the label has 0.8."""
    found = next(_label_schemas(body), {})
    labels = found.get("enum", [])
    label = _label_in(text) if labels else text
    written = next((form for form in (label, json.dumps(label)[1:-1]) if form and form in text), text)
    head, _, tail = text.partition(written) if written else ("", "", "")
    others = [other for other in labels if other != label][:19]
    tops = [(written, 0.8 if others else 1.0), *((other, 0.2 / len(others)) for other in others)]
    if told and labels:
        tops = sorted(told.items(), key=lambda pair: -pair[1])[:20]
    return [(head, [(head, 1.0)]), (written, tops), (tail, [(tail, 1.0)])]


def _label_in(text: str) -> str:
    """Return the one label of an answer; empty where there is none, or several."""
    try:
        answer = json.loads(text)
    except ValueError:
        return text
    label = answer.get("label") if isinstance(answer, dict) else None
    return label if isinstance(label, str) else ""


def asks_log_probs(body: dict[str, Any]) -> bool:
    """Return whether a request asks for log probabilities."""
    return bool(body.get("logprobs") or (body.get("generationConfig") or {}).get("responseLogprobs"))


def reserved_tokens(body: dict[str, Any]) -> int | None:
    """Return the most tokens that a request allows its answer, if it says so."""
    given = {**(body.get("generationConfig") or {}), **body}
    named = (given.get(name) for name in ("max_completion_tokens", "max_tokens", "maxOutputTokens"))
    return next((number for number in named if isinstance(number, int)), None)


def _openai_token(piece: str, alternatives: Sequence[tuple[str, float]]) -> dict[str, Any]:
    top = [{"token": other, "logprob": math.log(share)} for other, share in alternatives]
    return {"token": piece, "logprob": top[0]["logprob"], "top_logprobs": top}


def _vertex_token(piece: str, share: float) -> dict[str, Any]:
    return {"token": piece, "logProbability": math.log(share)}


def tokens_of(body: dict[str, Any]) -> int:
    """Return how many tokens a request's texts count: a quarter of their characters."""
    texts = body.get("input")
    if texts is None:
        return len(prompt_of(body)) // 4
    return sum(len(str(text)) for text in ([texts] if isinstance(texts, str) else texts)) // 4


def embedding_form(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the vectors of an embedding request: its words, hashed; None if it is another request."""
    if path.endswith("/embeddings"):
        texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input", [])
        data = []
        for index, text in enumerate(texts):
            vector = _hashed_words(str(text))
            raw = base64.b64encode(vector.tobytes()).decode()
            shown: object = raw if body.get("encoding_format") == "base64" else vector.tolist()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        usage = {"prompt_tokens": tokens_of(body), "total_tokens": tokens_of(body)}
        return {"object": "list", "data": data, "model": body.get("model", ""), "usage": usage}
    if path.endswith(":embedContent"):
        text = "".join(part.get("text", "") for part in (body.get("content") or {}).get("parts", []))
        return {
            "embedding": {"values": _hashed_words(text).tolist()},
            "usageMetadata": {"promptTokenCount": len(text) // 4},
        }
    if path.endswith(":predict"):
        found = [
            {"embeddings": {"values": _hashed_words(item["content"]).tolist(), "statistics": {"token_count": 1}}}
            for item in body.get("instances", [])
        ]
        return {"predictions": found}
    return None


def vertex_form(
    body: dict[str, Any], text: str | None, finish_reason: str, told: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return an answer as Vertex AI writes it; without candidates where `text` is None."""
    reason = {"stop": "STOP", "content_filter": "SAFETY"}[finish_reason]
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": reason}
    if asks_log_probs(body) and text is not None:
        tokens = _log_probs(body, text, told)
        candidate["logprobsResult"] = {
            "chosenCandidates": [_vertex_token(*alternatives[0]) for _, alternatives in tokens],
            "topCandidates": [{"candidates": [_vertex_token(*one) for one in others]} for _, others in tokens],
        }
    n_prompt, n_answer = len(prompt_of(body)) // 4, len(text or "") // 4
    usage = {"promptTokenCount": n_prompt, "candidatesTokenCount": n_answer}
    return {"candidates": [] if text is None else [candidate], "usageMetadata": usage, "modelVersion": "scripted"}


def default_answer(body: dict[str, Any]) -> str:
    """Return the label that the prompt names most often; ``"ok"`` where no label is asked for."""
    found = next(_label_schemas(body), None)
    if found is None:
        return "ok"
    labels = (found.get("items") or found)["enum"]
    prompt = prompt_of(body)
    best = max(labels, key=lambda label: len(re.findall(rf"(?<!\w){re.escape(label)}(?!\w)", prompt, re.IGNORECASE)))
    return json.dumps({"label": [best] if "items" in found else best})


def _label_schemas(part: object) -> Iterator[dict[str, Any]]:
    """Yield the schema of every ``label`` property in `part` of a request."""
    if isinstance(part, dict):
        properties = part.get("properties")
        if isinstance(properties, dict) and "label" in properties:
            yield properties["label"]
        for inner in part.values():
            yield from _label_schemas(inner)
