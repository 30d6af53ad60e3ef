"""Provider batches: files of requests that a provider answers within a day, at half the price.

A model's spec says how its batches are made and read (:class:`BatchApi`, by ``BackendSpec.batch_api``): a line for a
request, with the same body that would be sent directly, and the answer in a line of the results, read as a direct
answer is. A batch is bought once, by the protocol of `skllm_ray.llm.submissions`: :class:`BatchSpec` is what is bought,
:class:`ProviderBatch` its record, :class:`BatchService` who sells it. What a batch is for, and what becomes of its
lines, nothing here knows.
"""

from skllm_ray.llm.provider_batches.api import BatchApi, BatchService, open_batch_service
from skllm_ray.llm.provider_batches.lines import FileLimits, Form, LineResult
from skllm_ray.llm.provider_batches.record import ENDED, TOO_MANY_TOKENS, BatchSpec, ProviderBatch, ServerBatch

__all__ = [
    "ENDED",
    "TOO_MANY_TOKENS",
    "BatchApi",
    "BatchService",
    "BatchSpec",
    "FileLimits",
    "Form",
    "LineResult",
    "ProviderBatch",
    "ServerBatch",
    "open_batch_service",
]
