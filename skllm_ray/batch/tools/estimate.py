"""What a job would take, before it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skllm_ray.batch.job.asker import Asked, ask_rows
from skllm_ray.batch.job.job import Job
from skllm_ray.batch.output.manifest import Manifest
from skllm_ray.batch.tools.sampling import Sample, draw
from skllm_ray.batch.tools.step_estimate import Pair, StepEstimate, estimate_step
from skllm_ray.config import Price


@dataclass(frozen=True)
class Estimate:
    """What the rest of a job takes. Pairs are the lowest and the highest likely value."""

    rows_total: int
    rows_left: int
    requests: int
    """At most: it is not known beforehand how many rows a later step takes."""
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
    """How many rows of the sample have no answer, or one that the task cannot use."""
    sample_reason: str = ""
    """Why the first of them has none."""
    sample_stopped: str = ""
    """Why the sample is smaller than it was to be."""
    fewest_requests: int = 0
    strong_share: tuple[float, float] | None = None
    """Of a cascade: the share of the rows that the strong model is asked about, its sample included."""

    @property
    def sample_mostly_failed(self) -> bool:
        """Whether more than half of the sample failed: a run would end so too."""
        return 2 * self.sample_failed > self.sample_rows

    def facts(self) -> dict[str, str]:
        """Return it in words."""
        found = {
            "rows": f"{self.rows_left:,} left of {self.rows_total:,}",
            "requests": _range((self.fewest_requests, self.requests)),
            "strong model": _told_share(self.strong_share, self.sample_rows),
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


def estimate_job(job: Job, sample: int | None = None) -> Estimate:
    """Return what the rest of `job` takes.

    Parameters
    ----------
    job : Job
        Not run by this.
    sample : int or None, default=None
        Rows to ask the model, at its price, so that tokens and speed are measured; None asks nothing.
    """
    manifest = job.manifest()
    left = job.left(manifest)
    rows_left = sum(rows for _, rows in left)
    drawn = draw(job, manifest, [unit for unit, _ in left])
    texts = list(dict.fromkeys(text for text in drawn.texts if text is not None and text.strip()))
    if not texts:
        return _nothing(manifest, rows_left, drawn)
    prior, alone = job.prior_texts, job.prior_steps  # once for the whole output
    asked = ask_rows({"": job}, texts[:sample], job.budget_usd)[""] if sample else Asked()
    n_rows = round(rows_left * (1 - drawn.missing) * drawn.unique)
    steps = [
        estimate_step(job.plan, number, texts, n_rows, prior if number in alone else (), asked.rows)
        for number in range(len(job.plan))
    ]
    costs = [step.cost_usd for step in steps]
    seconds, limited_by = _duration(steps, n_rows + len(prior), asked.rows_per_s)
    return Estimate(
        rows_total=manifest.rows_total,
        rows_left=rows_left,
        requests=_sum([step.requests for step in steps])[1],
        strong_share=steps[-1].share,
        fewest_requests=_sum([step.requests for step in steps])[0],
        prompt_tokens=_sum([step.prompt_tokens for step in steps]),
        completion_tokens=_sum([step.completion_tokens for step in steps]),
        cost_usd=None if None in costs else (sum(c[0] for c in costs if c), sum(c[1] for c in costs if c)),
        seconds=seconds,
        duplicates=(1 - drawn.missing) * (1 - drawn.unique),
        missing=drawn.missing,
        how=", ".join(dict.fromkeys(step.how for step in steps)),
        limited_by=limited_by,
        sample_rows=len(asked.rows),
        sample_cost_usd=_sample_cost(job, asked),
        sample_failed=asked.failures.total() + asked.n_invalid,
        sample_reason=asked.reason,
        sample_stopped=asked.stopped,
    )


def _told_share(share: tuple[float, float] | None, n_asked: int) -> str:
    if share is None:
        return ""
    told = f"asked about {share[0]:.0%} to {share[1]:.0%} of the rows"
    return told if n_asked else f"{told}; a --sample of a few hundred tells"


def _sum(pairs: list[Pair]) -> tuple[int, int]:
    return round(sum(low for low, _ in pairs)), round(sum(high for _, high in pairs))


def _nothing(manifest: Manifest, rows_left: int, drawn: Sample) -> Estimate:
    none = (0, 0)
    return Estimate(manifest.rows_total, rows_left, 0, none, none, (0.0, 0.0), (0.0, 0.0), 0.0, drawn.missing, "", "")


def _sample_cost(job: Job, asked: Asked) -> float | None:
    prices = [step.spec.capabilities.price for step in job.plan]
    return 0.0 if set(prices) == {Price(0.0)} else None if None in prices else asked.cost_usd


def _duration(steps: list[StepEstimate], n_rows: int, rows_per_s: float | None) -> tuple[Pair | None, str]:
    """Return how long the slowest of the steps takes, which run side by side, and what makes it so slow."""
    low, high, why = max((step.seconds for step in steps), key=lambda seconds: seconds[1])
    if rows_per_s and n_rows / rows_per_s > high:
        at_rate = n_rows / rows_per_s
        low, high, why = 0.7 * at_rate, 1.2 * at_rate, f"{rows_per_s:,.1f} rows/s, as the sample"
    return ((low, high) if why else None), why


def _range(pair: tuple[Any, Any], digits: int = 0) -> str:
    low, high = (f"{value:,.{digits}f}" for value in pair)
    return low if low == high else f"{low} to {high}"


def _times(pair: tuple[float, float]) -> str:
    from skllm_ray.batch.job.progress_display import span

    low, high = map(span, pair)
    return low if low == high else f"{low} to {high}"
