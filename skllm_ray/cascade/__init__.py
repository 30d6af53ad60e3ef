"""What share of rows may keep a cheap model's label, with a statement that holds in finite samples.

:func:`certify` finds the threshold, and why it holds stands in :mod:`skllm_ray.cascade.certificate`. All of it is
statistics on arrays: no model is asked here.
"""

from skllm_ray.cascade.agreement import AgreementScore, agreement_features
from skllm_ray.cascade.attempts import RowsDigest, counted
from skllm_ray.cascade.audit import Audit
from skllm_ray.cascade.certificate import Certificate, certify, smallest_sample
from skllm_ray.cascade.sampling import draw_sample, is_audited, learning_half, random_keys, sample_size, text_keys

__all__ = [
    "AgreementScore",
    "Audit",
    "Certificate",
    "RowsDigest",
    "agreement_features",
    "certify",
    "counted",
    "draw_sample",
    "is_audited",
    "learning_half",
    "random_keys",
    "sample_size",
    "smallest_sample",
    "text_keys",
]
