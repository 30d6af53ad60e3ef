"""Where tuning jobs are kept."""

from __future__ import annotations

from typing import TypeAlias

from skllm_ray.config import SKLLMConfig
from skllm_ray.llm.submissions import SubmissionStore, stores
from skllm_ray.llm.tuning.job import TuningJob

TuningStore: TypeAlias = SubmissionStore[TuningJob]


def open_store(url: str | None = None) -> TuningStore:
    """Return the store at `url`, else the one that ``SKLLMConfig.get_tuning_store()`` names."""
    return stores.open_store(url or SKLLMConfig.get_tuning_store(), TuningJob)
