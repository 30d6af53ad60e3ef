"""What a job consists of: which files, columns and units it has, and which of them are still to be done."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, SupportsIndex

import pyarrow as pa

from skllm_ray.batch.input.files import Scanned, Unit, absent_column, rows_per_unit, scan
from skllm_ray.batch.input.text_template import check_formats, template_fields
from skllm_ray.batch.job.options import JobRequest
from skllm_ray.batch.job.worker import Call
from skllm_ray.batch.output.manifest import (
    Manifest,
    load_manifest,
    params_text,
    probe_prompt,
    question_hash,
    read_schema,
    schema_text,
    template_of,
    veiled_identity,
    with_template,
)
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.storage import (
    FileInfo,
    Folder,
    base_of,
    distinct,
    first_look,
    list_inputs,
    open_folder,
)
from skllm_ray.errors import InputError, OutputMismatchError
from skllm_ray.execution.plan import Plan


class Planner:
    """Plans a job: a new one from its input, or the rest of the one that an output holds.

    Parameters
    ----------
    request : JobRequest
        What the job was asked for.
    """

    def __init__(self, request: JobRequest) -> None:
        self._request = request
        self._options = request.options
        self.output = self._open(request.output)
        self.source_uri = base_of(request.inputs[0])

    def manifest(self, plan: Plan) -> Manifest:
        """Return the job's manifest: the output's, if it has one that fits; else a new one, not written yet.

        Raises
        ------
        InputError
            If the input, or a column of it, is not there.
        OutputMismatchError
            If the output belongs to another job.
        """
        with first_look(f"output={self._request.output!r}"):
            old = load_manifest(self.output.below(SYSTEM))
        files = self._list()
        if old is None:
            if any(name.startswith("part-") for name in self.output.names()):
                raise OutputMismatchError(
                    f"output={self._request.output!r} holds parts but no manifest.", "Give an empty or a new folder."
                )
            return self._manifest(plan, self._scan(files))
        _refuse_changed(old, files)
        old.check_same(self._manifest(plan, Scanned(list(old.files), read_schema(old.input_schema)), old))
        return self._read_again(old, files)

    @cached_property
    def source(self) -> Folder:
        """The input's folder, or its file."""
        return self._open(self.source_uri)

    def _open(self, uri: str) -> Folder:
        storage = self._request.storage
        return open_folder(uri, storage, storage.secrets())

    @cached_property
    def types(self) -> dict[str, pa.DataType | None]:
        """The estimator's output columns."""
        return self._request.estimator._reading().output_types

    # --- files ----------------------------------------------------------------------------------------------------

    def _list(self) -> list[FileInfo]:
        inputs, storage = self._request.inputs, self._request.storage
        found = [file for uri in inputs for file in list_inputs(uri, storage, storage.secrets())]
        return distinct(found, self.source)

    def _scan(self, files: Sequence[FileInfo]) -> Scanned:
        scheme, mark, _ = self.source_uri.partition("://")
        return scan(self.source, files, self._options.filename_column, scheme + mark if mark else "")

    def _read_again(self, old: Manifest, files: Sequence[FileInfo]) -> Manifest:
        """Return the manifest with the files that could not be read before and can be now."""
        broken = [file.path for file in old.files if file.error is not None]
        if not broken:
            return old
        again = self._scan([file for file in files if file.path in set(broken)])
        mended = {file.path: file for file in _checked(again, self._needed()).files}
        return replace(old, files=tuple(mended.get(file.path, file) for file in old.files))

    # --- the manifest ---------------------------------------------------------------------------------------------

    def _manifest(self, plan: Plan, scanned: Scanned, old: Manifest | None = None) -> Manifest:
        given, estimator = self._options, self._request.estimator
        self._check_columns(scanned)
        names = scanned.schema.names
        asked = (*(given.keep_columns or ()), *(name for name in names if name == given.filename_column))
        kept = tuple(names if given.keep_columns is None else dict.fromkeys(asked))
        schema = pa.schema([*(scanned.schema.field(name) for name in kept), *self._result_fields(kept, old).items()])
        files = tuple(_checked(scanned, self._needed()).files)
        kind = type(estimator).__name__
        plan = with_template(plan, old.template if old and old.task == kind else None)
        spec = plan[-1].spec
        return Manifest(
            input=self._request.inputs,
            text_column=None if given.text_template else given.text_column,
            text_template=given.text_template,
            keep_columns=kept,
            output_prefix=given.output_prefix,
            keep_replies=given.keep_replies,
            task=kind,
            model=spec.model,
            identity=veiled_identity(json.dumps(spec.identity)),
            params=params_text(estimator),
            question=question_hash(plan),
            prompt=probe_prompt(plan),
            labels=labels_of(estimator),
            input_schema=schema_text(scanned.schema),
            schema=schema_text(schema),
            prediction_columns=tuple(estimator._reading().types),
            unit_rows=given.unit_rows or (old.unit_rows if old else rows_per_unit(files)),
            files=files,
            max_output_tokens=given.max_output_tokens,
            filename_column=given.filename_column,
            template=template_of(plan),
        )

    def _result_fields(self, kept: Sequence[str], old: Manifest | None) -> dict[str, pa.DataType]:
        """Return the columns that the job adds, none of which may have the name of an input's column that is kept."""
        prefix = self._options.output_prefix
        ours = {prefix + name: kind or pa.string() for name, kind in self.types.items()}
        if self._options.keep_replies != "none":
            ours[prefix + "raw_reply"] = pa.string()
        if old is not None:  # a later version's new columns are not in the output, so that they collide with nothing
            ours = {name: ours[name] for name in old.result_columns if name in ours}
        both = sorted(set(kept) & set(ours))
        if both:
            raise InputError(
                f"The input has a column {both[0]!r}, which is also the name of a result.",
                "Pass output_prefix='…', or leave the column out with keep_columns=[…].",
            )
        return ours

    # --- the input's columns --------------------------------------------------------------------------------------

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
                raise absent_column(parameter, missing[0], names)
        for name in dict.fromkeys([*self._needed(), *(self._options.keep_columns or names)]):
            if name in scanned.clashes:
                raise InputError(
                    f"The files' columns {name!r} do not go together: {scanned.clashes[name]}.",
                    "Convert them to one type, or leave the column out: keep_columns=[…] names those that are kept.",
                )
        if self._options.text_template:
            check_formats(self._options.text_template, scanned.schema)
        else:
            self._check_text_column(scanned.schema)

    def _check_text_column(self, schema: pa.Schema) -> None:
        name = self._options.text_column
        kind = schema.field(name or "").type
        if not _is_text(kind):
            raise InputError(
                f"text_column={name!r} is of type {kind}, not of texts.",
                "Convert it to strings."
                if "binary" in str(kind)
                else f"Use text_template='{{{name}}}' to turn its values into texts.",
            )


