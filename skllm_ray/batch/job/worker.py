"""One unit, on a worker: read its rows, ask, write its part."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Final

import pyarrow as pa

from skllm_ray.batch.input.files import read, short
from skllm_ray.batch.input.text_template import template_fields, texts_of
from skllm_ray.batch.job.budget import SharedLedger
from skllm_ray.batch.job.journalled_backend import JournalledBackend
from skllm_ray.batch.job.journalled_plan import journalled
from skllm_ray.batch.job.options import RowReading
from skllm_ray.batch.job.terms import Terms
from skllm_ray.batch.job.unit_guard import UnitGuard, UnitStopped
from skllm_ray.batch.output.counts import counts_of
from skllm_ray.batch.output.fence import Fence
from skllm_ray.batch.output.journal import Answer, Journal
from skllm_ray.batch.output.manifest import Manifest, read_schema
from skllm_ray.batch.output.part import JOURNAL, PART_META, SYSTEM, OldPart, UnitSummary, summary_of, table_bytes
from skllm_ray.batch.output.progress import SPENT, Progress
from skllm_ray.batch.storage import Folder, StorageOptions, open_folder
from skllm_ray.config import Secret
from skllm_ray.errors import ClusterError, SkllmRayError
from skllm_ray.execution.block import Backends, process
from skllm_ray.execution.plan import Block, Plan, row_step
from skllm_ray.execution.unit_runner import node_name, this_node_is_draining
from skllm_ray.plain_text import whole
from skllm_ray.tasks.base import Row

_FIRST_BLOCK: Final = 128
_KEPT_ERRORS: Final = frozenset({"missing_text"})


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be done with a unit."""

    unit: Any
    """A `Unit`, or what stands for one."""
    resumes: bool = False
    """Whether there may be a journal of it."""
    retries: bool = False
    """Whether its part is there, and its failed rows are to be asked again."""
    before: Progress | None = None
    """What was spent on a part that was lost."""

    @property
    def key(self) -> str:
        """The unit's."""
        return str(self.unit.key)


@dataclass(frozen=True)
class Unfinished:
    """Why a unit has no part."""

    kind: str
    """"fatal", "outage", "budget", "overtaken", "stopped", "moved", "unreadable", "storage" or "crashed"."""
    reason: str


@dataclass(frozen=True)
class Begun:
    """A unit whose rows are read and whose journal is open."""

    call: Call
    table: pa.Table
    old: OldPart | None
    journal: Journal


