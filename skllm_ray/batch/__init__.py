"""Files in, files out: a question about millions of rows that may be stopped and resumed at any time.

A module is imported when something of it is asked for: workers need few of them, and each of their processes would
import all that a driver needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from skllm_ray.batch.delivery.admin import adopt_batch, cancel_batches, forget_batch, list_batches, look_at_batches
    from skllm_ray.batch.job.entry import job_for, run
    from skllm_ray.batch.job.progress_display import LineScreen, Screen, open_screen
    from skllm_ray.batch.job.result import JobResult
    from skllm_ray.llm.provider_batches import ProviderBatch

__all__ = [
    "JobResult",
    "LineScreen",
    "ProviderBatch",
    "Screen",
    "adopt_batch",
    "cancel_batches",
    "forget_batch",
    "job_for",
    "list_batches",
    "look_at_batches",
    "open_screen",
    "run",
]

_MODULES: Final = {
    "JobResult": "skllm_ray.batch.job.result",
    "LineScreen": "skllm_ray.batch.job.progress_display",
    "ProviderBatch": "skllm_ray.llm.provider_batches",
    "Screen": "skllm_ray.batch.job.progress_display",
    "adopt_batch": "skllm_ray.batch.delivery.admin",
    "cancel_batches": "skllm_ray.batch.delivery.admin",
    "forget_batch": "skllm_ray.batch.delivery.admin",
    "job_for": "skllm_ray.batch.job.entry",
    "list_batches": "skllm_ray.batch.delivery.admin",
    "look_at_batches": "skllm_ray.batch.delivery.admin",
    "open_screen": "skllm_ray.batch.job.progress_display",
    "run": "skllm_ray.batch.job.entry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(_MODULES[name]))[name]


def __dir__() -> list[str]:
    return __all__