# --- what is still to be done -------------------------------------------------------------------------------------


def wanted_rows(manifest: Manifest, limit: int | None) -> int:
    """Return how many rows of the input, from the first on, a run is to do."""
    return manifest.rows_total if limit is None else min(limit, manifest.rows_total)


def limited(manifest: Manifest, state: OutputState, limit: int | None) -> Manifest:
    """Return the manifest with a cut where this run is to stop, unless what is there was cut otherwise."""
    if limit is None or limit >= manifest.rows_total:
        return manifest
    before = 0
    for unit in state.units:
        end = before + unit.n_rows
        if before < limit < end:
            if unit.key in state.summaries:
                return manifest
            return replace(manifest, cuts=(*manifest.cuts, (unit.number, unit.start + limit - before)))
        before = end
    return manifest


class Calls(deque[Call]):
    """Calls that wait. A unit that nobody has begun is its number until its turn comes: there may be a million.

    Parameters
    ----------
    waiting : iterable of Call or int
        In their order.
    units : sequence of Unit
        What the numbers stand for.
    """

    def __init__(self, waiting: Iterable[Any], units: Sequence[Unit]) -> None:
        super().__init__(waiting)
        self._units = units

    def popleft(self) -> Call:
        """Return the first, which no longer waits."""
        return self._call(super().popleft())

    def __getitem__(self, i: SupportsIndex) -> Call:  # type: ignore[override]  # a deque has no slices
        return self._call(super().__getitem__(i))

    def __iter__(self) -> Iterator[Call]:
        return map(self._call, super().__iter__())

    def _call(self, waiting: Any) -> Call:
        return Call(self._units[waiting]) if isinstance(waiting, int) else waiting


def remaining_calls(wanted: int, state: OutputState, *, retry_before: float = 0.0) -> Calls:
    """Return the units that are still to be done, up to the row `wanted`.

    Also those with failed rows to ask again, where they were done before `retry_before`, in seconds since 1970.
    """
    found: list[Call | int] = []
    before = 0
    for number, unit in enumerate(state.units):
        if before >= wanted:
            break
        before += unit.n_rows
        key = unit.key
        resumes = key in state.journals
        if key not in state.summaries:
            lost = state.lost.get(key)
            found.append(
                Call(unit, resumes, before=lost.progress.bill() if lost else None) if resumes or lost else number
            )
        elif state.summaries[key].started < retry_before and set(state.summaries[key].errors) - {"missing_text"}:
            found.append(Call(unit, resumes, retries=True))
    return Calls(found, state.units)


def _refuse_changed(old: Manifest, files: Sequence[FileInfo]) -> None:
    before = {file.path: file for file in old.files}
    now = {file.path: file for file in files}
    new = sorted(set(now) - set(before))
    gone = sorted(set(before) - set(now))
    changed = [path for path in before if path in now and before[path].error is None and before[path].info != now[path]]
    for what, paths in (("has new files", new), ("lacks files", gone), ("has changed files", changed)):
        if paths:
            raise OutputMismatchError(
                f"The input {what} since the job began: {_some(paths)}.",
                "Write to another output, with the new files alone as its input if you like.",
            )


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


def labels_of(estimator: Any) -> tuple[str, ...] | None:
    """Return the labels of a fitted classifier as texts; None for other estimators."""
    found = getattr(estimator, "classes_", None)  # only fitted classifiers have it, as everywhere in scikit-learn
    return None if found is None else tuple(str(label) for label in found)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
