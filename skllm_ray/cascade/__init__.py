"""What share of rows may keep a cheap model's label, with a statement that holds in finite samples.

:func:`certify` finds the threshold, and why it holds stands in :mod:`skllm_ray.cascade.certificate`. All of it is
statistics on arrays: no model is asked here.
"""

from skllm_ray.cascade.audit import Audit
from skllm_ray.cascade.certificate import Certificate, certify, smallest_sample
from skllm_ray.cascade.sampling import draw_sample, random_keys, sample_size, text_keys

__all__ = [
    "Audit",
    "Certificate",
    "certify",
    "draw_sample",
    "random_keys",
    "sample_size",
    "smallest_sample",
    "text_keys",
]
