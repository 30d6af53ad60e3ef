"""A batch job, from its plan to its last part."""

from __future__ import annotations

import json
import random
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Literal, Protocol

import numpy as np
import pyarrow as pa

from skllm_ray.batch.asking import Terms
from skllm_ray.batch.inputs import Scanned, Unit, cut, rows_per_unit, scan
from skllm_ray.batch.journal import load, paid
from skllm_ray.batch.ledger import Ledger, Progress, Snapshot
from skllm_ray.batch.lock import OutputLock
from skllm_ray.batch.manifest import (
    Manifest,
    load_manifest,
    params_text,
    probe_prompt,
    question_hash,
    read_schema,
    schema_text,
    with_template,
)
from skllm_ray.batch.screen import Screen, State, open_screen
from skllm_ray.batch.storage import FileInfo, Folder, StorageOptions, base_of, list_inputs, open_folder
from skllm_ray.batch.work import (
    JOURNAL,
    SYSTEM,
    Call,
    Unfinished,
    UnitSummary,
    UnitWork,
    add_up,
    summary_of,
    template_fields,
)
from skllm_ray.config import Price
from skllm_ray.errors import ClusterError, ConfigurationError, InputError, OutputInUseError, OutputMismatchError
from skllm_ray.execution.runner import run as run_rows
from skllm_ray.execution.units import Died, Failed, Shared, UnitRunner
from skllm_ray.llm.registry import price_of_spec
from skllm_ray.tasks.base import ChatRequest, Row, Task

KeepReplies = Literal["none", "errors", "all"]
_DONE: Final = f"{SYSTEM}/done"
_SAVE_S: Final = 5.0
_COMPACT_FILES: Final = 50
_THREADS: Final = 16
_MOST_OUTPUT_TOKENS: Final = 1024
_STOPS: Final = frozenset({"fatal", "outage", "budget", "storage"})


