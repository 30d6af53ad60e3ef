"""What a job would take, before it is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from skllm_ray.batch.job.asker import Asked, ask_rows
from skllm_ray.batch.job.job import Job
from skllm_ray.batch.output.manifest import Manifest
from skllm_ray.batch.tools.sampling import Sample, draw
from skllm_ray.batch.tools.step_estimate import Pair, StepEstimate, Way, estimate_step
from skllm_ray.config import Price
from skllm_ray.execution.cluster_status import loaded_replicas
from skllm_ray.llm.base import StatefulSpec

_HOUR: Final = 3600.0
_FREE: Final = "no charge"
_WAYS: Final[Mapping[Way, tuple[str, str]]] = {
    "cached input": ("… with cached input", "if the provider keeps what all prompts begin with"),
    "flex": ("… at the flex tier", "slower, and not for every model"),
    "batch": ("… as batches", "answers come within a day"),
}
"""What each way is called, and what it takes."""
_UNITS: Final = ((86_400, "days"), (3_600, "h"), (60, "min"))
"""Seconds of each unit, the largest first; an amount of at least two is told in it."""


@dataclass(frozen=True)
class Estimate:
    """What the rest of a job takes. Pairs are the lowest and the highest likely value."""

    rows_total: int
    """In the input."""
    rows_left: int
    """Rows that it is about: those that a run would do, or as many as were asked for."""
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
    other_ways_usd: Mapping[Way, tuple[float, float]] = field(default_factory=dict)
    """What it costs with the provider's cache, at its flex tier or as a batch, as far as they exist and are known."""
    beginning_tokens: int = 0
    """Tokens with which all prompts begin alike: what a provider may keep in its cache."""
    model_hours: tuple[float, float] | None = None
    """Hours of a local model in an actor, those of all its actors added up; None before a sample."""
    gpus: float = 0.0
    """GPUs of each of its actors."""
    prices: Mapping[str, Price] = field(default_factory=dict)
    """What each model costs that has a price."""
    by_batch: bool = False
    """Whether the job is delivered by its provider's batches."""

    @property
    def sample_mostly_failed(self) -> bool:
        """Whether more than half of the sample failed: a run would end so too."""
        return 2 * self.sample_failed > self.sample_rows

    def _told_rows(self) -> str:
        if not self.rows_total:
            return "none: the input has no rows"
        if self.rows_left > self.rows_total:
            return f"{self.rows_left:,}, as if they were like the {self.rows_total:,} of the input"
        return f"{self.rows_left:,} left of {self.rows_total:,}"

    def _told_sample_cost(self) -> str:
        if self.sample_cost_usd is None:
            return "its price is not known"
        is_free = self.requests and self.cost_usd == (0.0, 0.0)
        return _FREE if is_free else f"it cost {self.sample_cost_usd:,.4f} USD"

    def _told_costs(self) -> dict[str, str]:
        ways = {_WAYS[way][0]: f"{told(cost)} USD: {_WAYS[way][1]}" for way, cost in self.other_ways_usd.items()}
        direct = _told_cost(self.cost_usd, self.requests)
        batch = self.other_ways_usd.get("batch") if self.by_batch else None
        if batch is None:
            return {"cost": direct, **ways}
        del ways[_WAYS["batch"][0]]
        return {"cost": f"{told(batch)} USD as batches, as asked for", "… asked directly": direct, **ways}

    def _told_duration(self) -> str:
        if self.by_batch and "batch" in self.other_ways_usd:
            return "a provider's batch takes up to a day; --deadline bounds it"
        return "not known before a --sample, or a limit" if self.seconds is None else _times(self.seconds)

    def facts(self) -> dict[str, str]:
        """Return it in words, with no more digits than are known."""
        found = {
            "rows": self._told_rows(),
            "not asked": f"{self.missing:.1%} without a text, {self.duplicates:.1%} with the same text as another row",
            "requests": told((self.fewest_requests, self.requests)),
            "strong model": _told_share(self.strong_share, self.sample_rows),
            "prompt tokens": told(self.prompt_tokens) + (f" ({self.how})" if self.how else ""),
            "answer tokens": told(self.completion_tokens),
            **self._told_costs(),
            "prices": "\n".join(_told_price(model, price) for model, price in self.prices.items()),
            "duration": self._told_duration(),
            "limited by": self.limited_by,
            "model time": _told_hours(self.model_hours, self.gpus),
        }
        if self.sample_rows:
            failed = f", {self.sample_failed:,} of them failed" if self.sample_failed else ""
            found["sample"] = f"{self.sample_rows:,} rows asked{failed}; {self._told_sample_cost()}"
            found["sample ended"] = self.sample_stopped
            found["first reason"] = self.sample_reason
        return {name: value for name, value in found.items() if value}


