"""What a job would take, before it is run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from skllm_ray.batch.job.asker import Asked, ask_rows
from skllm_ray.batch.job.job import Job
from skllm_ray.batch.output.manifest import Manifest
from skllm_ray.batch.tools.sampling import Sample, draw
from skllm_ray.config import Price, RateLimit
from skllm_ray.llm.registry import count_prompt_tokens
from skllm_ray.tasks.base import ChatRequest
from skllm_ray.tasks.embedding import EmbeddingTask

_COUNTED: Final = 500
_SECONDS_A_MINUTE: Final = 60.0


@dataclass(frozen=True)
class Estimate:
    """What the rest of a job takes. Pairs are the lowest and the highest likely value."""

    rows_total: int
    rows_left: int
    requests: int
    prompt_tokens: tuple[int, int]
    completion_tokens: tuple[int, int]
    cost_usd: tuple[float, float] | None
    """None where the price is not known."""
    seconds: tuple[float, float] | None
    """None where nothing tells how fast it will be."""
    duplicates: float
    """Share of the rows that are answered by another row of their unit."""
    missing: float
    """Share of the rows without a text; they are not asked."""
    how: str
    """How tokens were counted."""
    limited_by: str
    """What decides the duration."""
    sample_rows: int = 0
    sample_cost_usd: float | None = None
    """What the sample that was asked did cost."""
    sample_failed: int = 0
    """How many rows of the sample have no answer."""
    sample_reason: str = ""
    """Why the first of them has none."""
    sample_stopped: str = ""
    """Why the sample is smaller than it was to be."""

    @property
    def sample_mostly_failed(self) -> bool:
        """Whether more than half of the sample has no answer, so that it says little."""
        return 2 * self.sample_failed > self.sample_rows

    def facts(self) -> dict[str, str]:
        """Return it in words."""
        found = {
            "rows": f"{self.rows_left:,} left of {self.rows_total:,}",
            "requests": f"{self.requests:,}",
            "not asked": f"{self.missing:.1%} without a text, {self.duplicates:.1%} same as another of their unit",
            "prompt tokens": _range(self.prompt_tokens) + (f" ({self.how})" if self.how else ""),
            "completion tokens": _range(self.completion_tokens),
            "cost": "price not known: give --input-price and --output-price"
            if self.cost_usd is None
            else f"{_range(self.cost_usd, 4)} USD",
            "duration": "not known before a --sample, or a limit" if self.seconds is None else _times(self.seconds),
            "limited by": self.limited_by,
        }
        if self.sample_rows:
            cost = "price not known" if self.sample_cost_usd is None else f"{self.sample_cost_usd:,.4f} USD"
            failed = f", {self.sample_failed:,} of them failed" if self.sample_failed else ""
            found["sample"] = f"{self.sample_rows:,} rows asked{failed}; it cost {cost}"
            found["sample ended"] = self.sample_stopped
            found["first reason"] = self.sample_reason
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class _Measured:
    """What a sample of rows took."""

    prompt_ratio: float
    """Prompt tokens as the model counted them, to those that were reckoned."""
    completion: tuple[float, float]
    """Completion tokens of a row: its mean, and the error of that."""
    rows_per_s: float | None


def estimate_job(job: Job, sample: int | None = None) -> Estimate:
    """Return what the rest of `job` takes.

    Parameters
    ----------
    job : Job
        Not run by this.
    sample : int or None, default=None
        Rows to ask the model, at its price, so that tokens and speed are measured; None asks nothing.
    """
    manifest = job.plan()
    left = job.left(manifest)
    rows_left = sum(rows for _, rows in left)
    drawn = draw(job, manifest, [unit for unit, _ in left])
    texts = list(dict.fromkeys(text for text in drawn.texts if text is not None and text.strip()))
    if not texts:
        return _nothing(manifest, rows_left, drawn)
    requests = job.requests_for(texts[:_COUNTED])
    counted, own = count_prompt_tokens(job.spec, requests)
    prior = job.prior_texts  # once for the whole output
    of_prior = sum(count_prompt_tokens(job.spec, job.requests_for(prior))[0]) if prior else 0
    asked = ask_rows({"": job}, texts[:sample], job.budget_usd)[""] if sample else Asked()
    measured = _measured(job, texts, asked)
    n_rows = round(rows_left * (1 - drawn.missing) * drawn.unique)
    n_requests = n_rows + len(prior)
    answers = _answers(job, requests, texts, measured)
    prompt = _prompt_tokens(n_rows, counted, of_prior, measured, 0.02 if own else 0.25)
    completion = round(n_requests * answers[0]), round(n_requests * answers[1])
    seconds, limited_by = _duration(job.spec.limit, n_requests, prompt, completion, measured)
    how = "measured on the sample" if measured else "counted by the model's tokenizer" if own else "4 bytes a token"
    return Estimate(
        rows_total=manifest.rows_total,
        rows_left=rows_left,
        requests=n_requests,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=_cost(job.spec.capabilities.price, prompt, completion),
        seconds=seconds,
        duplicates=(1 - drawn.missing) * (1 - drawn.unique),
        missing=drawn.missing,
        how=how,
        limited_by=limited_by,
        sample_rows=len(asked.rows),
        sample_cost_usd=_sample_cost(job, asked),
        sample_failed=asked.failures.total(),
        sample_reason=asked.reason,
        sample_stopped=asked.stopped,
    )


def _prompt_tokens(
    n_rows: int, counted: Sequence[int], of_prior: int, measured: _Measured | None, slack: float
) -> tuple[int, int]:
    """Return the prompt tokens of all rows and of the labels' prior, at least and at most.

    `counted` are the tokens of some rows; `slack` is how far that count may be from the model's own.
    """
    per_row = statistics.fmean(counted)
    spread = 2 * statistics.pstdev(counted) / math.sqrt(len(counted))
    ratio, slack = (measured.prompt_ratio, 0.03) if measured else (1.0, slack)
    low, high = (per_row - spread) * ratio * (1 - slack), (per_row + spread) * ratio * (1 + slack)
    more = of_prior * ratio * (1 - slack), of_prior * ratio * (1 + slack)
    return round(n_rows * max(0.0, low) + more[0]), round(n_rows * high + more[1])


def _nothing(manifest: Manifest, rows_left: int, drawn: Sample) -> Estimate:
    none = (0, 0)
    return Estimate(manifest.rows_total, rows_left, 0, none, none, (0.0, 0.0), (0.0, 0.0), 0.0, drawn.missing, "", "")


def _sample_cost(job: Job, asked: Asked) -> float | None:
    price = job.spec.capabilities.price
    return 0.0 if price == Price(0.0) else None if price is None else asked.cost_usd


def _measured(job: Job, texts: Sequence[str], asked: Asked) -> _Measured | None:
    """Return what the rows that have an answer tell; None where none has."""
    good = [(text, row) for text, row in zip(texts, asked.rows, strict=False) if row.error is None]
    if not good:
        return None
    reckoned, _ = count_prompt_tokens(job.spec, job.requests_for([text for text, _ in good]))
    share = sum(row.reply.usage.prompt_tokens for _, row in good) / max(1, sum(reckoned))
    completion = [float(row.reply.usage.completion_tokens) for _, row in good]
    error = 2 * statistics.pstdev(completion) / math.sqrt(len(completion))
    return _Measured(share or 1.0, (statistics.fmean(completion), error), asked.rows_per_s)


def _answers(
    job: Job, requests: Sequence[ChatRequest], texts: Sequence[str], measured: _Measured | None
) -> tuple[float, float]:
    """Return a row's completion tokens, at least and at most."""
    if measured is not None:
        mean, error = measured.completion
        return max(0.0, mean - error), mean + error
    if isinstance(job.task, EmbeddingTask):
        return 0.0, 0.0
    choices = requests[0].choices
    if choices is not None:
        if job.spec.model.startswith("gguf::"):
            return 0.0, 0.0  # labels are scored, not written
        sizes = [len(choices.answer([label]).encode()) for label in choices.labels]
        return min(sizes) / 5, max(sizes) / 2.5 * (choices.max_labels if choices.multiple else 1)
    if requests[0].max_output_tokens is not None:
        return requests[0].max_output_tokens / 10, float(requests[0].max_output_tokens)
    mean = statistics.fmean(len(text.encode("utf-8", "replace")) / 4 for text in texts[:_COUNTED])
    return 0.2 * mean, 2.0 * mean + 20


