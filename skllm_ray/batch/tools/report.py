"""The page about a job: what is in its output, as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow.parquet as pq

from skllm_ray.batch.delivery.of_job import delivered
from skllm_ray.batch.input.files import Units
from skllm_ray.batch.output.manifest import Manifest, load_manifest
from skllm_ray.batch.output.output_state import OutputState
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.output.timeline import read_timeline
from skllm_ray.batch.promise import promise_facts
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.batch.tools.pages import require_pages
from skllm_ray.errors import ConfigurationError, InputError, warn

if TYPE_CHECKING:
    from skllm_ray.batch.input.slices import Unit
    from skllm_ray.batch.storage import Folder
    from skllm_ray.batch.tools.report_page import Counted
    from skllm_ray.batch.tools.review import Corrections

ROWS: Final = 20_000
"""How many rows a page holds, unless it is told otherwise."""


def write_report(
    output: str,
    to: str = "report.html",
    storage_options: Mapping[str, Any] | None = None,
    *,
    label_column: str | None = None,
    rows: int = ROWS,
    renamed_labels: Mapping[str, str] | None = None,
) -> str:
    """Write an HTML page about the job whose parts are in `output`, finished or not.

    The page is one file that loads nothing. It has the job's figures, and its rows, which can be searched, filtered and
    sorted in the browser. With true labels it also shows how good the answers are, and after a review what was found.

    Parameters
    ----------
    output : str
        The job's output folder.
    to : str, default="report.html"
        Where the page goes: a local path.
    storage_options : mapping or None, default=None
        What opens the output's filesystem.
    label_column : str or None, default=None
        A column of the input, kept in the parts, with the true labels. A row may lack one.
    rows : int, default=20000
        How many rows the page holds, at most; of a larger output a random sample. A row takes about 200 bytes.
    renamed_labels : mapping of str to str or None, default=None
        Labels that the column calls otherwise: what it holds, and the label.

    Returns
    -------
    str
        `to`.

    Raises
    ------
    ConfigurationError
        If `rows` is below 0, or `renamed_labels` is no mapping of texts to texts, or stands without a `label_column`.
    InputError
        If there is no job in `output`, the job gives no labels to compare, or `label_column` is not among the parts'
        columns or empty.
    MissingExtraError
        If the extra ``report`` is not installed.

    Examples
    --------
    >>> import tempfile, pandas as pd, skllm_ray
    >>> from skllm_ray import batch
    >>> from skllm_ray.batch.report import write_report
    >>> from skllm_ray.classification import ZeroShotGPTClassifier
    >>> skllm_ray.init(local_mode=True)
    >>> folder = tempfile.mkdtemp()
    >>> table = pd.DataFrame({"text": ["I love it!", "It broke."], "truth": ["positive", "negative"]})
    >>> table.to_parquet(f"{folder}/in.parquet")
    >>> clf = ZeroShotGPTClassifier(model="gguf::demo").fit(None, ["positive", "negative"])
    >>> done = batch.run(clf, f"{folder}/in.parquet", f"{folder}/out")
    >>> page = write_report(f"{folder}/out", f"{folder}/report.html", label_column="truth")
    >>> skllm_ray.shutdown()
    """
    require_pages()
    from skllm_ray.batch.tools.report_page import render_page

    _check_arguments(rows, renamed_labels, label_column)
    options = StorageOptions.of(storage_options)
    folder = open_folder(output, options, options.secrets())
    manifest = load_manifest(folder.below(SYSTEM))
    if manifest is None:
        raise InputError(f"output={output!r} holds no job of skllm-ray.", "Name the folder that `run` wrote to.")
    if label_column is not None:
        _check_label_column(manifest, label_column)
    units = Units(manifest.files, manifest.unit_rows, manifest.cuts)
    state = OutputState(folder, units)
    reviewed = _reviewed(folder, output, storage_options)
    counted = _counted(manifest, state, units, (label_column, renamed_labels, rows, reviewed))
    remaining = _remaining(manifest, [unit for unit in units if unit.key not in state.summaries])
    _warn_of_foreign(counted)
    told = {**asdict(manifest), "rows_total": manifest.rows_total, "output": output, "files": len(manifest.files)}
    told["params"] = json.loads(manifest.params)
    told["delivered"] = delivered(folder, state.bill.cost_usd)
    promise = promise_facts(manifest, folder, state.summaries.values())
    summaries = [one.dump() for one in state.summaries.values()]
    page = render_page(told, summaries, counted, remaining=remaining, promise=promise, timeline=read_timeline(folder))
    Path(to).write_text(page, "utf-8")
    return to


def _remaining(manifest: Manifest, left: Sequence[Unit]) -> dict[str, Any]:
    """Return how much is not done yet, and which files cannot be read."""
    return {
        "rows": sum(unit.n_rows for unit in left),
        "units": len(left),
        "unreadable": {file.path: file.error for file in manifest.files if file.error is not None},
    }


def _check_arguments(rows: object, renamed: object, label_column: str | None) -> None:
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise ConfigurationError(f"rows must be an int of at least 0; got {rows!r}.", "0 leaves the rows out.")
    if renamed is None:
        return
    if not isinstance(renamed, Mapping) or not all(isinstance(one, str) for pair in renamed.items() for one in pair):
        raise ConfigurationError(
            f"renamed_labels must map what the column holds to labels, both texts; got {str(renamed)[:80]!r}.",
            "Such as {'misc b2': 'refund'}.",
        )
    if label_column is None:
        raise ConfigurationError("renamed_labels is given without label_column.", "Name the column: label_column.")


def _warn_of_foreign(counted: Counted) -> None:
    """Warn of true labels that are no candidates: most often labels were renamed, and right answers count as wrong."""
    if counted.truth is not None and counted.truth.foreign:
        warn(
            f"{counted.truth.foreign:,} of {counted.truth.rows:,} rows have a true label that is no candidate, and "
            f"count as wrong: {counted.truth.foreign_labels}. If labels were renamed, tell so: renamed_labels "
            "(--renamed-labels)."
        )


def _check_label_column(manifest: Manifest, column: str) -> None:
    if manifest.labels is None:
        raise InputError(
            f"label_column={column!r}, but {manifest.task} gives no labels to compare.", "Leave label_column out."
        )
    if column not in manifest.keep_columns:
        held = ", ".join(manifest.keep_columns) or "none"
        raise InputError(
            f"label_column: the parts have no column {column!r} of the input; they have: {held}.",
            "If --keep-columns left it out, run into another output and keep it.",
        )


def _reviewed(folder: Folder, output: str, storage_options: Mapping[str, Any] | None) -> Corrections | None:
    """Return what people said of rows; None before they said anything."""
    from skllm_ray.batch.tools.review import correct
    from skllm_ray.batch.tools.reviewed_output import KEPT

    try:
        folder.read(KEPT)
    except FileNotFoundError:
        return None
    return correct(output, storage_options=storage_options)


def _counted(
    manifest: Manifest,
    state: OutputState,
    units: Units,
    shown: tuple[str | None, Mapping[str, str] | None, int, Corrections | None],
) -> Counted:
    """Return what is counted of the parts that are there, and shown of them."""
    from skllm_ray.batch.tools.explorer import RowSample
    from skllm_ray.batch.tools.part_rows import PartColumns, PartRows
    from skllm_ray.batch.tools.report_page import Counted
    from skllm_ray.batch.tools.reviewed_output import text_of
    from skllm_ray.batch.tools.tally import Tally
    from skllm_ray.batch.tools.truth_tally import TruthTally

    label_column, renamed, most, reviewed = shown
    columns = PartColumns.of(asdict(manifest))
    corrected = {} if reviewed is None else dict(zip(reviewed.rows, map(text_of, reviewed.labels), strict=True))
    tally, sample = Tally(columns), RowSample(columns, most, label_column, corrected)
    truth = None if label_column is None else TruthTally(label_column, columns, renamed)
    for unit in units:
        if unit.key not in state.summaries:
            continue
        with state.output.filesystem.open_input_file(state.output.at(unit.part_name)) as source:
            part = PartRows(pq.read_table(source), columns)
        tally.add(part)
        judged = None if truth is None else truth.add(part)
        if most:
            sample.add(unit, part, manifest.keep_columns, judged)
    if truth is not None and not truth.rows and tally.rows:
        raise InputError(f"label_column={label_column!r} is empty in all {tally.rows:,} rows.", "Name another column.")
    return Counted(tally, sample, truth if truth is not None and truth.rows else None, reviewed)
