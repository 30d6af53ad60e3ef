"""What one step of a job's plan would take: requests, tokens, money, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from skllm_ray.batch.tools.pilot import promised_share
from skllm_ray.config import RateLimit
from skllm_ray.execution.plan import Plan, Promised, Step
from skllm_ray.llm.registry import count_prompt_tokens
from skllm_ray.tasks.base import ChatRequest, Row, Usage
from skllm_ray.tasks.embedding import EmbeddingTask

_COUNTED: Final = 500
_SECONDS_A_MINUTE: Final = 60.0

Pair = tuple[float, float]
"""The lowest and the highest likely value."""


@dataclass(frozen=True)
class StepEstimate:
    """What a step takes."""

    requests: Pair
    prompt_tokens: Pair
    completion_tokens: Pair
    cost_usd: Pair | None
    """None where the price is not known."""
    seconds: tuple[float, float, str]
    """How long its declared limit makes it at least and at most, and which limit; 0 and "" without one."""
    how: str
    """How tokens were counted."""
    share: Pair | None = None
    """Of a cascade's strong model: the share of the rows that it is asked about."""


@dataclass(frozen=True)
class _Measured:
    """What a sample of rows took in one step."""

    prompt_ratio: float
    """Prompt tokens as the model counted them, to those that were reckoned."""
    completion: Pair
    """Completion tokens of a row: its mean, and the error of that."""


def estimate_step(
    plan: Plan, number: int, texts: Sequence[str], n_rows: int, prior: Sequence[str], asked: Sequence[Row[Any]]
) -> StepEstimate:
    """Return what a step takes.

    Parameters
    ----------
    plan : tuple of Step
        The job's.
    number : int
        Which of its steps.
    texts : sequence of str
        Some of the job's texts; the first of them were `asked` about.
    n_rows : int
        How many rows the job asks about.
    prior : sequence of str
        Texts that are asked about once besides.
    asked : sequence of Row
        What was measured; may be empty.
    """
    step = plan[number]
    requests = step.task.render(texts[:_COUNTED])
    counted, own = count_prompt_tokens(step.spec, requests)
    of_prior = sum(count_prompt_tokens(step.spec, step.task.render(prior))[0]) if prior else 0
    used = [(text, _used(row, number)) for text, row in zip(texts, asked, strict=False) if row.error is None]
    measured = _measured(step, [(text, usage) for text, usage in used if usage is not None])
    promise = next((one for one in step.takes if isinstance(one, Promised)), None)
    if promise is not None:
        low, high = promised_share(promise, asked, n_rows)
    else:
        low, high = _share(step, [usage is not None for _, usage in used])
    n_requests = low * n_rows + len(prior), high * n_rows + len(prior)
    slack = 0.02 if own else 0.25
    prompts = [_prompt_tokens(share * n_rows, counted, of_prior, measured, slack) for share in (low, high)]
    prompt = prompts[0][0], prompts[1][1]
    answers = _answers(step, requests, texts, measured)
    completion = n_requests[0] * answers[0], n_requests[1] * answers[1]
    return StepEstimate(
        requests=n_requests,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=_cost(step, prompt, completion),
        seconds=_duration(step, n_requests, prompt, completion),
        share=None if promise is None else (low, high),
        how="measured on the sample" if measured else "counted by the model's tokenizer" if own else "4 bytes a token",
    )


def _used(row: Row[Any], number: int) -> Usage | None:
    """Return what a row took in a step; None where the step was not asked about it."""
    return row.by_step[number] if row.by_step else row.reply.usage


def _share(step: Step, taken: Sequence[bool]) -> Pair:
    """Return the share of the rows that a step takes: all, or nobody knows before some were asked."""
    if not step.takes:
        return 1.0, 1.0
    if not taken:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(sum(map(bool, taken)), len(taken)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _prompt_tokens(
    n_rows: float, counted: Sequence[int], of_prior: int, measured: _Measured | None, slack: float
) -> Pair:
    """Return the prompt tokens of some rows and of the labels' prior.

    `counted` are the tokens of some rows; `slack` is how far that count may be from the model's own.
    """
    per_row = statistics.fmean(counted)
    spread = 2 * statistics.pstdev(counted) / math.sqrt(len(counted))
    ratio, slack = (measured.prompt_ratio, 0.03) if measured else (1.0, slack)
    low, high = (per_row - spread) * ratio * (1 - slack), (per_row + spread) * ratio * (1 + slack)
    more = of_prior * ratio * (1 - slack), of_prior * ratio * (1 + slack)
    return n_rows * max(0.0, low) + more[0], n_rows * high + more[1]


def _measured(step: Step, used: Sequence[tuple[str, Usage]]) -> _Measured | None:
    """Return what the rows that have an answer tell; None where none has."""
    if not used:
        return None
    reckoned, _ = count_prompt_tokens(step.spec, step.task.render([text for text, _ in used]))
    ratio = sum(usage.prompt_tokens for _, usage in used) / max(1, sum(reckoned))
    completion = [float(usage.completion_tokens) for _, usage in used]
    error = 2 * statistics.pstdev(completion) / math.sqrt(len(completion))
    return _Measured(ratio or 1.0, (statistics.fmean(completion), error))


def _answers(step: Step, requests: Sequence[ChatRequest], texts: Sequence[str], measured: _Measured | None) -> Pair:
    """Return a row's completion tokens."""
    if measured is not None:
        mean, error = measured.completion
        return max(0.0, mean - error), mean + error
    if isinstance(step.task, EmbeddingTask):
        return 0.0, 0.0
    choices = requests[0].choices
    if choices is not None:
        if not step.spec.capabilities.writes_labels:
            return 0.0, 0.0
        sizes = [len(choices.answer([label]).encode()) for label in choices.labels]
        return min(sizes) / 5, max(sizes) / 2.5 * (choices.max_labels if choices.multiple else 1)
    if requests[0].max_output_tokens is not None:
        return requests[0].max_output_tokens / 10, float(requests[0].max_output_tokens)
    mean = statistics.fmean(len(text.encode("utf-8", "replace")) / 4 for text in texts[:_COUNTED])
    return 0.2 * mean, 2.0 * mean + 20


def _duration(step: Step, n_requests: Pair, prompt: Pair, completion: Pair) -> tuple[float, float, str]:
    limit: RateLimit | None = step.spec.limit
    low, high, why = 0.0, 0.0, ""
    if limit is not None and limit.requests_per_minute and not isinstance(step.task, EmbeddingTask):
        low, high = (n / limit.requests_per_minute * _SECONDS_A_MINUTE for n in n_requests)
        why = f"{limit.requests_per_minute:,} requests/min"
    if limit is not None and limit.tokens_per_minute:
        tokens = [p + c for p, c in zip(prompt, completion, strict=True)]
        by_tokens = [n / limit.tokens_per_minute * _SECONDS_A_MINUTE for n in tokens]
        if by_tokens[1] > high:
            low, high, why = by_tokens[0], by_tokens[1], f"{limit.tokens_per_minute:,} tokens/min"
    return low, high, why


def _cost(step: Step, prompt: Pair, completion: Pair) -> Pair | None:
    price = step.spec.capabilities.price
    if price is None:
        return None
    price = replace(price, cached_input=None)
    low, high = (price.cost_usd(round(p), round(c)) for p, c in zip(prompt, completion, strict=True))
    return low, high