def _duration(
    limit: RateLimit | None,
    n_requests: int,
    prompt: tuple[int, int],
    completion: tuple[int, int],
    measured: _Measured | None,
) -> tuple[tuple[float, float] | None, str]:
    low, high, why = 0.0, 0.0, ""
    if limit is not None and limit.requests_per_minute:
        low = high = n_requests / limit.requests_per_minute * _SECONDS_A_MINUTE
        why = f"{limit.requests_per_minute:,} requests/min"
    if limit is not None and limit.tokens_per_minute:
        tokens = [p + c for p, c in zip(prompt, completion, strict=True)]
        by_tokens = [n / limit.tokens_per_minute * _SECONDS_A_MINUTE for n in tokens]
        if by_tokens[1] > high:
            low, high, why = by_tokens[0], by_tokens[1], f"{limit.tokens_per_minute:,} tokens/min"
    if measured is not None and measured.rows_per_s:
        at_rate = n_requests / max(1e-9, measured.rows_per_s)
        if at_rate > high:
            low, high, why = 0.7 * at_rate, 1.2 * at_rate, f"{measured.rows_per_s:,.1f} rows/s, as the sample"
    return ((low, high) if why else None), why


def _cost(price: Price | None, prompt: tuple[int, int], completion: tuple[int, int]) -> tuple[float, float] | None:
    if price is None:
        return None
    price = replace(price, cached_input=None)
    return price.cost_usd(prompt[0], completion[0]), price.cost_usd(prompt[1], completion[1])


def _range(pair: tuple[Any, Any], digits: int = 0) -> str:
    low, high = (f"{value:,.{digits}f}" for value in pair)
    return low if low == high else f"{low} to {high}"


def _times(pair: tuple[float, float]) -> str:
    from skllm_ray.batch.job.progress_display import span

    low, high = map(span, pair)
    return low if low == high else f"{low} to {high}"
