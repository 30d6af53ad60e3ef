"""The first release's name of :mod:`skllm_ray.testing.tuning_server`."""

from skllm_ray.testing.tuning_server import SubmitFault, TuningServer

__all__ = ["SubmitFault", "TuningServer"]
