"""What a report tells of all rows, counted part by part: the rows themselves are not kept."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skllm_ray.batch.tools.part_rows import PartColumns, PartRows, counts, short

_LABELS: Final = 25
_SAMPLES: Final = 4
_LEAST_SURE: Final = 10
_DRAWN: Final = 64
BINS: Final = 20
"""Of a histogram of probabilities."""


class Tally:
    """Counts of a job's rows, and a few rows as examples.

    Parameters
    ----------
    columns : PartColumns
        What the columns of the parts are called.
    """

    def __init__(self, columns: PartColumns) -> None:
        self._gives_labels = columns.labels is not None
        self._random = random.Random(0)
        self.rows = 0
        self.labels: Counter[str] = Counter()
        self.invalid = 0
        self.confidence: dict[str, np.ndarray[Any, Any]] = defaultdict(lambda: np.zeros(BINS, np.int64))
        self.errors: Counter[str] = Counter()
        self.failures: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.samples: dict[str, list[str]] = defaultdict(list)
        self.least_sure: list[tuple[float, str, str]] = []
        self.has_texts = True
        self._seen: Counter[str] = Counter()

    def add(self, part: PartRows) -> None:
        """Count a part."""
        self.rows += part.n_rows
        self.has_texts = self.has_texts and part.has_texts()
        for kind, count in counts(part.errors):
            self.errors[kind] += count
            self.invalid += count if kind == "invalid_answer" else 0
            self._keep_failures(kind, part)
        if part.labels is None or part.answers is None:
            return
        if self._gives_labels:
            self.labels.update(dict(counts(pc.list_flatten(part.labels) if part.several else part.labels)))
        self._keep_samples(part, part.answers)
        self._count_confidence(part, part.answers)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _keep_failures(self, kind: str, part: PartRows) -> None:
        room = _SAMPLES - len(self.failures[kind])
        if room <= 0:
            return
        failed = pc.indices_nonzero(pc.fill_null(pc.equal(part.errors, kind), False)).slice(0, room)
        reasons = part.reasons.take(failed).to_pylist()
        texts = part.texts(failed.to_pylist())
        self.failures[kind] += [(text, short(reason)) for text, reason in zip(texts, reasons, strict=True)]

    def _keep_samples(self, part: PartRows, answers: pa.ChunkedArray) -> None:
        """Keep some rows of each answer, all equally likely: reservoirs, by a few draws of each part."""
        chosen = sorted(self._random.sample(range(part.n_rows), min(_DRAWN, part.n_rows)))
        found = answers.take(pa.array(chosen, pa.int64())).to_pylist()
        for text, label in zip(part.texts(chosen), found, strict=True):
            if label is None or (len(self._seen) > _LABELS and label not in self._seen):
                continue
            self._seen[label] += 1
            kept = self.samples[label]
            if len(kept) < _SAMPLES:
                kept.append(text)
            elif (place := self._random.randrange(self._seen[label])) < _SAMPLES:
                kept[place] = text

    def _count_confidence(self, part: PartRows, answers: pa.ChunkedArray) -> None:
        sure = part.probabilities
        known = ~np.isnan(sure)
        if not known.any():
            return
        bins = np.minimum((np.where(known, sure, 0) * BINS).astype(int), BINS - 1)
        encoded = answers.combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        for code, label in enumerate(encoded.dictionary.to_pylist()):
            self.confidence[label] += np.bincount(bins[known & (codes == code)], minlength=BINS)
        lowest = np.argsort(np.where(known, sure, 2.0))[:_LEAST_SURE].tolist()
        texts, labels = part.texts(lowest), answers.take(pa.array(lowest, pa.int64())).to_pylist()
        rows = [(float(sure[i]), str(label), text) for i, label, text in zip(lowest, labels, texts, strict=True)]
        self.least_sure = sorted({*self.least_sure, *(row for row in rows if row[0] <= 1)})[:_LEAST_SURE]
