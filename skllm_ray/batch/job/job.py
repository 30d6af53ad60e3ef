"""A batch job, from its plan to its last part."""

from __future__ import annotations

import json
import random
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa

from skllm_ray.batch.input.files import Scanned, Unit, cut, rows_per_unit, scan
from skllm_ray.batch.input.text_template import check_formats, template_fields
from skllm_ray.batch.job.driver import Budget, Outcome, work_off
from skllm_ray.batch.job.options import BatchEstimator, JobOptions
from skllm_ray.batch.job.prior import estimated, prior_to_ask, read_prior, ready_work, with_prior
from skllm_ray.batch.job.progress_display import Screen, State, open_screen
from skllm_ray.batch.job.result import JobResult
from skllm_ray.batch.job.terms import Terms
from skllm_ray.batch.job.worker import Call, UnitWork
from skllm_ray.batch.output.lock import OutputLock
from skllm_ray.batch.output.manifest import (
    Manifest,
    load_manifest,
    params_text,
    probe_prompt,
    question_hash,
    read_schema,
    schema_text,
    veiled_identity,
    with_template,
)
from skllm_ray.batch.output.part import SYSTEM, add_up, table_bytes
from skllm_ray.batch.output.parts import OutputState
from skllm_ray.batch.storage import FileInfo, Folder, StorageOptions, base_of, distinct, list_inputs, open_folder
from skllm_ray.config import Price, Secret
from skllm_ray.errors import ConfigurationError, InputError, OutputMismatchError, warn
from skllm_ray.execution.block import embedding_of
from skllm_ray.execution.runner import run as run_rows
from skllm_ray.llm.base import BackendSpec
from skllm_ray.llm.registry import most_output_tokens, price_of_spec
from skllm_ray.tasks.base import ChatRequest, Row
from skllm_ray.tasks.embedding import EmbeddingTask
from skllm_ray.tasks.label_mass import low_mass

_MOST_OUTPUT_TOKENS: Final = 1024
_EMPTY: Final = "part-00000-0000000000-0000000.parquet"


