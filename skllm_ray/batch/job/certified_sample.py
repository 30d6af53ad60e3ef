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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from skllm_ray.batch.input.files import Unit, cut, read
from skllm_ray.batch.input.text_template import template_fields, texts_of
from skllm_ray.batch.job.certificate import DRAWN, fast_rows, read_certified, sample_table
from skllm_ray.batch.job.driver import Outcome
from skllm_ray.batch.job.journalled_backend import JournalledBackend
from skllm_ray.batch.job.terms import most_usd_of_texts
from skllm_ray.batch.job.worker import Begun, Call, UnitWork
from skllm_ray.batch.output.journal import digest, packed
from skllm_ray.batch.output.manifest import Manifest, read_schema
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import CERTIFICATE, CERTIFICATE_PART, OldPart
from skllm_ray.batch.storage import Folder
from skllm_ray.cascade import RowsDigest, random_keys, sample_size, smallest_sample
from skllm_ray.errors import ConfigurationError, InputError, JobFailedError, OutputMismatchError
from skllm_ray.execution.block import process
from skllm_ray.execution.plan import Block, Promised, part_of, promise_of, strong_steps
from skllm_ray.tasks.base import Row

_BLOCK: Final = 256
_MOST_SAMPLED: Final = 10_000
_MOST_BESIDE: Final = 200
_HALVES: Final = ", half of them to certify: the other half teaches the score"


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
    n_repeats: int = 0
    """How many of them the strong model is asked about twice."""

    @property
    def n_rows(self) -> int:
        """How many are sampled."""
        return len(self.texts)


@dataclass(frozen=True)
class CertificateWork(UnitWork):
    """Asks both models about the sample."""

    _counts_rows: ClassVar[bool] = False

    def read(self, call: Call, secrets: Any) -> pa.Table:
        """Return the sampled rows."""
        del secrets
        return pa.table({"position": pa.array(call.unit.positions, pa.int64()), "text": list(call.unit.texts)})

    def _answers(
        self, call: Call, table: pa.Table, old: OldPart | None, backends: list[JournalledBackend]
    ) -> tuple[pa.Table, list[Row[Any]]]:
        del table, old
        unit = call.unit
        rows = self._asked(unit, backends, check=True)
        known = json.dumps({digest(key): packed(answer) for one in backends for key, answer in one.answers.items()})
        again = self._again(unit, rows, backends)
        return sample_table(unit.positions, rows, again, self.plan, known), rows

    def ask(self, begun: Begun, backends: list[JournalledBackend]) -> None:
        """Ask both models, and the strong one again about some rows once all have an answer."""
        unit = begun.call.unit
        rows = self._asked(unit, backends, check=False)
        if not any(row.error is not None and row.error.kind == "cancelled" for row in (*rows, *fast_rows(rows))):
            self._again(unit, rows, backends)  # which rows, all answers of the first time decide

    def _asked(self, unit: CertificateUnit, backends: list[JournalledBackend], *, check: bool) -> list[Row[Any]]:
        rows = list[Row[Any]]()
        for start in range(0, unit.n_rows, _BLOCK):
            end = start + _BLOCK
            rows += process(Block(unit.texts[start:end], unit.positions[start:end]), self.plan, backends)
            if check and not start:
                _check_use(rows, unit.n_rows)
        return rows

    def _again(
        self, unit: CertificateUnit, rows: Sequence[Row[Any]], backends: list[JournalledBackend]
    ) -> dict[int, Row[Any]]:
        """Ask the strong model about some rows a second time; return what it said, by the row's place.

        They are the first rows: the sample stands in a random order. An answer that came from a cache tells nothing.
        """
        places = [at for at, row in enumerate(rows) if row.valid][: unit.n_repeats]
        numbers = strong_steps(self.plan)
        with ExitStack() as stack:
            ours = [stack.enter_context(backends[number].asking_again()) for number in numbers]
            found = process(Block([unit.texts[at] for at in places]), part_of(self.plan, numbers), ours)
        return {at: row for at, row in zip(places, found, strict=True) if row.valid and row.reply.attempts}

    def _counts(self, table: pa.Table) -> dict[str, Any]:
        """Count nothing: these are no rows of the output."""
        del table
        return {}


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
    reading = work.reading
    if promise.learns_score:
        reading = replace(cast("Any", reading), score=found.score)  # a cascade's, which shows it
    return replace(work, reading=reading, plan=found.plan(work.plan, promise), known=found.answers)


def _drawn(
    source: Folder, output: Folder, manifest: Manifest, work: UnitWork, promise: Promised, left_usd: float | None
) -> CertificateUnit:
    """Count the rows and draw the sample; how many rows it has is written down, and holds for every later run."""
    lost = [file.path for file in manifest.files if file.error is not None]
    if lost:
        raise InputError(
            f"A certificate is about all rows, and {lost[0]} cannot be read.", "Mend it, or leave it out of the input."
        )
    n_rows, longest, named, (positions, texts) = _count(source, manifest, promise)
    drawn = _drawn_before(output, n_rows)
    if drawn is None:
        n_sampled, n_repeats = _affordable(work, promise, n_rows, longest, left_usd)
        drawn = {
            "n_rows": n_rows,
            "n_sampled": n_sampled,
            "n_repeats": n_repeats,
            "seed": promise.seed,
            "rows": named,
            "terms": f"{manifest.model} {manifest.question} {n_sampled}",
        }
        drawn["n_attempts"] = _n_attempts(output, drawn)
        output.write(DRAWN, json.dumps(drawn).encode())
    some = slice(int(drawn["n_sampled"]))
    return CertificateUnit(tuple(positions[some].tolist()), tuple(texts[some]), n_repeats=int(drawn["n_repeats"]))