class BatchEstimator(Protocol):
    """What a batch job needs of an estimator; all of this library have it."""

    model: str
    on_error: str

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters."""
        ...

    def _task(self) -> Task[Any]: ...

    def _checked_spec(self) -> Any: ...

    def _secrets(self) -> dict[str, str]: ...

    def _output_types(self) -> dict[str, pa.DataType | None]: ...

    def _column_types(self) -> dict[str, pa.DataType | None]: ...

    def _columns_of(
        self, values: list[Any], process: Any, mode: Any, *, details: bool = True
    ) -> tuple[list[Sequence[Any]], list[Row[Any]]]: ...


@dataclass(frozen=True)
class JobOptions:
    """How a job reads, writes and spends. `skllm_ray.batch.run` documents each."""

    text_column: str | None = "text"
    text_template: str | None = None
    keep_columns: tuple[str, ...] | None = None
    output_prefix: str = ""
    keep_replies: KeepReplies = "none"
    limit: int | None = None
    retry_errors: bool = False
    unit_rows: int | None = None
    workers: int | None = None
    budget_usd: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    max_output_tokens: int | None = None
    outage_s: float = 600.0


@dataclass(frozen=True)
class JobResult:
    """How a job stands after a run.

    Attributes
    ----------
    output : str
        Where the parts are.
    rows_total : int
        Rows in the input, as far as its files can be read.
    rows_done : int
        Rows in the parts, those of earlier runs among them.
    errors : dict of str to int
        Failed rows in the parts, by kind.
    unreadable : dict of str to str
        Files or units that could not be read or done, with the reason.
    stopped : str
        Why the run ended before all was done; empty if it did not.
    total : Progress
        Counts of the whole job, earlier runs included.
    this_run : Progress
        Counts of this run alone.
    unknown_usd : float
        What was perhaps paid for requests whose answers never arrived; counted against a budget.
    seconds : float
        How long this run took.
    wanted : int
        Rows that this run was to bring to an end: all, or the limit.
    """

    output: str
    rows_total: int
    rows_done: int
    errors: dict[str, int]
    unreadable: dict[str, str]
    stopped: str
    total: Progress
    this_run: Progress
    unknown_usd: float
    seconds: float
    wanted: int

    @property
    def complete(self) -> bool:
        """Whether every row that was wanted is in a part, be it with a result or with an error."""
        return not self.unreadable and self.rows_done >= self.wanted

    @property
    def rows_failed(self) -> int:
        """Rows whose part has an error; missing texts among them."""
        return sum(self.errors.values())


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
        self.spec = self._priced(estimator._checked_spec())
        self.task = estimator._task()
        self.output = open_folder(output, storage, storage.secrets())
        self._source_uri = base_of(self._inputs[0])
        self._system = self.output.below(SYSTEM)
        if self._options.budget_usd is not None and self._price is None:
            raise ConfigurationError(
                f"budget_usd={options.budget_usd:g}, but the price of {self.spec.model} is not known.",
                "Give input_price and output_price, in US dollars per million tokens (--input-price, --output-price).",
            )

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
            return self._manifest(scan(self.source, files))
        self._refuse_changed(old, files)
        old.check_same(self._manifest(Scanned(list(old.files), read_schema(old.input_schema)), old))
        return self._read_again(old, files)

    def units(self, manifest: Manifest) -> Iterator[Unit]:
        """Yield the job's units."""
        return cut(manifest.files, manifest.unit_rows, manifest.cuts)

    def units_left(self, manifest: Manifest) -> list[Unit]:
        """Return the units without a part; all of them where none is left."""
        state = OutputState(self.output, self._system, list(self.units(manifest)))
        return [unit for unit in state.units if unit.part_name not in state.parts] or state.units

    def requests_for(self, texts: Sequence[str]) -> list[ChatRequest]:
        """Return what would be asked about some texts, with any examples where the nearest ones cost to find."""
        task: Any = self.task
        if getattr(task, "embedding", None) is None:
            return list(task.render(texts))
        task = replace(task, memory=_SomeExamples(task.memory))
        return list(task.render(texts, np.zeros((len(texts), 1), np.float32)))

    def ask(self, texts: Sequence[str]) -> list[Row[Any]]:
        """Ask about some texts, outside of any output."""
        return run_rows(texts, self.task, self.spec, self._estimator._secrets(), show_progress=False)

    @cached_property
    def source(self) -> Folder:
        """The input's folder, or its file."""
        return open_folder(self._source_uri, self._storage, self._storage.secrets())

    def _list(self) -> list[FileInfo]:
        found = {
            file.path: file for uri in self._inputs for file in list_inputs(uri, self._storage, self._storage.secrets())
        }
        return [found[path] for path in sorted(found)]

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
        again = scan(self.source, [file for file in files if file.path in set(broken)])
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
        both = sorted(set(kept) & set(ours))
        if both:
            raise InputError(
                f"The input has a column {both[0]!r}, which is also the name of a result.",
                "Pass output_prefix='…', or leave the column out with keep_columns=[…].",
            )
        schema = pa.schema([*(scanned.schema.field(name) for name in kept), *ours.items()])
        files = tuple(_checked(scanned, self._needed()).files)
        task = with_template(self.task, old.template if old else None)
        return Manifest(
            input=self._inputs,
            text_column=None if given.text_template else given.text_column,
            text_template=given.text_template,
            keep_columns=kept,
            output_prefix=given.output_prefix,
            keep_replies=given.keep_replies,
            task=type(estimator).__name__,
            model=self.spec.model,
            identity=json.dumps(getattr(self.spec, "identity", self.spec.key)),
            params=params_text(estimator),
            question=question_hash(task),
            prompt=probe_prompt(task),
            labels=_labels(estimator),
            input_schema=schema_text(scanned.schema),
            schema=schema_text(schema),
            prediction_columns=tuple(estimator._column_types()),
            unit_rows=given.unit_rows or (old.unit_rows if old else rows_per_unit(files)),
            files=files,
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
        if not self._options.text_template:
            kind = scanned.schema.field(self._options.text_column or "").type
            if not _is_text(kind):
                raise InputError(
                    f"text_column={self._options.text_column!r} is of type {kind}, not of texts.",
                    f"Use text_template='{{{self._options.text_column}}}' to turn its values into texts.",
                )

    @cached_property
    def _types(self) -> dict[str, pa.DataType | None]:
        return self._estimator._output_types()

    def _priced(self, spec: Any) -> Any:
        given = self._options
        if given.input_price is None and given.output_price is None:
            return spec
        price = Price(given.input_price or 0.0, given.output_price or 0.0, as_of=f"{datetime.now(UTC):%Y-%m-%d}")
        return replace(spec, price=price) if hasattr(spec, "price") else spec

    @cached_property
    def _price(self) -> Price | None:
        return price_of_spec(self.spec)

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, screen: Screen | None = None) -> JobResult:
        """Do what is left of the job, under its lock.

        Raises
        ------
        OutputInUseError
            If another run writes to the same output.
        """
        with OutputLock(self._system) as lock:
            manifest = self.plan()
            state = OutputState(self.output, self._system, list(self.units(manifest)))
            manifest = self._limited(manifest, state)
            manifest.save(self._system)
            state = OutputState(self.output, self._system, list(self.units(manifest)))
            calls = self._calls(manifest, state)
            wanted = self._wanted(manifest)
            view = State(manifest.model, wanted, min(wanted, state.rows_done))
            began = datetime.now(UTC)
            stopped, trouble, this_run = "", dict[str, str](), Progress()
            with screen or open_screen(False) as shown:
                if calls:
                    stopped, trouble, this_run = self._run(manifest, state, calls, shown, view, lock)
            state.save(force=True)
            return self._result(
                manifest, state, stopped, trouble, this_run, (datetime.now(UTC) - began).total_seconds()
            )

    def result(self) -> JobResult:
        """Return how the job stands, without running anything."""
        manifest = self.plan()
        state = OutputState(self.output, self._system, list(self.units(manifest)))
        return self._result(manifest, state, "", {}, Progress(), 0.0)

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
                new = replace(manifest, cuts=(*manifest.cuts, (unit.number, unit.start + limit - before)))
                state.split_journal(unit, [one for one in self.units(new) if _overlap(one, unit)])
                return new
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
                calls.append(Call(unit, resumes))
            elif self._options.retry_errors and set(state.summaries[unit.key].errors) - {"missing_text"}:
                calls.append(Call(unit, resumes, retries=True))
        return calls

    def _run(
        self,
        manifest: Manifest,
        state: OutputState,
        calls: deque[Call],
        screen: Screen,
        view: State,
        lock: OutputLock,
    ) -> tuple[str, dict[str, str], Progress]:
        task = with_template(self.task, manifest.template)
        secrets = {**self._estimator._secrets(), **self._storage.secrets()}
        budget = self._options.budget_usd
        work = UnitWork(
            estimator=self._estimator,
            task=task,
            spec=self.spec,
            manifest=replace(manifest, files=(), params=""),
            input_uri=self._source_uri,
            output_uri=self._output_uri,
            options=self._storage,
            mode="default" if self._estimator.on_error == "default" else "coerce",
            terms=self._terms(),
            types=self._types,
        )
        runner = UnitRunner(_Function(work), task, self.spec, secrets, self._options.workers)
        shared = runner.share(Ledger, budget, state.spent_usd, restarts=budget is None)
        view.n_tasks = runner.n_tasks
        view.n_units = len(calls)
        stopped, trouble = "", dict[str, str]()

        def again(call: Call) -> Call:
            shared.tell("forget", call.key)
            return replace(call, resumes=True)

        with closing(runner.run(calls, shared, again)) as outcomes:
            for outcome in outcomes:
                if outcome is not None:
                    call, result = outcome
                    view.units_done += 1
                    reason = self._note(call, result, state, trouble)
                    if reason and not stopped:
                        stopped = reason
                        calls.clear()
                        shared.tell("stop", reason)
                if lock.lost:
                    raise OutputInUseError("Another run took over this output.", "Look at which one is to go on.")
                state.save()
                view.see(_snapshot(shared))
                screen.show(view)
        view.see(_snapshot(shared))
        screen.show(view)
        return stopped, trouble, view.progress

    def _terms(self) -> Terms:
        bound = self._options.max_output_tokens
        if bound is None and self._options.budget_usd is not None and self._price and self._price.output:
            bound = _MOST_OUTPUT_TOKENS
        placement = self.spec.placement
        rows = placement.batch_size if placement.stateful else 256 if self._options.budget_usd is not None else 1024
        free = self._price is not None and not self._price.input and not self._price.output
        return Terms(None if free else self._price, free, bound, self._options.outage_s, rows)

    def _note(self, call: Call, result: Any, state: OutputState, trouble: dict[str, str]) -> str:
        """Take a unit's result; return why the job must stop, if it must."""
        if isinstance(result, UnitSummary):
            state.add(result)
            return ""
        name = f"{call.unit.path} rows {call.unit.start:,} to {call.unit.start + call.unit.n_rows - 1:,}"
        if isinstance(result, (Died, Failed)):
            trouble[name] = f"the process that worked on it ended: {result.reason}"
            return ""
        stop: Unfinished = result
        if stop.kind == "budget":
            return f"the budget of {self._options.budget_usd:g} USD does not cover what remains"
        if stop.kind == "unreadable":
            trouble[name] = stop.reason
        return f"{stop.kind}: {stop.reason}" if stop.kind in _STOPS else ""

    def _result(
        self,
        manifest: Manifest,
        state: OutputState,
        stopped: str,
        trouble: dict[str, str],
        this_run: Progress,
        seconds: float,
    ) -> JobResult:
        summaries = list(state.summaries.values())
        total = add_up(summaries)
        return JobResult(
            output=self._output_uri,
            rows_total=manifest.rows_total,
            rows_done=total.rows,
            errors=dict(total.errors),
            unreadable={**{f.path: f.error for f in manifest.files if f.error is not None}, **trouble},
            stopped=stopped,
            total=total,
            this_run=this_run,
            unknown_usd=sum(one.unknown_usd for one in summaries),
            seconds=seconds,
            wanted=self._wanted(manifest),
        )


