"""What one step of a job's plan would take: requests, tokens, money, time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final, Literal

from skllm_ray.batch.tools.pilot import promised_share
from skllm_ray.config import Price, RateLimit
from skllm_ray.execution.plan import Plan, Promised, Step, leading_step
from skllm_ray.llm.registry import count_prompt_tokens
from skllm_ray.llm.tiers import at_tier
from skllm_ray.tasks.base import ChatRequest, Row, Usage
from skllm_ray.tasks.embedding import EmbeddingTask

_COUNTED: Final = 500
_BYTES: Final = 4
"""Of a token, about."""
_CACHED_BY: Final = 128
_LEAST_CACHED: Final[Mapping[str, int]] = {"openai": 1024, "google": 4096}
"""Tokens from which on providers keep the beginning of a prompt; at Google it depends on the model, and this is enough
for all."""
Way = Literal["cached input", "flex", "batch"]
"""Other ways to pay for the same rows."""
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
    ways: Mapping[Way, Pair] = field(default_factory=dict)
    """What it costs by other ways than at once and uncached, as far as they exist and their prices are known."""
    beginning: float = 0.0
    """Tokens with which all prompts begin alike."""


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
    takes = plan[leading_step(plan, number)].takes
    promise = next((one for one in takes if isinstance(one, Promised)), None)
    if promise is not None:
        low, high = promised_share(promise, asked, n_rows, plan[-1])
    else:
        low, high = _share([usage is not None for _, usage in used]) if takes else (1.0, 1.0)
    more = len(prior) + (0 if promise is None else promise.n_repeats)
    n_requests = low * n_rows + more, high * n_rows + more
    price = step.spec.capabilities.price
    ratio, slack = (measured.prompt_ratio, 0.03) if measured else (1.0, 0.02 if own else 0.25)
    beginning = ratio * _same_beginning(requests) / _BYTES
    sizes = [n * ratio * (1 - slack) for n in counted], [n * ratio * (1 + slack) for n in counted]
    prompts = [_prompt_tokens(n - len(prior), counted, of_prior, ratio, slack) for n in n_requests]
    prompt = prompts[0][0], prompts[1][1]
    answers = _answers(step, requests, texts, measured)
    completion = n_requests[0] * answers[0], n_requests[1] * answers[1]
    return StepEstimate(
        requests=n_requests,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=_cost(price, sizes, prompt, completion),
        ways=_ways(step, beginning, slack, (n_requests, sizes, prompt, completion)),
        beginning=beginning,
        seconds=_duration(step, n_requests, prompt, completion),
        share=None if promise is None else (low, high),
        how="measured on the sample" if measured else "counted by the model's tokenizer" if own else "4 bytes a token",
    )


def _used(row: Row[Any], number: int) -> Usage | None:
    """Return what a row took in a step; None where the step was not asked about it."""
    return row.by_step[number] if row.by_step else row.reply.usage


def _share(taken: Sequence[bool]) -> Pair:
    """Return the share of the rows that a step takes; nobody knows before some were asked."""
    if not taken:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(sum(map(bool, taken)), len(taken)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _prompt_tokens(n_rows: float, counted: Sequence[int], of_prior: int, ratio: float, slack: float) -> Pair:
    """Return the prompt tokens of some rows and of the labels' prior.

    `counted` are the tokens of some rows, `ratio` is that of the model's own count to it, and `slack` how far it may be
    from that.
    """
    per_row = statistics.fmean(counted)
    spread = 2 * statistics.pstdev(counted) / math.sqrt(len(counted))
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


def _same_beginning(requests: Sequence[ChatRequest]) -> int:
    """Return with how many bytes all prompts begin alike."""
    prompts = ["".join(message["content"] for message in request.messages) for request in requests]
    first, last = min(prompts), max(prompts)  # all others begin as these two do
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return len("".join(one for one, _ in same).encode("utf-8", "replace"))


def _ways(step: Step, beginning: float, slack: float, sizes: tuple[Pair, Any, Pair, Pair]) -> dict[Way, Pair]:
    """Return what a step costs by each other way; nothing where nothing is paid, or nobody knows."""
    price, vendor = step.spec.capabilities.price, step.spec.vendor
    if price is None or not price.input or vendor is None:
        return {}
    n_requests, some, prompt, completion = sizes
    found: dict[Way, Pair | None] = {}
    if price.cached_input is not None and beginning >= _LEAST_CACHED[vendor]:
        each = (price.input - price.cached_input) / 1e6
        cached = [beginning * (1 + off) // _CACHED_BY * _CACHED_BY for off in (-slack, slack)]
        whole = _cost(price, some, prompt, completion) or (0.0, 0.0)
        low, high = (cost - n * tokens * each for cost, n, tokens in zip(whole, n_requests, cached, strict=True))
        found["cached input"] = low, high
    if not isinstance(step.task, EmbeddingTask):
        found["flex"] = _cost(at_tier(price, "flex", vendor), some, prompt, completion)
    found["batch"] = _cost(at_tier(price, "batch", vendor), some, prompt, completion)
    return {name: cost for name, cost in found.items() if cost is not None}


def _cost(price: Price | None, sizes: Sequence[Sequence[float]], prompt: Pair, completion: Pair) -> Pair | None:
    """Return the cost of all rows; `sizes` are prompt tokens of some, the fewest and the most that they may be."""
    if price is None:
        return None
    rates = [_mean_price(price, some) for some in sizes]
    low, high = (one.cost_usd(round(p), round(c)) for one, p, c in zip(rates, prompt, completion, strict=True))
    return low, high


def _mean_price(price: Price, sizes: Sequence[float]) -> Price:
    """Return what a token costs on the average over prompts of these sizes, none of them cached."""
    each = [price.at(n) for n in sizes]
    if not sum(sizes):
        return Price(price.input, price.output)
    return Price(
        sum(one.input * n for one, n in zip(each, sizes, strict=True)) / sum(sizes),
        statistics.fmean(one.output for one in each),
    )
