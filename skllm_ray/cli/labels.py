"""``skllm-ray labels``: whether the labels of a job can work, before anything big is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from skllm_ray.cli.batch import LazyOptions, batch_options, job_of, keyless, messages, prepared, ray_of
from skllm_ray.cli.grouped import Commands
from skllm_ray.cli.job_flags import ONLY_RUN
from skllm_ray.plain_text import cell

if TYPE_CHECKING:
    from skllm_ray.cli.job_file import JobFile
    from skllm_ray.models._base.label_check import LabelReport

_TASKS: Final = ("classify", "multilabel", "cot", "few-shot")
_COUNTED: Final = 2_000
"""Texts whose prompts are counted, at most."""
_STYLE: Final = {"error": "bold red", "warning": "yellow", "note": "dim"}


@click.group(cls=Commands)
def labels() -> None:
    """Look at the labels of a job before it runs."""


@labels.command(
    cls=LazyOptions,
    unused=ONLY_RUN,
    examples=[
        "skllm-ray labels check classify --labels refund,delivery,other \\\n    --model gpt-5.4-mini",
        "# asks 200 rows: finds overlaps\nskllm-ray labels check classify --labels … --input tickets.csv --sample 200",
    ],
)
@click.argument("task", required=False, metavar="TASK", type=click.Choice(_TASKS))
@click.option("--config", type=click.Path(dir_okay=False), help="A YAML file with these settings; flags win over it.")
@click.option("--sample", type=click.IntRange(0), default=0, help="Ask so many rows, which costs a little.")
@click.option("--seed", default=0, show_default=True, help="Which rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(config: str | None, sample: int, seed: int, as_json: bool, **given: Any) -> None:
    """Find labels that cannot work, or that cost quality.

    Labels that are alike, undescribed or never true, that overlap, or that do not fit the model's context. Nothing is
    asked, unless --sample says so. --input adds texts, and --label-column the true labels beside them. TASK is
    classify, multilabel, cot or few-shot, and the other options are those of the command run.

    Exit code 1: something cannot work.
    """
    with messages(), nullcontext() if sample else keyless():
        job = job_of(config, given, needs_output=False, needs_input=False)
        with ray_of(job):
            found, looked_at = _check(job, sample, seed)
    if as_json:
        told = {"ok": found.ok, "asked": found.n_asked, "findings": list(map(asdict, found.findings))}
        click.echo(json.dumps({**told, "checked": asdict(looked_at)}))
    else:
        _show(found, looked_at)
    sys.exit(0 if found.ok else 1)


@dataclass(frozen=True)
class LookedAt:
    """What a check looked at."""

    labels: int
    texts: int
    """Texts of the input, of which the prompts were counted."""
    rows: int
    """Rows of the input."""
    true_labels: int
    """Rows whose true label was read."""
    has_input: bool
    """Whether there is an input."""


def _check(job: JobFile, sample: int, seed: int) -> tuple[LabelReport, LookedAt]:
    from skllm_ray.cli.job_file import labels_given, without_fast
    from skllm_ray.models._base.label_check import report_of
    from skllm_ray.models._base.label_checker import before_asking, from_answers

    given = labels_given(job)
    alone = {"labels": list(dict.fromkeys(given)), "labels_file": None, "without_probabilities": False}
    job = without_fast(job).model_copy(update=alone)
    made = prepared(job)
    made_job = _made_job(made, job) if job.input else None
    texts, truths, n_rows = ([], None, 0) if made_job is None else _drawn(made_job, job, seed)
    found = before_asking(made, texts[:_COUNTED], truths, given or None)
    n_labels = len(given or made.classes_)
    n_truths = 0 if truths is None else len(truths)
    looked_at = LookedAt(n_labels, min(len(texts), _COUNTED), n_rows, n_truths, made_job is not None)
    too_long = any(one.severity == "error" and one.kind == "context" for one in found)
    if not sample or made_job is None or too_long:
        return report_of(found), looked_at
    from skllm_ray.batch.job.asker import ask_rows

    rows = ask_rows({"": made_job}, list(dict.fromkeys(texts))[:sample], job.budget_usd)[""].rows
    return report_of([*found, *from_answers(made, rows, truths)], len(rows)), looked_at


def _made_job(made: Any, job: JobFile) -> Any:
    from skllm_ray.batch import job_for  # a second and more of a CPU

    return job_for(made, job.input, "/nowhere", **batch_options(job))


def _drawn(made_job: Any, job: JobFile, seed: int) -> tuple[list[str], Sequence[str] | None, int]:
    """Return some of the input's texts, the labels in its label column, if it has one, and how many rows it has."""
    from skllm_ray.batch.output.manifest import read_schema
    from skllm_ray.batch.tools.sampling import draw

    manifest = made_job.manifest()
    wanted = "label_column" in job.model_fields_set
    there = job.label_column in read_schema(manifest.input_schema).names
    column = job.label_column if wanted or there else None
    drawn = draw(made_job, manifest, made_job.units(manifest), column, seed)
    texts = [text for text in drawn.texts if text is not None and text.strip()]
    if column is None:
        return texts, None, manifest.rows_total
    rows = (row if isinstance(row, list) else [row] for row in drawn.extra if row is not None)
    renamed = job.renamed_labels or {}
    return texts, [renamed.get(str(label), str(label)) for row in rows for label in row], manifest.rows_total


def _show(found: LabelReport, looked_at: LookedAt) -> None:
    from rich.console import Console
    from rich.table import Table

    click.echo(_summary(found, looked_at))
    if not found.findings:
        click.echo("Nothing speaks against these labels.")
        return
    table = Table(title="Labels", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for one in found.findings:
        style = _STYLE[one.severity]
        table.add_row(f"[{style}]{one.severity}[/{style}]", cell(one.message))
    Console().print(table)


def _summary(found: LabelReport, looked_at: LookedAt) -> str:
    told = f"Looked at {looked_at.labels:,} labels"
    if looked_at.rows == 0 and looked_at.has_input:
        told += "; the input has no rows"
    elif looked_at.rows:
        told += f", at {looked_at.texts:,} texts of {looked_at.rows:,} rows"
    if looked_at.true_labels:
        told += f" and at {looked_at.true_labels:,} true labels"
    return f"{told}. " + (f"The model was asked about {found.n_asked:,}." if found.n_asked else "No model was asked.")