@dataclass(frozen=True)
class _Function:
    """What a worker does with a unit: the shared object gets the methods of a ledger."""

    work: UnitWork

    def __call__(self, call: Call, backend: Any, embedder: Any, shared: Shared, secrets: Mapping[str, str]) -> Any:
        ledger = LedgerHandle(shared, self.work.manifest.model)
        return self.work(call, backend, embedder, ledger, secrets)


class LedgerHandle:
    """The job's ledger, from anywhere; what is reported is counted for Prometheus too."""

    def __init__(self, shared: Shared, model: str) -> None:
        self._shared = shared
        self._model = model

    def reserve(self, worker: str, costs: list[float]) -> Any:
        """Ask for permission to send."""
        return self._shared.call("reserve", worker, costs)

    def settle(self, worker: str, spent_usd: float) -> None:
        """Tell what it did cost."""
        self._shared.call("settle", worker, spent_usd)

    def report(self, progress: Progress, *, answered: bool) -> None:
        """Tell what was done."""
        from skllm_ray.execution.metrics import count

        failed = sum(progress.errors.values())
        fresh = max(0, progress.rows - progress.reused - progress.duplicates - failed)
        count(
            self._model,
            rows={"ok": fresh, "reused": progress.reused, "duplicate": progress.duplicates, "error": failed},
            tokens={
                "prompt": progress.prompt_tokens,
                "completion": progress.completion_tokens,
                "cached": progress.cached_tokens,
            },
            errors=dict(progress.errors),
            cost_usd=progress.cost_usd,
        )
        self._shared.tell("report", progress, answered=answered)

    def wait_for(self, worker: str, reason: str) -> None:
        """Tell that this worker waits."""
        self._shared.tell("wait_for", worker, reason)

    def answered_within(self, seconds: float) -> bool:
        """Return whether the server answered anyone lately."""
        return bool(self._shared.call("answered_within", seconds))

    def stopped(self) -> str:
        """Return why the job was told to stop."""
        return str(self._shared.call("stopped"))


