"""The public name of :mod:`skllm_ray.batch.tools.report`."""

from skllm_ray.batch.tools.report import write_report

__all__ = ["write_report"]
