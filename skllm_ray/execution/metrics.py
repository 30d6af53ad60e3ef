"""Counts for Prometheus, through Ray: every node serves them at its metrics port."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from skllm_ray.execution import ray_state
from skllm_ray.llm.rate_limit.installed import observe
from skllm_ray.llm.rate_limit.messages import BucketInfo

METRICS: Final = {
    "skllm_ray_rows": ("Counter", "Rows done.", ("model", "outcome")),
    "skllm_ray_tokens": ("Counter", "Tokens paid for.", ("model", "kind")),
    "skllm_ray_cost_usd": ("Counter", "US dollars spent, where the price is known.", ("model",)),
    "skllm_ray_errors": ("Counter", "Rows that failed.", ("model", "kind")),
    "skllm_ray_audited": ("Counter", "Kept labels of a cascade that were audited.", ("model", "outcome")),
    "skllm_ray_units_waiting": ("Gauge", "Units of a batch job that nobody works on yet.", ("job",)),
    "skllm_ray_units_running": ("Gauge", "Units of a batch job that are worked on.", ("job",)),
    "skllm_ray_quota_used": ("Gauge", "Share of a quota that was used in the last 60 s.", ("bucket", "what")),
    "skllm_ray_request_seconds": ("Histogram", "How long requests to an API took.", ("model",)),
}
"""Name, kind, meaning and tags of each. Ray puts ``ray_`` before the names."""
_SECONDS: Final = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]


def count(model: str, **values: Mapping[str, float] | float) -> None:
    """Add to counters by their names without the prefix: ``count(model, rows={"ok": 3}, cost_usd=0.1)``.

    Does nothing in a process without Ray.
    """
    if not ray_state.is_initialised():
        return
    for name, value in values.items():
        tag = METRICS[f"skllm_ray_{name}"][2][-1]
        by_tag = value if isinstance(value, Mapping) else {"": value}
        for what, amount in by_tag.items():
            if amount > 0:
                tags = {"model": model, **({tag: what} if what else {})}
                _metric(f"skllm_ray_{name}").inc(amount, tags)


def show_units(waiting: int, running: int) -> None:
    """Set the gauges of a batch job's queue."""
    import ray

    job = str(ray.get_runtime_context().get_job_id())
    _metric("skllm_ray_units_waiting").set(waiting, {"job": job})
    _metric("skllm_ray_units_running").set(running, {"job": job})


def show_quotas(buckets: Iterable[BucketInfo]) -> None:
    """Set the gauges of the quotas that are declared."""
    for bucket in buckets:
        for what, used, limit in (
            ("requests", bucket.requests_used, bucket.requests_per_minute),
            ("tokens", bucket.tokens_used, bucket.tokens_per_minute),
        ):
            if limit:
                _metric("skllm_ray_quota_used").set(used / limit, {"bucket": bucket.bucket, "what": what})


def observe_requests(model: str) -> None:
    """Let this process's requests be timed."""
    observe(lambda seconds: _metric("skllm_ray_request_seconds").observe(seconds, {"model": model}))


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind, meaning, tags = METRICS[name]
    options = {"boundaries": _SECONDS} if kind == "Histogram" else {}
    return getattr(metrics, kind)(name, description=meaning, tag_keys=tags, **options)
