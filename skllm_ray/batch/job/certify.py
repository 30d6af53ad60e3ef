"""The certificate of a job with a fast and a strong model: both are asked about a sample of all rows, before the first.

All rows with a text are counted first, over all files, and the sample is drawn by a hash of the rows' positions. How
many are sampled is written down before anything is asked, and does not depend on answers. Then the sample is asked as a
unit is: under the budget, journalled, again where its worker dies. The answers stand in a file beside the parts, with
what they cost; every unit takes those of its own rows from there, and no row is asked about twice.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skllm_ray.batch.input.files import Unit, cut, read
from skllm_ray.batch.input.text_template import template_fields, texts_of
from skllm_ray.batch.job.driver import Outcome
from skllm_ray.batch.job.journalled_backend import JournalledBackend
from skllm_ray.batch.job.terms import most_usd_of_texts
from skllm_ray.batch.job.worker import Call, UnitWork
from skllm_ray.batch.output.journal import digest, packed, unpacked
from skllm_ray.batch.output.manifest import Manifest, read_schema
from skllm_ray.batch.output.part import CERTIFICATE, CERTIFICATE_PART, SYSTEM, OldPart
from skllm_ray.batch.output.parts import OutputState
from skllm_ray.batch.storage import Folder
from skllm_ray.cascade import Certificate, certify, random_keys, sample_size, smallest_sample
from skllm_ray.errors import ConfigurationError, InputError, JobFailedError, OutputMismatchError
from skllm_ray.execution.block import process
from skllm_ray.execution.plan import Audited, Block, Plan, Promised, Sampled, Unsure, label_probability
from skllm_ray.tasks.base import Row

_DRAWN: Final = f"{SYSTEM}/sample.json"
_BLOCK: Final = 256
_MOST_SAMPLED: Final = 10_000


@dataclass(frozen=True)
class PositionKeys:
    """Numbers for rows, by where they stand."""

    seed: int
    purpose: str

    def __call__(self, block: Block) -> NDArray[np.uint64]:
        """Return one for each row."""
        return random_keys(self.seed, self.purpose, np.asarray(block.positions or (), np.uint64))


@dataclass(frozen=True)
class CertificateUnit:
    """Stands for a unit of the input: the sampled rows."""

    positions: tuple[int, ...]
    texts: tuple[str, ...]
    key: str = CERTIFICATE
    part_name: str = CERTIFICATE_PART
    path: str = "certificate"
    start: int = 0
    groups: tuple[Any, ...] = ()

    @property
    def n_rows(self) -> int:
        """How many are sampled."""
        return len(self.texts)


@dataclass(frozen=True)
class CertificateWork(UnitWork):
    """Asks both models about the sample."""

    _counts_rows: ClassVar[bool] = False

    def _read(self, call: Call, secrets: Any) -> pa.Table:
        del secrets
        return pa.table({"position": pa.array(call.unit.positions, pa.int64()), "text": list(call.unit.texts)})

    def _answers(
        self, call: Call, table: pa.Table, old: OldPart | None, backends: list[JournalledBackend]
    ) -> tuple[pa.Table, list[Row[Any]]]:
        del table, old
        unit, rows = call.unit, list[Row[Any]]()
        for start in range(0, unit.n_rows, _BLOCK):
            end = start + _BLOCK
            rows += process(Block(unit.texts[start:end], unit.positions[start:end]), self.plan, backends)
            if not start:
                _check_use(rows, unit.n_rows)
        first = [row if row.replaced is None else row.replaced for row in rows]
        known = {digest(key): packed(answer) for one in backends for key, answer in one.answers.items()}
        return pa.table(
            {
                "position": pa.array(unit.positions, pa.int64()),
                "score": pa.array(label_probability(first), pa.float64()),
                "agree": pa.array([agrees(row) for row in rows], pa.bool_()),
                "answers": pa.array([json.dumps(known), *[None] * (len(rows) - 1)], pa.string()),
            }
        ), rows

    def _counts(self, table: pa.Table) -> dict[str, Any]:
        """Count nothing: these are no rows of the output."""
        del table
        return {}


@dataclass(frozen=True)
class Certified:
    """What the sample of an output told."""

    certificate: Certificate
    positions: NDArray[np.int64]
    scores: NDArray[np.float64]
    agree: NDArray[np.bool_]
    answers: Mapping[str, Any]
    """What both models said, by the keys that journals have."""

    def plan(self, plan: Plan, promise: Promised) -> Plan:
        """Return the plan whose last step takes what the certificate says."""
        certificate = self.certificate
        ties = PositionKeys(promise.seed, "ties")
        takes = (
            Sampled(frozenset(self.positions.tolist()), stage="sample"),
            Unsure(certificate.threshold, certificate.threshold_tie, ties),
            Audited(promise.audit_share, PositionKeys(promise.seed, "audit"), stage="audit"),
        )
        return (*plan[:-1], replace(plan[-1], takes=takes))


def promise_of(plan: Plan) -> Promised | None:
    """Return what a plan promises that no certificate tells yet; None where it promises nothing."""
    return next((one for one in plan[-1].takes if isinstance(one, Promised)), None)


def read_certified(output: Folder, promise: Promised) -> Certified | None:
    """Return what the sample of an output told; None where it was not asked yet.

    Raises
    ------
    OutputMismatchError
        If the file is damaged: another sample must not take its place.
    """
    try:
        with output.filesystem.open_input_file(output.at(CERTIFICATE_PART)) as source:
            table = pq.read_table(source)
        n_rows = json.loads(output.read(_DRAWN))["n_rows"]
        positions = table["position"].to_numpy()
        scores, agree = table["score"].to_numpy(), np.asarray(table["agree"].to_pylist(), bool)
        answers = {key: unpacked(told) for key, told in json.loads(table["answers"][0].as_py()).items()}
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise OutputMismatchError(
            f"{output.at(CERTIFICATE_PART)}, which holds the sample that the output's promise rests on, cannot be read "
            f"({type(error).__name__}).",
            "Bring it back from a copy, or write to another output.",
        ) from None
    certificate = certify(
        scores,
        agree,
        n_rows,
        max_disagreement=promise.max_disagreement,
        confidence=promise.confidence,
        tie_breakers=random_keys(promise.seed, "ties", positions),
    )
    return Certified(certificate, positions, scores, agree, answers)


def certified_work(
    work: UnitWork,
    place: tuple[Folder, Folder, Manifest],
    state: OutputState,
    left_usd: float | None,
    ask: Callable[[deque[Call], UnitWork], Outcome],
) -> UnitWork | Outcome:
    """Return the work with the threshold that the sample tells, or how the run ended before.

    Parameters
    ----------
    work : UnitWork
        What every unit needs.
    place : tuple of Folder, Folder, Manifest
        The input, the output and the job's manifest.
    state : OutputState
        What is in the output.
    left_usd : float or None
        What may still be spent; None without a budget.
    ask : callable
        Does what it is given as units are done.
    """
    source, output, manifest = place
    promise = promise_of(work.plan)
    if promise is None:
        return work
    found = read_certified(output, promise)
    if found is None:
        unit = _drawn(source, output, manifest, work, promise, left_usd)
        own = CertificateWork(**{one.name: getattr(work, one.name) for one in fields(work)})
        lost = state.lost.get(CERTIFICATE)
        before = lost.progress.bill() if lost else None
        outcome = ask(deque([Call(unit, CERTIFICATE in state.journals, before=before)]), own)
        found = read_certified(output, promise)
        if outcome.kind or found is None:
            return outcome
    return replace(work, plan=found.plan(work.plan, promise), known=found.answers)


def _drawn(
    source: Folder, output: Folder, manifest: Manifest, work: UnitWork, promise: Promised, left_usd: float | None
) -> CertificateUnit:
    """Count the rows and draw the sample; how many rows it has is written down, and holds for every later run."""
    lost = [file.path for file in manifest.files if file.error is not None]
    if lost:
        raise InputError(
            f"A certificate is about all rows, and {lost[0]} cannot be read.", "Mend it, or leave it out of the input."
        )
    n_rows, longest, positions, texts = _count(source, manifest, promise)
    n_sampled = _n_sampled_before(output, n_rows)
    if n_sampled is None:
        n_sampled = _affordable(work, promise, n_rows, longest, left_usd)
        output.write(_DRAWN, json.dumps({"n_rows": n_rows, "n_sampled": n_sampled, "seed": promise.seed}).encode())
    return CertificateUnit(tuple(positions[:n_sampled].tolist()), tuple(texts[:n_sampled]))


def _n_sampled_before(output: Folder, n_rows: int) -> int | None:
    try:
        told = json.loads(output.read(_DRAWN))
        if told["n_rows"] == n_rows:
            return int(told["n_sampled"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise OutputMismatchError(
        f"{output.at(_DRAWN)}, which tells how many rows were sampled of how many, does not fit the input.",
        "Write to another output.",
    )


def _affordable(work: UnitWork, promise: Promised, n_rows: int, longest: int, left_usd: float | None) -> int:
    """Return how many rows are sampled: not more than a budget affords if all texts were as long as the longest.

    That depends on all rows, and not on those that are drawn, so that the sample stays a fair one.
    """
    n_sampled = sample_size(n_rows) if promise.n_samples is None else min(promise.n_samples, n_rows)
    needed = smallest_sample(n_rows, max_disagreement=promise.max_disagreement, confidence=promise.confidence)
    if n_sampled < needed:
        raise ConfigurationError(
            f"n_samples={promise.n_samples}: {n_sampled:,} sampled rows of {n_rows:,} are too few for at most "
            f"{100 * promise.max_disagreement:g}% of disagreement at a confidence of {100 * promise.confidence:g}%, "
            f"which takes at least {needed:,}.",
            "Pass a larger n_samples, or promise less.",
        )
    if left_usd is None:
        return n_sampled
    most = most_usd_of_texts(work.plan, work.terms, ["x" * longest])[0]
    affordable = n_sampled if not most else min(n_sampled, math.floor(left_usd / most))
    if affordable < needed:
        raise ConfigurationError(
            f"budget_usd leaves {left_usd:g} USD, which is sure to cover {affordable:,} sampled rows (up to {most:g} "
            f"USD each); the certificate takes at least {needed:,}.",
            "Raise the budget, or promise less.",
        )
    return affordable


def _count(source: Folder, manifest: Manifest, promise: Promised) -> tuple[int, int, NDArray[np.int64], list[str]]:
    """Return how many rows have a text, how long the longest is, and the rows with the lowest keys, lowest first."""
    most = max(promise.n_samples or 0, _MOST_SAMPLED)
    n_rows, longest = 0, 0
    keys, positions, texts = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, object)
    for unit, values in _texts(source, manifest):
        at = [i for i, text in enumerate(values) if isinstance(text, str) and text and not text.isspace()]
        here = np.asarray(unit.positions, np.int64)[at]
        n_rows += len(at)
        longest = max([longest, *(len(values[i].encode("utf-8", "surrogatepass")) for i in at)])
        keys = np.concatenate([keys, random_keys(promise.seed, "sample", here)])
        positions = np.concatenate([positions, here])
        texts = np.concatenate([texts, np.fromiter((values[i] for i in at), object, len(at))])
        if len(keys) > most:
            lowest = np.argpartition(keys, most)[:most]
            keys, positions, texts = keys[lowest], positions[lowest], texts[lowest]
    if not n_rows:
        raise InputError("The input has no row with a text.")
    order = np.argsort(keys)
    return n_rows, longest, positions[order], texts[order].tolist()


def _texts(source: Folder, manifest: Manifest) -> Iterator[tuple[Unit, Sequence[Any]]]:
    template = manifest.text_template
    columns = sorted(template_fields(template)) if template else [manifest.text_column or ""]
    schema = read_schema(manifest.input_schema)
    for unit in cut(manifest.files, manifest.unit_rows, manifest.cuts):
        yield unit, texts_of(read(source, unit, columns, schema), manifest.text_column, template)


def _check_use(rows: Sequence[Row[Any]], n_sampled: int) -> None:
    """Raise where the first block shows that a model answers nothing, before others are asked about."""
    first = [row if row.replaced is None else row.replaced for row in rows]
    for name, told in (("fast", first), ("strong", rows)):
        if not any(row.valid for row in told):
            error = next((row.error for row in told if row.error is not None), None)
            why = "" if error is None else f" ({error.kind}: {error.message})"
            raise JobFailedError(
                f"The {name} model gave no valid answer for the first {len(rows):,} of {n_sampled:,} sampled rows{why}."
            )


def agrees(row: Row[Any]) -> bool:
    """Return whether both models gave a row the same label, or the same labels in any order."""
    one = row.replaced
    if one is None or not (one.valid and row.valid):
        return False
    if isinstance(row.value, tuple) and isinstance(one.value, tuple):
        return set(one.value) == set(row.value)
    return bool(one.value == row.value)
