"""A local server of OpenAI's files and batches, and of its chats and embeddings, that keeps the bill."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, ClassVar

from skllm_ray.testing.chat_forms import default_answer
from skllm_ray.testing.openai_files import OpenAIFiles
from skllm_ray.testing.provider_batches import ENDED, EXPIRING, Batch, BatchFault, Bill, answer_to, run_batch
from skllm_ray.testing.script import StatusFault, prompt_of
from skllm_ray.testing.tuning_http import Response, Routed, error_response, json_response
from skllm_ray.testing.tuning_jobs import SubmitFault

__all__ = ["BatchFault", "BatchServer", "Bill", "SubmitFault"]

_NEXT = {"validating": "in_progress", "in_progress": "finalizing", "finalizing": "completed", "cancelling": "cancelled"}


_OPENAI = r"/(?:v1|openai)(?:/deployments/[^/]+)?"


class BatchServer(Routed, OpenAIFiles):
    """OpenAI's files, batches, chats and embeddings, also in Azure's form, on this machine.

    A batch goes on one state with every look at it. Its lines are answered as single requests are, in another order.
    What was answered is charged, in a batch that expired or was cancelled too.

    Parameters
    ----------
    answer : callable, optional
        Takes a request's JSON body; returns the answer's text or a `StatusFault`. By default a classification gets the
        label that the prompt names most often, and any other request gets ``"ok"``.
    enqueued_tokens : int or None, default=None
        The most tokens that live batches may hold; a batch above it is taken and then fails.
    expired_share : float, default=0
        The share of each batch's lines that expire, in every batch of more than one line; it is completed all the same.
    has_batches : bool, default=True
        Whether there are files and batches at all.
    port : int, default=0
        The port to listen at; 0 takes a free one.

    Attributes
    ----------
    root, url : str
        The base URL for Azure, and the OpenAI-compatible one, which ends in ``/v1``.
    submit_faults : deque of SubmitFault
        What happens to the next requests that create a batch, one each.
    batch_faults : deque of BatchFault or None
        What goes wrong with the next batches that are taken, one each; None is nothing.
    batches : dict of str to Batch
        The batches that were taken, by ID.
    n_submissions : int
        Requests to create a batch that arrived.
    bill : Bill
        What is to be paid.
    files : dict of str to (str, bytes)
        Files by ID: name and content.
    downloads : Counter of str
        How often each file was fetched.
    page : int
        The most batches in a page of the list.

    Examples
    --------
    >>> with BatchServer() as server:
    ...     len(server.batches)
    0
    """

    purpose = "batch"
    routes: ClassVar[list[tuple[str, str, str]]] = [
        ("POST", _OPENAI + "(/chat/completions)", "_ask"),
        ("POST", _OPENAI + "(/embeddings)", "_ask"),
        ("POST", _OPENAI + "/files", "_put_file"),
        ("GET", _OPENAI + "/files", "_list_files"),
        ("GET", _OPENAI + "/files/([^/]+)", "_get_file"),
        ("GET", _OPENAI + "/files/([^/]+)/content", "_fetch"),
        ("DELETE", _OPENAI + "/files/([^/]+)", "_delete_file"),
        ("POST", _OPENAI + "/batches", "_create"),
        ("GET", _OPENAI + "/batches", "_list"),
        ("GET", _OPENAI + "/batches/([^/]+)", "_get"),
        ("POST", _OPENAI + "/batches/([^/]+)/cancel", "_cancel"),
    ]

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str | StatusFault] | None = None,
        *,
        enqueued_tokens: int | None = None,
        expired_share: float = 0.0,
        has_batches: bool = True,
        port: int = 0,
    ) -> None:
        self.answer = answer or default_answer
        self.enqueued_tokens = enqueued_tokens
        self.expired_share = expired_share
        self.has_batches = has_batches
        self.submit_faults: deque[SubmitFault] = deque()
        self.batch_faults: deque[BatchFault | None] = deque()
        self.late_s = 1.0
        self.slow_s = 1.0
        self.page = 100
        self.n_submissions = 0
        self.batches: dict[str, Batch] = {}
        self.bill = Bill()
        self.files: dict[str, tuple[str, bytes]] = {}
        self.downloads: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._listen(port)

    @property
    def lines_sent(self) -> Counter[str]:
        """How often each line was in a batch that was taken, by its prompt."""
        return Counter(prompt_of(line["body"]) for batch in self.batches.values() for line in batch.lines)

    # --- the routes ---------------------------------------------------------------------------------------------

    def _serves(self, handle: str) -> bool:
        return self.has_batches or handle == "_ask"

    def _ask(self, endpoint: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers
        asked = json.loads(body)
        status, told = self._do(asked, endpoint, asked.get("service_tier", "standard"))
        return Response(status, json.dumps(told).encode())

    def _do(self, body: dict[str, Any], endpoint: str, tier: str) -> tuple[int, Any]:
        """Answer a request, and charge it."""
        status, told = answer_to(self.answer, body, endpoint)
        if status == 200:
            with self._lock:
                self.bill.add(tier, prompt_of(body), told["usage"])
        return status, told

    def _create(self, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers
        asked = json.loads(body)
        with self._lock:
            self.n_submissions += 1
            fault = self.submit_faults.popleft() if self.submit_faults else None
            held = self.files.get(asked["input_file_id"])
            if fault is SubmitFault.FORBIDDEN:
                return error_response(403, "You have insufficient permissions for this operation.")
            if held is None or fault is SubmitFault.REFUSED:
                return error_response(400, "The input file cannot be used.")
            if fault is SubmitFault.DROP_BEFORE:
                return Response(200, b"", dropped=True)
            if fault is SubmitFault.ERROR_BEFORE:
                return error_response(503, "Try again later.")
            batch = self._take(asked, held[1], late=fault is SubmitFault.LATE)
            described = batch.described()
        if fault is SubmitFault.SLOW:
            time.sleep(self.slow_s)
        if fault in {SubmitFault.DROP_AFTER, SubmitFault.LATE}:
            return Response(200, b"", dropped=True)
        if fault is SubmitFault.ERROR_AFTER:
            return error_response(503, "Try again later.")
        if fault is SubmitFault.HTML_AFTER:
            return Response(200, b"<html>Sign in</html>", "text/html")
        return json_response(described)

    def _take(self, asked: dict[str, Any], content: bytes, *, late: bool) -> Batch:
        lines = [json.loads(line) for line in content.splitlines()]
        fault = self.batch_faults.popleft() if self.batch_faults else None
        visible_at = time.monotonic() + (self.late_s if late else 0.0)
        batch = Batch(f"batch_{len(self.batches) + 1}", asked, lines, int(time.time()), visible_at, fault)
        live = sum(one.tokens for one in self.batches.values() if one.status not in ENDED)
        if self.enqueued_tokens is not None and live + batch.tokens > self.enqueued_tokens:
            batch.fault = BatchFault.TOO_MANY_ENQUEUED
        self.batches[batch.id] = batch
        return batch

    def _list(self, *, query: Any, headers: Any, body: bytes) -> Response:
        del headers, body
        with self._lock:
            seen = [one for one in self.batches.values() if one.visible_at <= time.monotonic()][::-1]
        names, after = [one.id for one in seen], query.get("after")
        start = names.index(after) + 1 if after in names else 0
        limit = min(self.page, int(query.get("limit", 20)))
        page = [one.described() for one in seen[start : start + limit]]
        return json_response({
            "object": "list", "data": page, "has_more": start + limit < len(seen),
            "first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None,
        })  # fmt: skip

    def _get(self, batch_id: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        with self._lock:
            batch = self.batches.get(batch_id)
            if batch is None or batch.fault is BatchFault.DELETED:
                return error_response(404, f"No batch found with id '{batch_id}'.")
            self._go_on(batch)
            return json_response(batch.described())

    def _cancel(self, batch_id: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        with self._lock:
            batch = self.batches.get(batch_id)
            if batch is None:
                return error_response(404, f"No batch found with id '{batch_id}'.")
            if batch.status in ENDED:
                return error_response(409, f"Cannot cancel a batch with status '{batch.status}'.")
            batch.status = "cancelling"
            return json_response(batch.described())

    def _go_on(self, batch: Batch) -> None:
        """Go on by one state."""
        if batch.status in ENDED:
            batch.looks += 1
            return
        if batch.fault in {BatchFault.TOO_MANY_ENQUEUED, BatchFault.INVALID}:
            code = "token_limit_exceeded" if batch.fault is BatchFault.TOO_MANY_ENQUEUED else "invalid_json_line"
            limit = f" Limit: {self.enqueued_tokens:,} enqueued tokens." if self.enqueued_tokens else ""
            message = f"Enqueued token limit reached for the model.{limit}" if limit else "A line is not valid."
            batch.errors = [{"code": code, "message": message, "line": None, "param": None}]
            batch.status = "failed"
            return
        if batch.fault is BatchFault.STUCK and batch.status == "in_progress":
            return
        after = _NEXT[batch.status]
        if after in ENDED:
            self._finish(batch)
            after = "expired" if after == "completed" and batch.fault in EXPIRING else after
        batch.status = after

    def _finish(self, batch: Batch) -> None:
        answer, seed = (lambda body, endpoint: self._do(body, endpoint, "batch")), len(self.batches)
        good, bad = run_batch(batch, answer, seed, self.expired_share)
        for name, content in (("output", good), ("error", bad)):
            if content:
                self.files[f"file-{batch.id}-{name}"] = (f"{batch.id}_{name}.jsonl", content)
                setattr(batch, f"{name}_file_id", f"file-{batch.id}-{name}")

    def _fetch(self, file_id: str, *, query: Any, headers: Any, body: bytes) -> Response:
        self.downloads[file_id] += 1
        return self._file_content(file_id, query=query, headers=headers, body=body)
