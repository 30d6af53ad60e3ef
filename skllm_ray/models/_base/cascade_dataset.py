"""A cascade over a Ray Dataset: what is asked first, here, and the two passes that the workers make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator

from skllm_ray.cascade import Audit, RowsDigest, is_audited, random_keys, text_keys
from skllm_ray.errors import InputError, PartialResultError, warn
from skllm_ray.models._base import results
from skllm_ray.models._base.classifier import LLMClassifier
from skllm_ray.models._base.columns import check_new_columns
from skllm_ray.models._base.estimator import OnError
from skllm_ray.models._base.inputs import as_texts, refuse_missing
from skllm_ray.models._base.labelling import Labelling, Rows, label_rows, labels_of, of_model
from skllm_ray.models._base.taught import TaughtRows
from skllm_ray.models._base.two_stages import Asked, Decision, Terms, told_apart
from skllm_ray.tasks.base import Row

_MINE: Final = "_skllm_ray_"
"""Begins the names of columns that the first pass hands on to the second, and that no user sees."""
_HANDED_ON: Final = tuple(_MINE + name for name in ["ask", "stage", "fast", "score", "known", "strong", "error", "own"])
_ASK, _STAGE, _FAST, _SCORE, _KNOWN, _STRONG, _ERROR, _OWN = _HANDED_ON
_KEPT_WHILE_COUNTED: Final = 10_000
_TEXT_COLUMN: Final = "the text column"
Process = Callable[[Sequence[str]], Sequence[Row[Any]]]
"""Processes texts, wherever that is done."""


@dataclass(frozen=True)
class Threshold:
    """What decides about a text wherever it stands."""

    decision: Decision
    seed: int
    sampled: Mapping[str, Any]
    """The strong labels of the sample, by text."""
    taught: TaughtRows
    """What the strong classifier said when it taught the fast one."""
    failed: frozenset[str] = frozenset()
    """Sampled texts for which the strong classifier failed: they count as disagreements, and keep no fast label."""
    audit_share: float = 0.0
    """The share of kept texts that the strong classifier is asked about all the same."""

    def stage(self, text: str | None) -> str | None:
        """Return why a text's strong label is known already, if it is."""
        if text is None:
            return None
        return "sample" if text in self.sampled else "strong" if text in self.taught else None

    def known(self, text: str | None) -> Any:
        """Return the strong label that is there already."""
        if text is None:
            return None
        return self.sampled[text] if text in self.sampled else self.taught.get(text)

    def keeps(self, fast: Labelling, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which fast labels are kept."""
        kept = self.decision.keeps(fast, text_keys(self.seed, "ties", texts))
        return np.asarray(kept & [text not in self.failed for text in texts], bool)

    def audits(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts are audited, if they are kept."""
        return is_audited(text_keys(self.seed, "audit", texts), self.audit_share)


@dataclass(frozen=True)
class RunningAudit:
    """Adds up what a Dataset's blocks find of the kept labels that are audited."""

    tally: Any
    """A `Tally`."""
    of: Audit
    """An empty one, with what was promised."""
    model: str

    def total(self) -> Audit:
        """Return what the blocks have found so far."""
        return replace(self.of, **self.tally.total())

    def note(self, block: str, stages: pa.ChunkedArray, differs: NDArray[np.bool_]) -> None:
        """Add a block, on a worker; `differs` has one value for each audited row that the strong one answered."""
        from skllm_ray.execution.metrics import count

        n_by_stage = {one["values"]: one["counts"] for one in pc.value_counts(stages.drop_null()).to_pylist()}
        n_kept = n_by_stage.get("fast", 0) + n_by_stage.get("audit", 0)
        n_differ = int(differs.sum())
        counts = {"n_rows": sum(n_by_stage.values()), "n_kept": n_kept, "n_audited": len(differs)}
        counts["n_disagreed"] = n_differ
        count(self.model, audited={"agreed": len(differs) - n_differ, "differed": n_differ})
        total = self.tally.put(block, counts)
        now = replace(self.of, **total)
        before = replace(self.of, **{name: n - counts[name] for name, n in total.items()})
        if now.alarm and not before.alarm:
            warn(str(now))


@dataclass(frozen=True)
class Wanted:
    """The columns that a user gets."""

    prefix: str
    details: bool
    mode: OnError
    label_type: pa.DataType

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The columns' types, by their names."""
        more = {
            "stage": pa.string(),
            "score": pa.float64(),
            "fast_label": self.label_type,
            "strong_label": self.label_type,
            "error": pa.string(),
        }
        types = {"prediction": self.label_type, **(more if self.details else {})}
        return {self.prefix + name: kind for name, kind in types.items()}


def map_cascade(
    ds: Any, text_column: str, pair: tuple[Any, Any], threshold: Threshold, wanted: Wanted, audit: RunningAudit | None
) -> Any:
    """Return a lazy Dataset with the columns of `ds` and those that are wanted.

    The first pass asks the fast classifier and writes the texts that it is unsure of into a column; the second asks
    the strong one about that column, where a row without a text costs nothing.
    """
    fast, strong = pair
    ds = _asked(ds, text_column, fast, partial(_first_pass, fast, threshold, wanted), scored=True)
    ds = _asked(ds, _ASK, strong, partial(_second_pass, strong, wanted), scored=False)
    last = {"wanted": wanted, "text_column": text_column, "audit": audit}
    return ds.map_batches(_delivered, fn_kwargs=last, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)


def sampled_texts(ds: Any, text_column: str, terms: Terms, taught: TaughtRows) -> tuple[int, str, list[str]]:
    """Return how many rows have a text, what names them, and those that are sampled of them: one pass over the column.

    Parameters
    ----------
    ds : ray.data.Dataset
        The rows.
    text_column : str
        The column with the texts.
    terms : Terms
        How many are sampled, and by which seed.
    taught : TaughtRows
        Those that do not count.
    """
    most = max(terms.n_samples or 0, _KEPT_WHILE_COUNTED)
    n_rows, named, keys, kept = 0, RowsDigest(), np.zeros(0, np.uint64), results.as_objects([])
    for batch in ds.select_columns([text_column]).iter_batches(batch_size=None, batch_format="pyarrow"):
        if not batch.num_rows:
            continue
        texts = results.as_objects([t for t in as_texts(batch[text_column].to_pylist(), _TEXT_COLUMN).values if t])
        texts = texts[~taught.among(texts.tolist())]
        keys = np.concatenate([keys, random_keys(terms.seed, "sample", np.arange(n_rows, n_rows + len(texts)))])
        kept = np.concatenate([kept, texts])
        n_rows += len(texts)
        named.add(texts.tolist())
        if len(keys) > most:
            lowest = np.argpartition(keys, most)[:most]
            keys, kept = keys[lowest], kept[lowest]
    if not n_rows:
        raise InputError(f"ds has no text in its column {text_column!r} about which a model would be asked.")
    return n_rows, named.hexdigest(), kept[np.argsort(keys)][: terms.n_sampled(n_rows)].tolist()


def certified(ds: Any, text_column: str, pair: tuple[Any, Any], terms: Terms, taught: TaughtRows) -> Threshold:
    """Count the rows, and ask both classifiers about a sample of them, here."""
    n_rows, named, texts = sampled_texts(ds, text_column, terms, taught)
    rows = Rows.of(texts)
    asked = Asked(*pair, rows, rows.present)
    ties = told_apart(asked.keys(terms.seed))
    _, strong, decision = asked.decided(np.arange(len(texts)), ties, terms, (n_rows, named))
    sampled = dict(zip(texts, strong.labels, strict=True))
    failed = frozenset(text for text, label in sampled.items() if label is None)
    sampled = {text: label for text, label in sampled.items() if label is not None}
    return Threshold(decision, terms.seed, sampled, taught, failed)


def begin_audit(threshold: Threshold, model: str) -> RunningAudit | None:
    """Return what adds up the audited rows of a Dataset; None where none is audited."""
    if not threshold.audit_share:
        return None
    from skllm_ray.execution.tally import Tally

    certificate = threshold.decision.certificate
    return RunningAudit(Tally.begin(), Audit(0, 0, 0, 0, certificate.max_disagreement, certificate.confidence), model)


def _asked(ds: Any, text_column: str, classifier: Any, to_columns: Any, *, scored: bool) -> Any:
    """Return `ds` with the columns that a pass makes of a text column."""
    model = classifier.estimator if isinstance(classifier, FrozenEstimator) else classifier
    if isinstance(model, LLMClassifier):
        from skllm_ray.execution.dataset_columns import map_dataset

        plan = model._ready(model._checked_plan(log_probs=scored))
        return map_dataset(ds, text_column, to_columns, plan, model._secrets())
    return ds.map_batches(
        _on_worker, fn_kwargs={"to_columns": to_columns, "text_column": text_column}, batch_size=None,
        batch_format="pyarrow", zero_copy_batch=True,
    )  # fmt: skip


def _on_worker(batch: pa.Table, to_columns: Any, text_column: str) -> pa.Table:
    """Process one block of a user's Dataset with a classifier that needs no model of ours."""
    for name, values in to_columns(batch[text_column].to_pylist()).items():
        batch = batch.append_column(name, values)
    return batch


def _first_pass(
    fast: Any, threshold: Threshold, wanted: Wanted, values: list[Any], process: Process | None = None
) -> dict[str, pa.Array]:
    """Return what the fast classifier says about a block, and about which texts the strong one is to be asked."""
    texts = as_texts(values, _TEXT_COLUMN)
    if wanted.mode == "raise":
        refuse_missing(texts, _TEXT_COLUMN)
    stages = [threshold.stage(text) for text in texts.values]
    new = [at for at in texts.present if stages[at] is None]
    labels, scores = [None] * len(values), [None] * len(values)
    ask: list[str | None] = [None] * len(values)
    if new:
        asked = [str(texts.values[at]) for at in new]
        said = _said(fast, asked, process, scored=True)
        found, kept = threshold.decision.scores(said).tolist(), threshold.keeps(said, asked).tolist()
        audited = (threshold.audits(asked) & kept).tolist()
        for at, text, label, score, keep, audit in zip(new, asked, said.labels, found, kept, audited, strict=True):
            labels[at], scores[at], ask[at] = label, score, None if keep and not audit else text
            stages[at] = "audit" if audit else "fast" if keep else "strong"
    return {
        _ASK: pa.array(ask, pa.string()),
        _STAGE: pa.array(stages, pa.string()),
        _FAST: pa.array(labels, wanted.label_type),
        _SCORE: pa.array(scores, pa.float64()),
        _KNOWN: pa.array([threshold.known(text) for text in texts.values], wanted.label_type),
    }


def _second_pass(strong: Any, wanted: Wanted, values: list[Any], process: Process | None = None) -> dict[str, pa.Array]:
    """Return what the strong classifier says about the texts in a block, of which most may be missing."""
    asked = [at for at, text in enumerate(values) if text is not None]
    labels, errors, own = (list[Any]([None]) * len(values) for _ in range(3))
    if asked:
        said = _said(strong, [values[at] for at in asked], process, scored=False)
        for at, label, error, fine in zip(asked, said.labels, said.details["error"], said.answered, strict=True):
            labels[at], errors[at], own[at] = label, error, bool(fine)
        failed = sum(labels[at] is None for at in asked)
        if failed and wanted.mode == "raise":
            told = f"{failed} of {len(asked)} rows of a block failed in the strong classifier: "
            raise PartialResultError(told + next(e for e in said.details["error"] if e), "Pass on_error='coerce'.")
        if failed and wanted.mode == "default" and isinstance(strong, LLMClassifier):
            for at in (at for at in asked if labels[at] is None):
                labels[at] = labels_of(strong, [strong._reading().default(values[at])])[0]
    found = {_STRONG: pa.array(labels, wanted.label_type), _ERROR: pa.array(errors, pa.string())}
    return {**found, _OWN: pa.array(own, pa.bool_())}


def _delivered(batch: pa.Table, wanted: Wanted, text_column: str, audit: RunningAudit | None) -> pa.Table:
    """Turn the columns that were handed on into those that are wanted."""
    if audit is not None:
        texts = batch[text_column].to_pylist()
        told = batch.filter(pc.fill_null(pc.and_(pc.equal(batch[_STAGE], "audit"), batch[_OWN]), False))
        pairs = zip(told[_FAST].to_pylist(), told[_STRONG].to_pylist(), strict=True)
        audit.note(str(joblib.hash(texts)), batch[_STAGE], np.asarray([one != other for one, other in pairs], bool))
    strong = pc.coalesce(batch[_KNOWN], batch[_STRONG])
    kept = pc.equal(batch[_STAGE], "fast")
    values = [pc.if_else(kept, batch[_FAST], strong), batch[_STAGE], batch[_SCORE], batch[_FAST], strong, batch[_ERROR]]
    check_new_columns(batch.column_names, next(iter(batch.column_names)), wanted.types)
    for (name, kind), column in zip(wanted.types.items(), values, strict=False):
        batch = batch.append_column(name, column.cast(kind))
    return batch.drop_columns(list(_HANDED_ON))


def _said(classifier: Any, texts: list[str], process: Process | None, *, scored: bool) -> Labelling:
    """Ask about texts that are there; raise where a language model refuses all of them for one reason."""
    if process is None:
        return label_rows(classifier, texts, scored=scored)
    model = classifier.estimator if isinstance(classifier, FrozenEstimator) else classifier
    given = as_texts(texts)
    return of_model(model, given, model._reading().rows(given, "coerce", process), scored=scored)
