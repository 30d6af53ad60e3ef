"""How many rows a cascade's strong model would be asked about, as far as some rows tell that both were asked about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skllm_ray.batch.job.certificate import agrees, fast_rows
from skllm_ray.cascade import certify, sample_size
from skllm_ray.execution.plan import Promised, Step, label_probability
from skllm_ray.tasks.base import Row


def promised_share(promise: Promised, rows: Sequence[Row[Any]], n_rows: int, strong: Step) -> tuple[float, float]:
    """Return the lowest and the highest likely share of rows that the strong model is asked about.

    At least, the fast one keeps what a certificate of these rows alone would let it keep: the job's own sample is
    larger, and lets it keep more. At most, it keeps what the best threshold would; both within two standard errors.

    Parameters
    ----------
    promise : Promised
        What the job promises.
    rows : sequence of Row
        The pilot, about which both models were asked; may be empty.
    n_rows : int
        Rows of the job.
    strong : Step
        What the strong model is asked.
    """
    n_rows = max(n_rows, len(rows), 1)
    sampled = (sample_size(n_rows) if promise.n_samples is None else min(promise.n_samples, n_rows)) / n_rows
    if not rows:
        return sampled, 1.0
    scores = label_probability(fast_rows(rows))
    agree = np.asarray([agrees(row, strong) for row in rows], bool)
    certificate = certify(
        scores, agree, n_rows, max_disagreement=promise.max_disagreement, confidence=promise.confidence,
        tie_breakers=np.arange(len(rows)),
    )  # fmt: skip
    fewest = float(certificate.keeps(scores, np.arange(len(rows))).mean())
    order = np.argsort(-scores, kind="stable")
    fits = np.cumsum(~agree[order]) <= promise.max_disagreement * len(rows)
    most = float((fits & (scores[order] > -np.inf)).sum() / len(rows))
    errors = [2 * math.sqrt(kept * (1 - kept) / len(rows)) + 1 / len(rows) for kept in (fewest, most)]
    kept_low, kept_high = max(0.0, fewest - errors[0]), min(1.0, most + errors[1])
    audited = promise.audit_share
    return tuple(sampled + (1 - sampled) * (1 - kept * (1 - audited)) for kept in (kept_high, kept_low))  # type: ignore[return-value]
