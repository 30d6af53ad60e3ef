"""What happens to one block of rows, wherever it runs: step by step of its plan, render, ask, parse."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from skllm_ray.config import Price, Secret
from skllm_ray.execution.open_backends import opened
from skllm_ray.execution.plan import Block, Plan, Step
from skllm_ray.llm.base import Backend
from skllm_ray.llm.cancellation import Call, active_call, not_sent
from skllm_ray.tasks.base import LOST, ChatRequest, FollowUpTask, Reply, Row, Usage
from skllm_ray.tasks.embedding import EmbeddingTask

BLOCK_ROWS = 256
"""Rows in a block: one request to a model actor, one Dataset task."""

Backends = Sequence[Backend]
"""The open backends of a plan, one for each step."""


def process(block: Block, plan: Plan, backends: Backends, call: Call | None = None) -> list[Row[Any]]:
    """Return one row per text, as it stands after the last step that took it.

    Once a row of a `call` has failed for a reason that all share, nothing more is sent, in this block and in others.
    """
    if call is not None and call.ended is not None:
        return [Row(None, False, Reply(error=not_sent(call.ended), attempts=0))] * len(block)
    with call.active() if call is not None else nullcontext():
        rows = _ask(block.texts, plan[0], backends[0], ())
        if len(plan) > 1:
            rows = _go_on(block, plan, backends, rows)
    fatal = next((row.error for row in rows if row.error is not None and row.error.fatal), None)
    if call is not None and fatal is not None:
        call.end(fatal)
    return rows


def _go_on(block: Block, plan: Plan, backends: Backends, rows: list[Row[Any]]) -> list[Row[Any]]:
    """Return the rows of the first step as they stand after the others."""
    rows = _with_costs(rows, plan[0])
    by_step = [[row.reply.usage] + [None] * (len(plan) - 1) for row in rows]
    taken = dict.fromkeys(range(len(rows)), plan[0].stage)
    for n, (step, backend) in enumerate(zip(plan[1:], backends[1:], strict=True), 1):
        taken = step.places(block, rows, taken)
        if not taken:
            continue
        answered = _ask([block.texts[i] for i in taken], step, backend, [rows[i] for i in taken])
        for (i, stage), row in zip(taken.items(), _with_costs(answered, step), strict=True):
            by_step[i][n] = row.reply.usage
            rows[i] = _after(rows[i], row, step, stage)
    return [replace(row, by_step=tuple(usages)) for row, usages in zip(rows, by_step, strict=True)]


def _ask(texts: Sequence[str], step: Step, backend: Backend, so_far: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Ask one step's model about some rows; `so_far` is how they stand after the steps before.

    A cache keeps no answers that the task cannot use.
    """
    task, spec = step.task, step.spec
    if isinstance(task, EmbeddingTask):
        rows = list(task.rows(backend.embed(spec.adapt_texts(texts))))
        return _with_requests(rows, task.render(texts)) if _keeps_requests() else rows
    if isinstance(task, FollowUpTask):
        requests = spec.adapt(task.render_after(texts, so_far), texts)
        replies = _complete_alike(requests, backend)
    else:
        requests = spec.adapt(task.render(texts), texts)
        replies = backend.complete(requests)
    rows = task.parse(texts, replies)
    useless = [ask for ask, row in zip(requests, rows, strict=True) if not row.valid and row.error is None]
    if useless:
        backend.forget(useless)
    if step.stage:
        rows = [replace(row, stage=step.stage) for row in rows]
    return _with_requests(rows, requests) if _keeps_requests() else rows


def _complete_alike(requests: Sequence[ChatRequest], backend: Backend) -> list[Reply]:
    """Ask so that requests which begin alike follow each other: what they share is then read once."""
    order = sorted(range(len(requests)), key=lambda i: requests[i].messages[-1]["content"])
    by_place = dict(zip(order, backend.complete([requests[i] for i in order]), strict=True))
    return [by_place[i] for i in range(len(requests))]


def _keeps_requests() -> bool:
    call = active_call()
    return call is not None and call.keeps_requests


def _with_requests(rows: Sequence[Row[Any]], requests: Sequence[ChatRequest]) -> list[Row[Any]]:
    return [replace(row, request=request) for row, request in zip(rows, requests, strict=True)]


def _after(earlier: Row[Any], row: Row[Any], step: Step, stage: str) -> Row[Any]:
    """Return a step's answer with what the row has cost so far, and the answer whose place it takes, if it does."""
    one, other = row.reply.usage, earlier.reply.usage
    usage = Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        one.cached_tokens + other.cached_tokens,
        None if one.cost_usd is None or other.cost_usd is None else one.cost_usd + other.cost_usd,
    )
    replaced = earlier if step.takes else earlier.replaced
    return replace(row, reply=replace(row.reply, usage=usage), stage=stage, replaced=replaced)


def _with_costs(rows: Sequence[Row[Any]], step: Step) -> list[Row[Any]]:
    """Return rows that tell what they cost where it is known to be nothing, so that steps can be added up."""
    is_free = step.spec.capabilities.price == Price(0.0)
    return [_at_no_cost(row) if is_free or _is_unpaid(row.reply) else row for row in rows]


def _is_unpaid(reply: Reply) -> bool:
    return not reply.attempts or (reply.error is not None and reply.error.kind not in LOST)


def _at_no_cost(row: Row[Any]) -> Row[Any]:
    usage = row.reply.usage
    if usage.cost_usd is not None:
        return row
    return replace(row, reply=replace(row.reply, usage=replace(usage, cost_usd=0.0)))


def process_here(
    block: Block, plan: Plan, secrets: Mapping[str, Secret], call: Call
) -> Generator[tuple[range, list[Row[Any]]], None, None]:
    """Yield the rows of a call that runs in this process, block by block."""
    with opened_all(plan, secrets) as backends:
        for start in range(0, len(block), BLOCK_ROWS):
            places = range(start, min(start + BLOCK_ROWS, len(block)))
            yield places, process(block.take(places), plan, backends, call)


@contextmanager
def opened_all(plan: Plan, secrets: Mapping[str, Secret]) -> Iterator[list[Backend]]:
    """Give the open backends of a plan that runs in this process, one for each step."""
    with ExitStack() as stack:
        yield [stack.enter_context(opened(step.spec, secrets)) for step in plan]