def estimate_job(job: Job, sample: int | None = None, as_if_rows: int | None = None) -> Estimate:
    """Return what the rest of `job` takes.

    Parameters
    ----------
    job : Job
        Not run by this.
    sample : int or None, default=None
        Rows to ask the model, at its price, so that tokens and speed are measured; None asks nothing.
    as_if_rows : int or None, default=None
        Tell what so many rows like these would take; None takes the rows that are left.
    """
    manifest = job.manifest()
    left = job.left(manifest)
    rows_left = as_if_rows or sum(rows for _, rows in left)
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
        **_of_sample(job, asked),
        other_ways_usd=_other_ways(steps),
        beginning_tokens=round(min((step.beginning for step in steps), default=0.0)),
        **_model_time(job, seconds if asked.rows_per_s else None),
        prices=_prices(job),
        by_batch=job.by_batch,
    )


def _of_sample(job: Job, asked: Asked) -> dict[str, Any]:
    return {
        "sample_rows": len(asked.rows),
        "sample_cost_usd": _sample_cost(job, asked),
        "sample_failed": asked.failures.total() + asked.n_invalid,
        "sample_reason": asked.reason,
        "sample_stopped": asked.stopped,
    }


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


def _other_ways(steps: list[StepEstimate]) -> dict[Way, Pair]:
    """Return what all steps cost by each way that one of them can go; the others go as they are."""
    found: dict[Way, Pair] = {}
    for way in _WAYS:
        costs = [step.ways.get(way, step.cost_usd) for step in steps]
        if any(way in step.ways for step in steps) and None not in costs:
            found[way] = sum(c[0] for c in costs if c), sum(c[1] for c in costs if c)
    return found


def _model_time(job: Job, seconds: Pair | None) -> dict[str, Any]:
    """Return how long the actors of the local models are taken, if a sample told how fast they are."""
    local = [step.spec for step in job.plan if isinstance(step.spec, StatefulSpec)]
    if not local or seconds is None:
        return {}
    n_actors = sum(max(1, len(loaded_replicas(name))) for name in {spec.model for spec in local})
    low, high = (n_actors * value / _HOUR for value in seconds)
    return {"model_hours": (low, high), "gpus": max(spec.placement.num_gpus for spec in local)}


def _told_cost(cost: Pair | None, n_requests: int) -> str:
    if cost is None:
        return "price not known: give --input-price and --output-price"
    return _FREE if n_requests and cost == (0.0, 0.0) else f"{told(cost)} USD"


def _prices(job: Job) -> dict[str, Price]:
    found = ((step.spec.model, step.spec.capabilities.price) for step in job.plan)
    return {model: price for model, price in found if price is not None and price != Price(0.0)}


def _told_price(model: str, price: Price) -> str:
    when = f"as of {price.as_of}" if price.as_of else "as given"
    return f"{model}: {price.input:g} USD per million tokens in, {price.output:g} out ({when})"


def _told_hours(hours: Pair | None, gpus: float) -> str:
    if hours is None:
        return ""
    low, high = hours
    kind = "GPU-hours" if gpus else "hours of a model on CPUs"
    return f"{told((low * (gpus or 1), high * (gpus or 1)))} {kind}, its actors added up"


def told(pair: tuple[float, float]) -> str:
    """Return a range of amounts with the digits that are known: about as many as tell its ends apart.

    Its ends are rounded away from each other: what holds of the range holds of what is shown.

    Examples
    --------
    >>> told((10_734.2, 17_890.3)), told((535.8, 1_045.0)), told((0.00123, 0.00177)), told((480, 480))
    ('10,000 to 18,000', '500 to 1,100', '0.0012 to 0.0018', '480')
    """
    low, high = pair
    if high <= low:
        return f"{low:,.0f}" if float(low).is_integer() else f"{low:,.{max(2, 2 - _power(low))}f}"
    power = min(_power(high - low), _power(high) - 1)
    away = (math.floor(round(low / 10**power, 6)), math.ceil(round(high / 10**power, 6)))
    shown = [f"{value * 10**power:,.{max(0, -power)}f}" for value in away]
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)


def _power(value: float) -> int:
    """Return the place of a number's first digit: 0 for 1 to 9, -1 for tenths."""
    return math.floor(math.log10(value)) if value > 0 else 0


def _times(pair: tuple[float, float]) -> str:
    """Return a range of seconds in the unit that suits it, with the digits that are known.

    Examples
    --------
    >>> _times((20, 34)), _times((400, 700)), _times((27_000, 46_000)), _times((1_589_000, 2_724_000))
    ('20 to 34 s', '6 to 12 min', '7 to 13 h', '18 to 32 days')
    >>> _times((48_000, 48_000))
    '13 h'
    """
    size, unit = next((one for one in _UNITS if pair[1] >= 2 * one[0]), (1, "s"))
    low, high = pair[0] / size, pair[1] / size
    return f"{f'{round(low, 1 - _power(low)):,g}' if low == high else told((low, high))} {unit}"