@dataclass(frozen=True)
class UnitWork:
    """What every unit of a job needs. It travels to each node once."""

    reading: RowReading
    """What becomes of rows."""
    plan: Plan
    manifest: Manifest
    input_uri: str
    output_uri: str
    options: StorageOptions
    mode: str
    """What stands for a row that failed: "default" or "coerce"."""
    terms: tuple[Terms, ...]
    """The rules for each step's model."""
    token: str = ""
    """The run's, in the output's lock."""
    priority: int = 0
    """Among jobs that share a local model."""
    known: Mapping[str, Answer] = field(default_factory=dict)
    """Answers that were paid for already, beside the units, by the keys that journals have."""

    def __call__(
        self,
        call: Call,
        backends: Backends,
        ledger: SharedLedger,
        secrets: Mapping[str, Secret],
    ) -> UnitSummary | Unfinished:
        """Do a unit."""
        output = open_folder(self.output_uri, self.options, secrets)
        fence = Fence(output.below(SYSTEM), self.token)
        with UnitGuard(fence, ledger.stopped, this_node_is_draining) as guard:
            try:
                guard.check()
                return self._do(call, backends, (ledger, guard), (output, secrets))
            except UnitStopped as stop:
                return Unfinished(stop.kind, stop.reason)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _do(
        self,
        call: Call,
        backends: Backends,
        rules: tuple[SharedLedger, UnitGuard],
        place: tuple[Folder, Mapping[str, Secret]],
    ) -> UnitSummary | Unfinished:
        output, secrets = place
        begun = self._begin(call, output, secrets)
        if not isinstance(begun, Begun):
            return begun
        journal = begun.journal
        try:
            done = self._finish(begun, backends, rules, output)
        except UnitStopped as stop:
            return unfinished(journal, stop.kind, stop.reason)
        except OSError as error:
            return unfinished(journal, "storage", short(error))
        except ClusterError:  # what the job shares has died: the unit is done again
            journal.close(keep=True)
            raise
        except SkllmRayError as error:
            return unfinished(journal, "fatal", str(error))
        except BaseException:  # cancelled: what was paid for is kept
            journal.close(keep=True)
            raise
        journal.close(keep=isinstance(done, Unfinished))
        return done

    def _finish(
        self, begun: Begun, backends: Backends, rules: tuple[SharedLedger, UnitGuard], output: Folder
    ) -> UnitSummary | Unfinished:
        """Ask about a unit's rows, and write its part."""
        guard = rules[1]
        summary, part = self._process(begun, backends, rules)
        guard.check()
        output.write(begun.call.unit.part_name, part)
        guard.check()  # a journal that another run uses by now is left to it
        return summary

    def _begin(self, call: Call, output: Folder, secrets: Mapping[str, Secret]) -> Begun | UnitSummary | Unfinished:
        """Read a unit's rows and open its journal; return what became of it where it is done, or cannot begin."""
        folder = output.below(f"{JOURNAL}/{call.key}")
        if call.resumes and not call.retries:
            try:
                done = summary_of(output, call.unit.part_name)
            except OSError as error:
                return Unfinished("storage", short(error))
            if done is not None:  # its worker died after it wrote the part and before it said so
                folder.delete("")
                return done
        try:
            table = self.read(call, secrets)
            old = OldPart.read(output, call.unit) if call.retries else None
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            return Unfinished("unreadable", short(error))
        try:
            journal = Journal(folder, resumes=call.resumes, settled=old.summary.attempts if old else ())
            journal.resumed = {**self.known, **journal.resumed}
        except OSError as error:
            return Unfinished("storage", short(error))
        return Begun(call, table, old, journal)

    def _process(
        self, begun: Begun, backends: Backends, rules: tuple[SharedLedger, UnitGuard]
    ) -> tuple[UnitSummary, pa.Buffer]:
        """Ask, and return the unit's part with its summary."""
        started, clock = time.time(), time.perf_counter()
        ours = self._journalled(begun, backends, rules)
        total = Progress()
        try:
            result, rows = self._answers(begun.call, begun.table, begun.old, ours)
        finally:  # what was paid for is told even where the unit stops
            for backend in ours:
                total.add(backend.finish())
        begun.journal.check()
        total.add(begun.journal.before)
        for before in (begun.call.before, begun.old.summary.progress if begun.old else None):
            if before is not None:
                total.add(before)
        summary = UnitSummary(
            unit=begun.call.key,
            file=begun.call.unit.path,
            reused=total.reused,
            duplicates=total.duplicates,
            **{name: getattr(total, name) for name in SPENT},
            attempts=tuple(begun.journal.attempts),
            started=started,
            seconds=time.perf_counter() - clock,
            node=node_name(),
            model=next((row.reply.model for row in rows if row.reply.model), self.manifest.model),
            **self._counts(result),
            label_mass=_median([row.reply.label_mass for row in rows if row.reply.label_mass is not None]),
        )
        part = self._serialise(result, summary)
        return replace(summary, size=part.size), part

    def _journalled(
        self, begun: Begun, backends: Backends, rules: tuple[SharedLedger, UnitGuard]
    ) -> list[JournalledBackend]:
        ledger, guard = rules
        worker = f"{begun.call.key} {uuid.uuid4().hex[:6]}"
        counts = self._counts_rows
        return journalled(self.plan, backends, begun.journal, ledger, worker, (self.terms, guard), counts_rows=counts)

    _counts_rows: ClassVar[bool] = True
    """Whether an answer is a row's result."""

    def read(self, call: Call, secrets: Mapping[str, Secret]) -> pa.Table:
        """Return a unit's rows."""
        source = open_folder(self.input_uri, self.options, secrets)
        return read(source, call.unit, self._columns, self._input_schema)

    def ask(self, begun: Begun, backends: list[JournalledBackend]) -> None:
        """Ask all that can be asked of a unit now, for the journal alone."""
        self._answers(begun.call, begun.table, begun.old, backends)

    def _answers(
        self,
        call: Call,
        table: pa.Table,
        old: OldPart | None,
        backends: list[JournalledBackend],
    ) -> tuple[pa.Table, list[Row[Any]]]:
        """Return the unit's part, and the rows that were asked for it."""
        asked = Block(texts_of(table, self.manifest.text_column, self.manifest.text_template), call.unit.positions)
        if old is not None:
            return self._mend(old.table, asked, table, backends)
        found, rows = self._ask(asked, backends)
        return self._table(table, found), rows

    def _ask(self, asked: Block, backends: list[JournalledBackend]) -> tuple[dict[str, pa.Array], list[Row[Any]]]:
        """Return the output columns of some texts, and their rows."""
        from_block: list[dict[str, pa.Array]] = []
        rows: list[Row[Any]] = []
        types = self.reading.output_types
        number = row_step(self.plan)
        size = self.terms[number].block_rows
        first = min(_FIRST_BLOCK, size)  # where all rows fail, few are asked before the job stops
        for start in (0, *range(first, len(asked), size)):
            block = asked.take(range(start, min(start + (size if start else first), len(asked))))
            if not len(block):
                break
            values, some = self.reading.columns_of(block.texts, partial(self._ask_present, block, backends), self.mode)
            columns: dict[str, pa.Array] = {
                name: _array(value, kind) for (name, kind), value in zip(types.items(), values, strict=True)
            }
            if self.manifest.keep_replies != "none":
                columns["raw_reply"] = pa.array(_replies(some, self.manifest.keep_replies), pa.string())
            failed = [row.reply.error for row in some if row.reply.error is not None]
            reason = next((f"{error.kind}: {error.message}" for error in failed if error.kind != "missing_text"), "")
            backends[number].finish_block(len(block), Counter([error.kind for error in failed]), reason)
            from_block.append(columns)
            rows += some
        if not from_block:
            return {}, rows
        return {name: pa.chunked_array([block[name] for block in from_block]) for name in from_block[0]}, rows

    def _ask_present(
        self, block: Block, backends: list[JournalledBackend], texts: Sequence[str], places: Sequence[int]
    ) -> list[Row[Any]]:
        """Process those rows of a block that have a text."""
        return process(Block(texts, block.take(places).positions), self.plan, backends)

    def _table(self, table: pa.Table, found: Mapping[str, pa.Array]) -> pa.Table:
        """Return a part: the input's columns, then ours, in the one schema that all parts have.

        An output that an earlier version began lacks the columns that came later: they are left out.
        """
        schema, prefix = self.manifest.arrow_schema(), self.manifest.output_prefix
        held = {prefix + name: column for name, column in found.items()}
        arrays = [table.column(name) for name in self.manifest.keep_columns]
        arrays += [held[name] for name in self.manifest.result_columns]
        return pa.table(
            [a.cast(f.type) if a.type != f.type else a for a, f in zip(arrays, schema, strict=True)], schema
        )

    def _mend(
        self, old: pa.Table, asked: Block, table: pa.Table, backends: list[JournalledBackend]
    ) -> tuple[pa.Table, list[Row[Any]]]:
        """Return an old part, the rows that had failed asked again."""
        kinds = old.column(self.manifest.output_prefix + "error_kind").to_pylist()
        again = [i for i, kind in enumerate(kinds) if kind is not None and kind not in _KEPT_ERRORS]
        found, rows = self._ask(asked.take(again), backends)
        mended = self._table(table.take(again), found)
        place = {row: old.num_rows + i for i, row in enumerate(again)}
        order = [place.get(i, i) for i in range(old.num_rows)]
        schema = self.manifest.arrow_schema()
        return pa.concat_tables([old.cast(schema), mended.cast(schema)]).take(order), rows

    def _counts(self, table: pa.Table) -> dict[str, Any]:
        """Return what a unit's summary tells of its rows."""
        return counts_of(table, self.manifest.output_prefix, labelled=bool(self.manifest.labels))

    def _serialise(self, table: pa.Table, summary: UnitSummary) -> pa.Buffer:
        told = {
            **summary.dump(),
            "version": self.manifest.version,
            "prompt": self.manifest.prompt,
            "question": self.manifest.question,
        }
        table = table.replace_schema_metadata(
            {PART_META: json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")}
        )
        return table_bytes(table)

    @cached_property
    def _fields(self) -> frozenset[str]:
        return template_fields(self.manifest.text_template or "")

    @cached_property
    def _columns(self) -> list[str]:
        """Return the input's columns that are read."""
        names = [self.manifest.text_column] if self.manifest.text_column else sorted(self._fields)
        return list(dict.fromkeys([*self.manifest.keep_columns, *names]))

    @cached_property
    def _input_schema(self) -> pa.Schema:
        return read_schema(self.manifest.input_schema)


def unfinished(journal: Journal, kind: str, reason: str) -> Unfinished:
    """Return why a unit has no part; what was paid for is kept."""
    try:
        journal.close(keep=True)
    except OSError as error:
        return Unfinished("storage", short(error))
    return Unfinished(kind, reason)


def _array(values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
    """Return a column; values that have no type of their own are written as JSON."""
    if kind is None:
        plain = (str, type(None))
        values = [v if isinstance(v, plain) else json.dumps(v, ensure_ascii=False, default=str) for v in values]
    kind = kind or pa.string()
    n = len(values)
    if n and isinstance(values[0], (str, int, float, bool, type(None))) and _all_one(values):
        first = values[0]
        return pa.repeat(pa.scalar(whole(first) if isinstance(first, str) else first, kind), n)
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # a server's answer holds half of a character
        return pa.array([whole(value) if isinstance(value, str) else value for value in values], kind)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _all_one(values: Sequence[Any]) -> bool:
    """Return whether all values are the same: many columns are, and are then made at once."""
    first = values[0]
    return values[-1] is first and isinstance(values, list) and values.count(first) == len(values)


def _replies(rows: Sequence[Row[Any]], keep: str) -> list[str | None]:
    return [row.reply.text if keep == "all" or not row.valid else None for row in rows]