class Job:
    """A job on an output.

    Parameters
    ----------
    estimator : BatchEstimator
        Fitted.
    inputs : sequence of str
        Files, folders or patterns, all on one filesystem.
    output : str
        A folder.
    options : JobOptions
        How to read, write and spend.
    storage : StorageOptions
        What opens the filesystems.
    """

    def __init__(
        self,
        estimator: BatchEstimator,
        inputs: Sequence[str],
        output: str,
        options: JobOptions,
        storage: StorageOptions,
    ) -> None:
        self._estimator = estimator
        self._inputs = tuple(inputs)
        self._output_uri = output
        self._options = options
        self._storage = storage
        self.task = estimator._task()
        spec = estimator._checked_spec()
        self.spec = self._priced(spec)
        self.output = open_folder(output, storage, storage.secrets())
        self._source_uri = base_of(self._inputs[0])
        self._system = self.output.below(SYSTEM)
        self._check_prices(price_of_spec(spec))

    # --- planning -------------------------------------------------------------------------------------------------

    def plan(self) -> Manifest:
        """Return the job's manifest: the output's, if it has one that fits; else a new one, not written yet.

        Raises
        ------
        InputError
            If the input, or a column of it, is not there.
        OutputMismatchError
            If the output belongs to another job.
        """
        old = load_manifest(self._system)
        files = self._list()
        if old is None:
            if any(name.startswith("part-") for name in self.output.names()):
                raise OutputMismatchError(
                    f"output={self._output_uri!r} holds parts but no manifest.", "Give an empty or a new folder."
                )
            return self._manifest(self._scan(files))
        self._refuse_changed(old, files)
        old.check_same(self._manifest(Scanned(list(old.files), read_schema(old.input_schema)), old))
        return self._read_again(old, files)

    def units(self, manifest: Manifest) -> Iterator[Unit]:
        """Yield the job's units."""
        return cut(manifest.files, manifest.unit_rows, manifest.cuts)

    def requests_for(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return what would be asked about some texts, with any examples where the nearest ones cost to find."""
        task: Any = self.task
        if getattr(task, "embedding", None) is None:
            return list(task.render(texts))
        task = replace(task, memory=_SomeExamples(task.memory))
        return list(task.render(texts, np.zeros((len(texts), 1), np.float32)))

    def left(self, manifest: Manifest) -> list[tuple[Unit, int]]:
        """Return the units that a run would do, and how many rows of each it would ask about."""
        state = OutputState(self.output, list(self.units(manifest)))
        rows, before, wanted = dict[str, int](), 0, self._wanted(manifest)
        for unit in state.units:
            rows[unit.key] = min(unit.n_rows, wanted - before)
            before += unit.n_rows
        found = []
        for call in self._calls(manifest, state):
            failed = {} if not call.retries else {**state.summaries[call.key].errors, "missing_text": 0}
            found.append((call.unit, sum(failed.values()) if call.retries else rows[call.key]))
        return found

    @property
    def secrets(self) -> dict[str, Secret]:
        """The credentials that workers need, by fingerprint."""
        return {**self._estimator._secrets(), **self._storage.secrets()}

    @property
    def budget_usd(self) -> float | None:
        """The most that may be spent; None for no limit."""
        return self._options.budget_usd

    @property
    def embeds(self) -> bool:
        """Whether texts become vectors, and nothing is written about them."""
        return isinstance(self.task, EmbeddingTask)

    def terms(self, outage_s: float | None = None) -> tuple[Terms, Terms]:
        """Return the rules for the model that answers, and for the one whose vectors the task renders with."""
        both = self._terms(self.spec, self._price), self._terms(self._embedder or self.spec, self._embedder_price)
        return both if outage_s is None else (replace(both[0], outage_s=outage_s), replace(both[1], outage_s=outage_s))

    def ask(self, texts: Sequence[str]) -> list[Row[Any]]:
        """Ask about some texts, outside of any output."""
        return run_rows(texts, self.task, self.spec, self._estimator._secrets(), show_progress=False)

    @property
    def prior_texts(self) -> tuple[str, ...]:
        """The texts that are asked about before the first row, for the labels' prior; none where it is known."""
        prior = prior_to_ask(self.task)
        return () if prior is None or read_prior(self.output) is not None else prior.texts

    def take_prior(self, rows: Sequence[Row[Any]]) -> None:
        """Take the prior that the answers to `prior_texts` tell; without any, the output's."""
        if prior_to_ask(self.task) is not None:
            self.task = with_prior(self.task, estimated(rows) if rows else read_prior(self.output) or ())

    @cached_property
    def source(self) -> Folder:
        """The input's folder, or its file."""
        return open_folder(self._source_uri, self._storage, self._storage.secrets())

    def _list(self) -> list[FileInfo]:
        secrets = self._storage.secrets()
        found = [file for uri in self._inputs for file in list_inputs(uri, self._storage, secrets)]
        return distinct(found, self.source)

    def _scan(self, files: Sequence[FileInfo]) -> Scanned:
        scheme, mark, _ = self._source_uri.partition("://")
        return scan(self.source, files, self._options.filename_column, scheme + mark if mark else "")

    def _refuse_changed(self, old: Manifest, files: Sequence[FileInfo]) -> None:
        before = {file.path: file for file in old.files}
        now = {file.path: file for file in files}
        new = sorted(set(now) - set(before))
        gone = sorted(set(before) - set(now))
        changed = [
            path for path in before if path in now and before[path].error is None and before[path].info != now[path]
        ]
        for what, paths in (("has new files", new), ("lacks files", gone), ("has changed files", changed)):
            if paths:
                raise OutputMismatchError(
                    f"The input {what} since the job began: {_some(paths)}.",
                    "Write to another output, with the new files alone as its input if you like.",
                )

    def _read_again(self, old: Manifest, files: Sequence[FileInfo]) -> Manifest:
        """Return the manifest with the files that could not be read before and can be now."""
        broken = [file.path for file in old.files if file.error is not None]
        if not broken:
            return old
        again = self._scan([file for file in files if file.path in set(broken)])
        mended = {file.path: file for file in _checked(again, self._needed()).files}
        return replace(old, files=tuple(mended.get(file.path, file) for file in old.files))

    def _manifest(self, scanned: Scanned, old: Manifest | None = None) -> Manifest:
        given, estimator = self._options, self._estimator
        names = scanned.schema.names
        self._check_columns(scanned)
        kept = tuple(names) if given.keep_columns is None else given.keep_columns
        ours = {given.output_prefix + name: kind or pa.string() for name, kind in self._types.items()}
        if given.keep_replies != "none":
            ours[given.output_prefix + "raw_reply"] = pa.string()
        if old is not None:  # a later version's new columns are not in the output, so that they collide with nothing
            ours = {name: ours[name] for name in old.result_columns if name in ours}
        both = sorted(set(kept) & set(ours))
        if both:
            raise InputError(
                f"The input has a column {both[0]!r}, which is also the name of a result.",
                "Pass output_prefix='…', or leave the column out with keep_columns=[…].",
            )
        schema = pa.schema([*(scanned.schema.field(name) for name in kept), *ours.items()])
        files = tuple(_checked(scanned, self._needed()).files)
        kind = type(estimator).__name__
        task = with_template(self.task, old.template if old and old.task == kind else None)
        return Manifest(
            input=self._inputs,
            text_column=None if given.text_template else given.text_column,
            text_template=given.text_template,
            keep_columns=kept,
            output_prefix=given.output_prefix,
            keep_replies=given.keep_replies,
            task=kind,
            model=self.spec.model,
            identity=veiled_identity(json.dumps(getattr(self.spec, "identity", self.spec.key))),
            params=params_text(estimator),
            question=question_hash(task),
            prompt=probe_prompt(task),
            labels=_labels(estimator),
            input_schema=schema_text(scanned.schema),
            schema=schema_text(schema),
            prediction_columns=tuple(estimator._column_types()),
            unit_rows=given.unit_rows or (old.unit_rows if old else rows_per_unit(files)),
            files=files,
            max_output_tokens=given.max_output_tokens,
            filename_column=given.filename_column,
            template=getattr(task, "template", None),
        )

    def _needed(self) -> list[str]:
        if self._options.text_template:
            return sorted(template_fields(self._options.text_template))
        return [self._options.text_column or ""]

    def _check_columns(self, scanned: Scanned) -> None:
        names = scanned.schema.names
        if not any(file.error is None for file in scanned.files):
            first = next((file for file in scanned.files), None)
            raise InputError(
                "No file of the input can be read" + (f": {first.path}: {first.error}." if first else "."),
                "Give files of Parquet, CSV or JSON lines.",
            )
        for parameter, wanted in (
            ("text_template" if self._options.text_template else "text_column", self._needed()),
            ("keep_columns", self._options.keep_columns or ()),
        ):
            missing = [name for name in wanted if name not in names]
            if missing:
                raise InputError(
                    f"{parameter}: the input has no column {missing[0]!r}.", f"Columns: {', '.join(names)}."
                )
        for name in dict.fromkeys([*self._needed(), *(self._options.keep_columns or names)]):
            if name in scanned.clashes:
                raise InputError(
                    f"The files' columns {name!r} do not go together: {scanned.clashes[name]}.",
                    "Convert them to one type, or leave the column out: keep_columns=[…] names those that are kept.",
                )
        if self._options.text_template:
            check_formats(self._options.text_template, scanned.schema)
        else:
            kind = scanned.schema.field(self._options.text_column or "").type
            if not _is_text(kind):
                raise InputError(
                    f"text_column={self._options.text_column!r} is of type {kind}, not of texts.",
                    "Convert it to strings."
                    if "binary" in str(kind)
                    else f"Use text_template='{{{self._options.text_column}}}' to turn its values into texts.",
                )

    @cached_property
    def _types(self) -> dict[str, pa.DataType | None]:
        return self._estimator._output_types()

    def _priced(self, spec: Any) -> Any:
        """Return the model with the prices that were given; a half that was not is the one that is known."""
        given = self._options
        spec = self._cautious(spec)
        if (given.input_price is None and given.output_price is None) or not hasattr(spec, "price"):
            return spec
        known = price_of_spec(spec)
        halves = {
            name: half if half is not None else getattr(known, name, 0.0)
            for name, half in (("input", given.input_price), ("output", given.output_price))
        }
        return replace(spec, price=Price(halves["input"], halves["output"], as_of=f"{datetime.now(UTC):%Y-%m-%d}"))

    def _cautious(self, spec: Any) -> Any:
        """Return a model that leaves long waits to the job, and with a budget asks once for what was set aside once."""
        if not hasattr(spec, "patience"):
            return spec
        lost = self._options.budget_usd is None
        return replace(spec, patience=replace(spec.patience, repeats_lost=lost, waits=False))

    def _check_prices(self, known: Price | None) -> None:
        """Raise unless a budget is asked of models whose price is known."""
        given = self._options
        if given.budget_usd is None:
            return
        half = (given.input_price is None) != (given.output_price is None)
        if half and known is None:
            lacks = "input_price" if given.input_price is None else "output_price"
            if lacks == "input_price" or not isinstance(self.task, EmbeddingTask):
                raise ConfigurationError(
                    f"budget_usd={given.budget_usd:g}, but {lacks} is missing.",
                    f"Give it too (--{lacks.replace('_', '-')}), in US dollars per million tokens; 0 if it is free.",
                )
        if self._price is None:
            raise ConfigurationError(
                f"budget_usd={given.budget_usd:g}, but the price of {self.spec.model} is not known.",
                "Give input_price and output_price, in US dollars per million tokens (--input-price, --output-price).",
            )
        if self._price.output and not self.embeds and most_output_tokens(self.spec, _MOST_OUTPUT_TOKENS) is None:
            raise ConfigurationError(
                f"budget_usd={given.budget_usd:g}, but request_options allow answers without a bound.",
                "Give max_tokens, or what the server calls it, as an int of at least 1, or leave it out.",
            )
        if self._embedder is not None and self._embedder_price is None:
            name = self._embedder.model
            raise ConfigurationError(
                f"budget_usd={given.budget_usd:g}, but the price of {name}, which makes vectors, is not known.",
                f"Call SKLLMConfig.set_price({name!r}, input_per_million=…).",
            )

    @cached_property
    def _price(self) -> Price | None:
        return price_of_spec(self.spec)

    @property
    def _embedder(self) -> BackendSpec | None:
        return embedding_of(self.task)

    @cached_property
    def _embedder_price(self) -> Price | None:
        return None if self._embedder is None else price_of_spec(self._embedder)

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, screen: Screen | None = None) -> JobResult:
        """Do what is left of the job, under its lock.

        Raises
        ------
        OutputInUseError
            If another run writes to the same output.
        """
        manifest = self.plan()  # before the lock, so that a plan that fails leaves nothing behind
        planned_on = load_manifest(self._system)
        with OutputLock(self._system) as lock:
            if load_manifest(self._system) != planned_on:
                manifest = self.plan()
            manifest = self._limited(manifest, OutputState(self.output, list(self.units(manifest))))
            lock.check()
            manifest.save(self._system)
            state = OutputState(self.output, list(self.units(manifest)))
            state.tidy()
            if not state.units:  # readers of the output get its columns all the same
                self.output.write(_EMPTY, table_bytes(manifest.arrow_schema().empty_table()))
            calls = self._calls(manifest, state)
            began = datetime.now(UTC)
            with screen or open_screen(False) as shown:
                outcome = self._run(manifest, state, calls, shown, lock) if calls else Outcome()
            lock.check()
            state.save(force=True)
            state.read_journals()
            self._warn_low_mass(state)
            return self._result(manifest, state, outcome, (datetime.now(UTC) - began).total_seconds())

    def _warn_low_mass(self, state: OutputState) -> None:
        found = [one for one in state.summaries.values() if one.label_mass is not None]
        if found:
            median = statistics.median(one.label_mass or 0.0 for one in found)
            told = low_mass(self.spec.model, median, sum(one.rows for one in found))
            if told:
                warn(told)

    def result(self) -> JobResult:
        """Return how the job stands, without running anything."""
        manifest = self.plan()
        return self._result(manifest, OutputState(self.output, list(self.units(manifest))), Outcome(), 0.0)

    def _wanted(self, manifest: Manifest) -> int:
        limit = self._options.limit
        return manifest.rows_total if limit is None else min(limit, manifest.rows_total)

    def _limited(self, manifest: Manifest, state: OutputState) -> Manifest:
        """Return the manifest with a cut where this run is to stop, unless what is there was cut otherwise."""
        limit = self._options.limit
        if limit is None or limit >= manifest.rows_total:
            return manifest
        before = 0
        for unit in state.units:
            end = before + unit.n_rows
            if before < limit < end:
                if unit.part_name in state.parts:
                    return manifest
                return replace(manifest, cuts=(*manifest.cuts, (unit.number, unit.start + limit - before)))
            before = end
        return manifest

    def _calls(self, manifest: Manifest, state: OutputState) -> deque[Call]:
        calls: deque[Call] = deque()
        before, wanted = 0, self._wanted(manifest)
        for unit in state.units:
            if before >= wanted:
                break
            before += unit.n_rows
            resumes = unit.key in state.journals
            if unit.part_name not in state.parts:
                lost = state.lost.get(unit.key)
                calls.append(Call(unit, resumes, before=lost.progress.bill() if lost else None))
            elif self._options.retry_errors and set(state.summaries[unit.key].errors) - {"missing_text"}:
                calls.append(Call(unit, resumes, retries=True))
        return calls

    def _run(
        self, manifest: Manifest, state: OutputState, calls: deque[Call], screen: Screen, lock: OutputLock
    ) -> Outcome:
        terms, embedder_terms = self.terms()
        task: Any = with_template(self.task, manifest.template)
        if self._embedder is not None:
            task = replace(task, embedding=self._cautious(self._embedder))
        work = UnitWork(
            estimator=self._estimator,
            task=task,
            spec=self.spec,
            manifest=replace(manifest, files=(), params=""),
            input_uri=self._source_uri,
            output_uri=self._output_uri,
            options=self._storage,
            mode="default" if self._estimator.on_error == "default" else "coerce",
            terms=terms,
            embedder_terms=embedder_terms,
            types=self._types,
            token=lock.token,
        )
        given = self._options
        budget = Budget(self._output_uri, self._storage, given.budget_usd, self._price, given.keep_going)
        wanted = self._wanted(manifest)
        view = State(manifest.model, wanted, min(wanted, state.rows_done))
        state.expect(call.key for call in calls if call.retries)

        def divide(call: Call) -> list[Call]:
            """Let a row group that cannot be read cost itself alone: its neighbours become units of their own."""
            nonlocal manifest
            unit = call.unit
            if len(unit.groups) < 2 or call.retries:
                return []
            starts = accumulate((rows for _, _, rows in unit.groups[:-1]), initial=unit.start)
            manifest = replace(manifest, cuts=(*manifest.cuts, *((unit.number, start) for start in starts)))
            lock.check()
            manifest.save(self._system)  # before there are parts of such units
            end = unit.start + unit.n_rows
            found = (one for one in self.units(manifest) if one.number == unit.number and unit.start <= one.start < end)
            return [Call(one, call.resumes) for one in found]

        watch = screen, view, lock.check

        def ask_prior(calls: deque[Call], work: UnitWork) -> Outcome:
            outcome = work_off(calls, work, budget, self.secrets, 1, state, divide, watch)
            view.units_done = 0
            return outcome

        ready = ready_work(work, self.output, state, lock.check, ask_prior)
        if isinstance(ready, Outcome):
            return ready
        return work_off(calls, ready, budget, self.secrets, self._options.workers, state, divide, watch)

    def _terms(self, spec: BackendSpec, price: Price | None) -> Terms:
        bound = self._options.max_output_tokens
        if bound is None and self._options.budget_usd is not None and price and price.output:
            bound = _MOST_OUTPUT_TOKENS
        placement = spec.placement
        capped = self._options.budget_usd is not None
        rows = placement.batch_size if placement.stateful else 256 if capped else 1024
        free = price is not None and not price.input and not price.output
        return Terms(None if free else price, free, bound, spec, self._options.outage_s, rows, capped=capped)

    def _result(self, manifest: Manifest, state: OutputState, outcome: Outcome, seconds: float) -> JobResult:
        done = add_up(state.summaries.values())
        total = replace(state.bill, rows=done.rows, reused=done.reused, duplicates=done.duplicates, errors=done.errors)
        pending = state.pending
        return JobResult(
            output=self._output_uri,
            rows_total=manifest.rows_total,
            rows_done=total.rows,
            errors=dict(total.errors),
            unreadable={**{f.path: f.error for f in manifest.files if f.error is not None}, **outcome.trouble},
            stopped=outcome.stopped,
            total=total,
            this_run=outcome.progress,
            unknown_usd=total.unknown_usd,
            seconds=seconds,
            wanted=self._wanted(manifest),
            pending=pending,
            out_of_budget=outcome.kind == "budget",
            reasons=state.reasons,
            in_vain=outcome.kind == "in vain",
            signal=outcome.signal,
        )