def _n_attempts(output: Folder, drawn: dict[str, Any]) -> int:
    """Return how many certificates are known of for these rows: this one, and those of the outputs beside it."""
    parent = output.path.rpartition("/")[0]
    try:
        beside = output.filesystem.get_file_info(pafs.FileSelector(parent, recursive=False)) if parent else []
    except OSError:
        beside = []
    terms = {str(drawn["terms"])}
    for info in [one for one in beside if one.type == pafs.FileType.Directory][:_MOST_BESIDE]:
        try:
            with output.filesystem.open_input_stream(f"{info.path}/{DRAWN}") as stream:
                told = json.loads(stream.read())
            if told["rows"] == drawn["rows"]:
                terms.add(str(told["terms"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return len(terms)


def _drawn_before(output: Folder, n_rows: int) -> dict[str, Any] | None:
    """Return what an earlier run wrote down of the sample."""
    try:
        told: dict[str, Any] = json.loads(output.read(DRAWN))
        if told["n_rows"] == n_rows and {"n_sampled", "n_repeats"} <= set(told):
            return told
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise OutputMismatchError(
        f"{output.at(DRAWN)}, which tells how many rows were sampled of how many, does not fit the input.",
        "Write to another output.",
    )


def _affordable(
    work: UnitWork, promise: Promised, n_rows: int, longest: int, left_usd: float | None
) -> tuple[int, int]:
    """Return how many rows are sampled, and about how many of them the strong model is asked twice.

    Not more than a budget affords if all texts were as long as the longest. That depends on all rows, and not on those
    that are drawn, so that the sample stays a fair one. Rows are asked about twice with what the sample leaves.
    """
    n_sampled = sample_size(n_rows) if promise.n_samples is None else min(promise.n_samples, n_rows)
    needed = _needed(promise, n_rows, n_sampled)
    if n_sampled < needed:
        raise ConfigurationError(
            f"n_samples={promise.n_samples}: {n_sampled:,} sampled rows of {n_rows:,} are too few for at most "
            f"{100 * promise.max_disagreement:g}% of disagreement at a confidence of {100 * promise.confidence:g}%, "
            f"which takes at least {needed:,}{_HALVES if promise.learns_score else ''}.",
            "Pass a larger n_samples, or promise less.",
        )
    n_repeats = min(promise.n_repeats, n_sampled)
    if left_usd is None:
        return n_sampled, n_repeats
    of_row, of_repeat = (
        most_usd_of_texts(part_of(work.plan, some), [work.terms[n] for n in some], ["x" * longest])[0]
        for some in (range(len(work.plan)), strong_steps(work.plan))
    )
    affordable = n_sampled if not of_row else min(n_sampled, math.floor(left_usd / of_row))
    needed = _needed(promise, n_rows, affordable)
    if affordable < needed:
        raise ConfigurationError(
            f"budget_usd leaves {left_usd:g} USD, which is sure to cover {affordable:,} sampled rows (up to {of_row:g} "
            f"USD each); the certificate takes at least {needed:,}{_HALVES if promise.learns_score else ''}.",
            "Raise the budget, or promise less.",
        )
    left = max(0.0, left_usd - affordable * of_row)
    return affordable, n_repeats if not of_repeat else min(n_repeats, math.floor(left / of_repeat))


def _needed(promise: Promised, n_rows: int, n_sampled: int) -> int:
    """Return the smallest sample that can carry the promise; where one half of it teaches, of both halves."""
    n_learning = n_sampled // 2 if promise.learns_score else 0
    least = smallest_sample(
        n_rows - n_learning, max_disagreement=promise.max_disagreement, confidence=promise.confidence
    )
    return 2 * least if promise.learns_score else least


def _count(
    source: Folder, manifest: Manifest, promise: Promised
) -> tuple[int, int, str, tuple[NDArray[np.int64], list[str]]]:
    """Return how many rows have a text, how long the longest is, what names them all, and those with the lowest keys.

    Those are the rows' positions and texts, the lowest key first.
    """
    most = max(promise.n_samples or 0, _MOST_SAMPLED)
    n_rows, longest, named = 0, 0, RowsDigest()
    keys, positions, texts = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, object)
    for unit, values in _texts(source, manifest):
        at = [i for i, text in enumerate(values) if isinstance(text, str) and text and not text.isspace()]
        here = np.asarray(unit.positions, np.int64)[at]
        n_rows += len(at)
        named.add(values[i] for i in at)
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
    return n_rows, longest, named.hexdigest(), (positions[order], texts[order].tolist())


def _texts(source: Folder, manifest: Manifest) -> Iterator[tuple[Unit, Sequence[Any]]]:
    template = manifest.text_template
    columns = sorted(template_fields(template)) if template else [manifest.text_column or ""]
    schema = read_schema(manifest.input_schema)
    for unit in cut(manifest.files, manifest.unit_rows, manifest.cuts):
        yield unit, texts_of(read(source, unit, columns, schema), manifest.text_column, template)


def _check_use(rows: Sequence[Row[Any]], n_sampled: int) -> None:
    """Raise where the first block shows that a model answers nothing, before others are asked about."""
    for name, told in (("fast", fast_rows(rows)), ("strong", rows)):
        if not any(row.valid for row in told):
            error = next((row.error for row in told if row.error is not None), None)
            why = "" if error is None else f" ({error.kind}: {error.message})"
            raise JobFailedError(
                f"The {name} model gave no valid answer for the first {len(rows):,} of {n_sampled:,} sampled rows{why}."
            )
