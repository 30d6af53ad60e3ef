"""What an output tells of its promise: the certificate, how much a threshold keeps, and the audit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from skllm_ray.batch.job.certificate import Certified, read_certified
from skllm_ray.batch.output.manifest import Manifest
from skllm_ray.batch.output.part import UnitSummary
from skllm_ray.batch.storage import Folder
from skllm_ray.cascade import Audit
from skllm_ray.execution.plan import Promised


@dataclass(frozen=True)
class PromiseFacts:
    """How the promise of an output stands."""

    certified: Certified
    stages: dict[str, int]
    """Rows in the parts, by what they were answered by."""
    audit: Audit

    @property
    def facts(self) -> dict[str, str]:
        """Return it in words."""
        done, kept = sum(self.stages.values()), self.audit.n_kept
        share = f"{kept:,} of {done:,} rows ({kept / done:.1%})" if done else "no row yet"
        found = {"promise": str(self.certified.certificate), "kept fast labels": share, "audit": str(self.audit)}
        return found if self.audit.n_audited else {name: found[name] for name in ("promise", "kept fast labels")}

    def curve(self) -> Sequence[tuple[float, float]]:
        """Return, from the sample, which share of all rows would carry another label if so large a share were kept."""
        known = self.certified
        order = np.argsort(-known.scores, kind="stable")
        wrong = np.cumsum(~known.agree[order]) / len(order)
        n_scored = int((known.scores > -np.inf).sum())
        return [((i + 1) / len(order), float(wrong[i])) for i in range(n_scored)]


def promise_facts(manifest: Manifest, output: Folder, summaries: Iterable[UnitSummary]) -> PromiseFacts | None:
    """Return how the promise of an output stands; None where it made none, or has not asked its sample yet."""
    params = json.loads(manifest.params)
    if not {"fast", "strong", "max_disagreement", "confidence"} <= set(params):
        return None
    terms = float(params["max_disagreement"]), float(params["confidence"])
    learns, seed = params.get("score") == "learned", int(params["random_state"] or 0)
    certified = read_certified(output, Promised(*terms, params["n_samples"], seed, learns_score=learns))
    if certified is None:
        return None
    stages: dict[str, int] = {}
    differ = failed = 0
    for one in summaries:
        differ += one.audit_differs
        failed += one.audit_failed
        for stage, n in one.stages.items():
            stages[stage] = stages.get(stage, 0) + n
    audited = stages.get("audit", 0)
    kept = stages.get("fast", 0) + audited
    return PromiseFacts(certified, stages, Audit(sum(stages.values()), kept, audited - failed, differ, *terms))