class _SomeExamples:
    """Stands for a memory of examples where nobody pays for vectors: any examples of each class."""

    def __init__(self, memory: Any) -> None:
        self.examples = memory.examples
        self._members = memory.members
        self._random = random.Random(0)

    def nearest(self, vectors: Any, n_examples: int) -> list[list[int]]:
        """Return examples for each vector."""
        return [[row for members in self._members for row in self._any(list(members), n_examples)] for _ in vectors]

    def _any(self, members: list[int], n: int) -> list[int]:
        return self._random.sample(members, min(n, len(members)))


def _some(paths: Sequence[str]) -> str:
    return f"{paths[0]} and {len(paths) - 1:,} more" if len(paths) > 1 else paths[0]


def _checked(scanned: Scanned, needed: Sequence[str]) -> Scanned:
    """Mark the files that lack a column that texts are made of."""
    files = []
    for file in scanned.files:
        missing = [name for name in needed if file.error is None and file.columns and name not in file.columns]
        if missing:
            like = [name for name in file.columns if name.lower() == missing[0].lower()]
            told = f"it has no column {missing[0]!r}" + (f", but {like[0]!r}" if like else "")
            file = replace(file, error=told)  # noqa: PLW2901  marked
        files.append(file)
    return Scanned(files, scanned.schema)


def _labels(estimator: Any) -> tuple[str, ...] | None:
    found = getattr(estimator, "classes_", None)
    return None if found is None else tuple(str(label) for label in found)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