@dataclass
class OutputState:
    """What is in an output already."""

    output: Folder
    system: Folder
    units: list[Unit]
    parts: set[str] = field(init=False)
    journals: set[str] = field(init=False)
    summaries: dict[str, UnitSummary] = field(init=False)

    def __post_init__(self) -> None:
        keys = {unit.part_name: unit.key for unit in self.units}
        self.parts = {name for name in self.output.names() if name in keys}
        self.journals = {name.partition("/")[0] for name in self.output.below(JOURNAL).names(recursive=True)}
        known = self._load()
        self.summaries = {keys[name]: known[keys[name]] for name in self.parts if keys[name] in known}
        self._run = uuid.uuid4().hex[:8]
        self._number = 0
        self._unsaved: list[UnitSummary] = []
        self._saved_at = datetime.now(UTC)
        unlogged = [name for name in self.parts if keys[name] not in known]
        with ThreadPoolExecutor(_THREADS) as pool:
            for name, summary in zip(unlogged, pool.map(lambda n: summary_of(self.output, n), unlogged), strict=True):
                if summary is None:  # damaged: it is done again
                    self.parts.discard(name)
                else:
                    self.add(summary)

    @property
    def rows_done(self) -> int:
        """Rows in the parts."""
        return sum(one.rows for one in self.summaries.values())

    @property
    def spent_usd(self) -> float:
        """What all runs so far spent, or may have spent."""
        done = sum((one.cost_usd or 0.0) + one.unknown_usd for one in self.summaries.values())
        for key in self.journals:
            if key not in self.summaries:
                answers, lost = load(self.output.below(f"{JOURNAL}/{key}"))
                done += paid(answers.values()) + lost
        return done

    def add(self, summary: UnitSummary) -> None:
        """Take a unit's summary, to be saved soon."""
        self.summaries[summary.unit] = summary
        self._unsaved.append(summary)

    def save(self, *, force: bool = False) -> None:
        """Write new summaries down, every few seconds."""
        now = datetime.now(UTC)
        if not self._unsaved or not (force or (now - self._saved_at).total_seconds() > _SAVE_S):
            return
        self._number += 1
        with suppress(OSError):  # on a full disk: they are in the parts as well, and later runs find them there
            self._write(f"{now:%Y%m%dT%H%M%S%f}-{self._run}-{self._number:05d}.jsonl", self._unsaved)
            self._unsaved = []
        self._saved_at = now

    def split_journal(self, unit: Unit, into: Sequence[Unit]) -> None:
        """Give what was paid for a unit to the units that take its place."""
        if unit.key not in self.journals:
            return
        old = self.output.below(f"{JOURNAL}/{unit.key}")
        for name in old.names():
            for one in into:
                self.output.below(f"{JOURNAL}/{one.key}").write(name, old.read(name))
        old.delete("")

    def _load(self) -> dict[str, UnitSummary]:
        folder = self.output.below(_DONE)
        names = sorted(folder.names())
        with ThreadPoolExecutor(_THREADS) as pool:
            texts = list(pool.map(folder.read, names))
        found = [UnitSummary(**json.loads(line)) for text in texts for line in text.splitlines()]
        if len(names) > _COMPACT_FILES:
            self._write(f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-all.jsonl", found)
            for name in names:
                folder.delete(name)
        return {one.unit: one for one in found}

    def _write(self, name: str, summaries: Sequence[UnitSummary]) -> None:
        text = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in summaries)
        self.output.below(_DONE).write(name, text.encode())


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


def _snapshot(shared: Shared) -> Snapshot | None:
    try:
        found: Snapshot = shared.call("snapshot")
    except ClusterError:
        return None
    return found


def _checked(scanned: Scanned, needed: Sequence[str]) -> Scanned:
    """Mark the files that lack a column that texts are made of."""
    files = []
    for file in scanned.files:
        missing = [name for name in needed if file.error is None and file.columns and name not in file.columns]
        files.append(replace(file, error=f"it has no column {missing[0]!r}") if missing else file)
    return Scanned(files, scanned.schema)


def _labels(estimator: Any) -> tuple[str, ...] | None:
    found = getattr(estimator, "classes_", None)
    return None if found is None else tuple(str(label) for label in found)


def _overlap(one: Unit, other: Unit) -> bool:
    return (
        one.number == other.number and one.start < other.start + other.n_rows and other.start < one.start + one.n_rows
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
