"""The batches of the fake batch server: what becomes of them, how they may go wrong, and what is charged for them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from skllm_ray.testing.chat_forms import embedding_form, openai_form, tokens_of
from skllm_ray.testing.script import StatusFault

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class BatchFault(Enum):
    """What goes wrong with a batch that was taken."""

    TOO_MANY_ENQUEUED = "it fails: too many tokens are enqueued"
    INVALID = "it fails: its file is not valid"
    EXPIRED = "the window ends when half of it is done; the other lines are in the error file"
    EXPIRED_SILENTLY = "the same, and nothing tells of the other lines"
    EXPIRED_UNDONE = "the window ends when none of it is done: it names no files, and counts no answer"
    ALL_FAILED = "it is completed, and every line failed with status 500"
    NULL_IDS = "it is completed, and names no files when it is looked at first"
    NO_FILES = "it is completed, and never names files"
    LOST_LINES = "every fifth line is missing from its files"
    DOUBLE_LINES = "every fifth line is there twice"
    FOREIGN_LINES = "its files hold lines that nobody sent, and some without an ID"
    DELETED = "the server forgets it when it is looked at first"
    ERROR_IN_BODY = "every fifth line has status 200 and an error in its body"
    STUCK = "it never ends by itself"


EXPIRING = frozenset({BatchFault.EXPIRED, BatchFault.EXPIRED_SILENTLY, BatchFault.EXPIRED_UNDONE})


@dataclass
class Bill:
    """What the server wants to be paid: tokens by tier, of answers alone."""

    prompt_tokens: Counter[str] = field(default_factory=Counter)
    completion_tokens: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    charged: Counter[str] = field(default_factory=Counter)
    """How often each prompt was answered and charged for."""

    def add(self, tier: str, prompt: str, usage: dict[str, int]) -> None:
        """Charge an answer."""
        self.requests[tier] += 1
        self.prompt_tokens[tier] += usage.get("prompt_tokens", 0)
        self.completion_tokens[tier] += usage.get("completion_tokens", 0)
        self.charged[prompt] += 1

    def usd(self, input_price: float, output_price: float, shares: dict[str, float] | None = None) -> float:
        """Return the sum, at prices in US dollars per million tokens, of which a tier costs a share."""
        shares = {"batch": 0.5, "flex": 0.5} if shares is None else shares
        return sum(
            shares.get(tier, 1.0)
            * (self.prompt_tokens[tier] * input_price + self.completion_tokens[tier] * output_price)
            / 1e6
            for tier in self.requests
        )


@dataclass
class Batch:
    """A batch that was taken."""

    id: str
    body: dict[str, Any]
    lines: list[dict[str, Any]]
    created: int
    visible_at: float
    fault: BatchFault | None = None
    status: str = "validating"
    looks: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0
    failed: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens it holds in the queue."""
        return sum(tokens_of(line["body"]) for line in self.lines)

    def described(self) -> dict[str, Any]:
        """Return it as OpenAI's API describes it."""
        hides = self.fault is BatchFault.NO_FILES or (self.fault is BatchFault.NULL_IDS and self.looks < 2)
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.body["endpoint"],
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.body["input_file_id"],
            "completion_window": self.body["completion_window"],
            "status": self.status,
            "output_file_id": None if hides else self.output_file_id,
            "error_file_id": None if hides else self.error_file_id,
            "created_at": self.created,
            "request_counts": {"total": len(self.lines), "completed": self.done, "failed": self.failed},
            "metadata": self.body.get("metadata"),
        }


Answering = Callable[[dict[str, Any], str], "tuple[int, dict[str, Any]]"]
"""Answers a request's body, of the endpoint that is named: the status, and the answer's body."""


def answer_to(script: Callable[[dict[str, Any]], Any], body: dict[str, Any], endpoint: str) -> tuple[int, Any]:
    """Return the status and the body of what a script answers to a request, in OpenAI's form."""
    vectors = embedding_form(endpoint, body)
    if vectors is not None:
        return 200, vectors
    answer = script(body)
    if isinstance(answer, StatusFault):
        error = {"message": answer.message, "code": answer.code, "param": answer.param, "type": None}
        return answer.status, {"error": error}
    return 200, openai_form(body, str(answer), "stop")


def run_batch(batch: Batch, answer: Answering, seed: int = 0, expired_share: float = 0.0) -> tuple[bytes, bytes]:
    """Do a batch's lines, in an order of the server's own; return its output file and its error file."""
    lines = list(batch.lines)
    random.Random(seed).shuffle(lines)
    cut = len(lines) - int(expired_share * len(lines))
    if batch.fault in {BatchFault.EXPIRED, BatchFault.EXPIRED_SILENTLY} or batch.status == "cancelling":
        cut //= 2
    if batch.fault is BatchFault.EXPIRED_UNDONE:
        cut = 0
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:cut]):
        for told in _results(batch, line, number, answer):
            (good if told["response"]["status_code"] == 200 else bad).append(told)
    batch.done, batch.failed = len(good), len(bad) + len(lines) - cut
    if batch.fault not in {BatchFault.EXPIRED_SILENTLY, BatchFault.EXPIRED_UNDONE}:
        code = "batch_cancelled" if batch.status == "cancelling" else "batch_expired"
        message = "This request could not be executed before the completion window expired."
        error = {"code": code, "message": message}
        bad += [_result(line, "unrun", None, error) for line in lines[cut:]]
    if batch.fault is BatchFault.FOREIGN_LINES and good:
        foreign = dict(good[0]["response"])
        good += [{**good[0], "custom_id": name} for name in ("somebody-elses", None)]
        good.append({"id": "x", "custom_id": "0-0-1.ffffffffffffffffffffffff.0", "response": foreign, "error": None})
    return _jsonl(good), _jsonl(bad)


def _results(batch: Batch, line: dict[str, Any], number: int, answer: Answering) -> Iterator[dict[str, Any]]:
    """Yield what the server writes of a line that it did."""
    fifth = number % 5 == 0
    if batch.fault is BatchFault.ALL_FAILED:
        error = {"error": {"message": "The server had an error.", "type": "server_error", "code": None, "param": None}}
        yield _result(line, number, (500, error))
        return
    if batch.fault is BatchFault.ERROR_IN_BODY and fifth:
        yield _result(line, number, (200, {"error": {"message": "Overloaded.", "code": "server_error"}}))
        return
    told = _result(line, number, answer(line["body"], line["url"]))
    if batch.fault is BatchFault.LOST_LINES and fifth:
        return
    yield told
    if batch.fault is BatchFault.DOUBLE_LINES and fifth:
        yield told


def _result(
    line: dict[str, Any], number: object, answer: tuple[int, Any] | None, error: dict[str, Any] | None = None
) -> dict[str, Any]:
    response = None  # as OpenAI writes a line that never ran
    if answer is not None:
        response = {"status_code": answer[0], "request_id": f"req_{number}", "body": answer[1]}
    return {"id": f"batch_req_{number}", "custom_id": line["custom_id"], "response": response, "error": error}


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
