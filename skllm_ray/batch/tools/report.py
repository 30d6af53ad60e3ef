"""The page about a job: what is in its output, as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from skllm_ray.batch.input.files import cut
from skllm_ray.batch.output.manifest import load_manifest
from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.output.parts import OutputState
from skllm_ray.batch.promise import promise_facts
from skllm_ray.batch.storage import StorageOptions, open_folder
from skllm_ray.errors import InputError


def write_report(output: str, to: str = "report.html", storage_options: Mapping[str, Any] | None = None) -> str:
    """Write an HTML page about the job whose parts are in `output`, finished or not.

    Parameters
    ----------
    output : str
        The job's output folder.
    to : str, default="report.html"
        Where the page goes: a local path.
    storage_options : mapping or None, default=None
        What opens the output's filesystem.

    Returns
    -------
    str
        `to`.

    Raises
    ------
    InputError
        If there is no job in `output`.
    MissingExtraError
        If the extra ``report`` is not installed.
    """
    from skllm_ray.batch.tools.report_page import Tally, render_page

    options = StorageOptions.of(storage_options)
    folder = open_folder(output, options, options.secrets())
    manifest = load_manifest(folder.below(SYSTEM))
    if manifest is None:
        raise InputError(f"output={output!r} holds no job of skllm-ray.", "Name the folder that `run` wrote to.")
    units = list(cut(manifest.files, manifest.unit_rows, manifest.cuts))
    state = OutputState(folder, units)
    tally = Tally(asdict(manifest))
    for unit in units:
        if unit.part_name in state.parts:
            with folder.filesystem.open_input_file(folder.at(unit.part_name)) as source:
                tally.add(pq.read_table(source))
    left = [unit for unit in units if unit.part_name not in state.parts]
    remaining = {
        "rows": sum(unit.n_rows for unit in left),
        "units": len(left),
        "unreadable": {file.path: file.error for file in manifest.files if file.error is not None},
    }
    told = {**asdict(manifest), "rows_total": manifest.rows_total, "output": output, "files": len(manifest.files)}
    told["params"] = json.loads(manifest.params)
    promise = promise_facts(manifest, folder, state.summaries.values())
    summaries = [asdict(one) for one in state.summaries.values()]
    page = render_page(told, summaries, tally, remaining=remaining, promise=promise)
    Path(to).write_text(page, "utf-8")
    return to
