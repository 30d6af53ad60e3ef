"""The rules of a job: prices, bounds, patience."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from skllm_ray.config import Price
from skllm_ray.errors import ConfigurationError
from skllm_ray.execution.plan import Plan
from skllm_ray.llm.base import BackendSpec
from skllm_ray.tasks.base import LOST, ChatRequest, Choices, Embedding, Reply
from skllm_ray.tasks.embedding import EmbeddingTask

_PER_MESSAGE: Final = 16


@dataclass(frozen=True)
class Terms:
    """The rules of a job."""

    price: Price | None = None
    """None where it is not known, or where nothing is paid."""
    free: bool = False
    """Whether nothing is paid."""
    max_output_tokens: int | None = None
    """Put into requests that say nothing themselves, so that their price has an upper bound."""
    spec: BackendSpec | None = None
    """Who is asked: the model's own options may allow an answer more than the request says."""
    outage_s: float = 600.0
    """How long a server that does not answer is waited for, in seconds."""
    keep_going: bool = False
    """Whether a few rows without an answer are given up, though the server has answered nobody."""
    block_rows: int = 1024
    """Requests that are asked together."""
    streams: bool = field(kw_only=True)
    """Whether the backend tells answers as they come, so that each can be written down at once."""
    capped: bool = False
    """Whether there is a budget. If so, a client does not ask again by itself where the lost request may have been paid
    for, and a request that costs more than was set aside for it ends the job."""

    def most_usd(self, request: ChatRequest) -> float:
        """Return the most that a request can cost: no tokenizer makes more tokens than there are bytes."""
        if self.price is None:
            return 0.0
        n_prompt = sum(_size(message["content"]) + _PER_MESSAGE for message in request.messages)
        if request.choices is not None:
            n_prompt += _size_of_choices(request.choices)
        elif request.json_schema is not None:
            n_prompt += _size_of_schema(request.json_schema)
        bound = request.max_output_tokens or self.max_output_tokens
        most = bound if self.spec is None else _most_output(self.spec, bound)
        if most is None and self.capped and self.price.output:
            raise ConfigurationError(
                "request_options let an answer have any length, so that no budget can be kept.",
                "Give their limit on tokens as a whole number above 0.",
            )
        return self.price.cost_usd(n_prompt, most or 0)

    def bounded(self, request: ChatRequest) -> ChatRequest:
        """Return a request whose answer has an upper bound, where the job sets one."""
        if self.max_output_tokens is None:
            return request
        bound = request.max_output_tokens or self.max_output_tokens
        return replace(request, max_output_tokens=bound, limit_is_hard=self.capped)

    def most_usd_of_text(self, text: str) -> float:
        """Return the most that the embedding of a text can cost."""
        return 0.0 if self.price is None else self.price.cost_usd(_size(text), 0)


def most_usd_of_texts(plan: Plan, terms: Sequence[Terms], texts: Sequence[str]) -> list[float]:
    """Return the most that each text can cost, if every step is asked about it."""
    total = [0.0] * len(texts)
    for step, rules in zip(plan, terms, strict=True):
        if isinstance(step.task, EmbeddingTask):
            costs = [rules.most_usd_of_text(text) for text in texts]
        else:
            costs = [rules.most_usd(request) for request in step.task.render(texts)]
        total = [one + other for one, other in zip(total, costs, strict=True)]
    return total


def is_unpriced(answer: Reply | Embedding) -> bool:
    """Return whether nobody knows what an answer cost: one that failed may have been paid for too."""
    usage, error = answer.usage, answer.error
    if answer.attempts == 0 or usage.cost_usd is not None:
        return False
    may_be_paid = error is None or (error.kind in LOST and not error.down)
    return may_be_paid or bool(usage.prompt_tokens or usage.completion_tokens)


@lru_cache(maxsize=256)
def _most_output(spec: BackendSpec, bound: int | None) -> int | None:
    return spec.most_output_tokens(bound)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=64)
def _size_of_choices(choices: Choices) -> int:
    return _size_of_schema(choices.json_schema())


def _size_of_schema(schema: dict[str, Any]) -> int:
    return _size(json.dumps(schema, ensure_ascii=False))
