"""``skllm-ray tune``: tuning jobs on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from skllm_ray.cli.grouped import Commands
from skllm_ray.cli.plain_errors import plain_errors
from skllm_ray.plain_text import cell, printable

if TYPE_CHECKING:
    from skllm_ray.tuning import TuningJob

_CLASSIFIERS = ("GPTClassifier", "MultiLabelGPTClassifier", "VertexClassifier")
_WRITERS = ("TunableGPTText2Text", "TunableVertexText2Text")
_STORE = click.option("--store", default=None, help="Where jobs are kept; by default the settings' store.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON lines rather than a table.")


@click.group(cls=Commands)
def tune() -> None:
    """Submit tuning jobs and follow them.

    Every job is submitted once, whatever breaks.
    """


@tune.command()
@click.argument("estimator", type=click.Choice([*_CLASSIFIERS, *_WRITERS]))
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False), help="CSV, JSONL or Parquet.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--answer-column", default="label", show_default=True, help="Labels, or texts; several labels by '|'.")
@click.option("--base-model", default=None, help="The model to tune; by default the estimator's.")
@click.option("--epochs", default=None, type=click.IntRange(1), help="Passes over the data; None leaves it open.")
@click.option("--new", is_flag=True, help="Buy a further job although one of the same content exists.")
@click.option("--wait", "waits", is_flag=True, help="Wait until it has ended.")
def submit(
    estimator: str,
    data: str,
    text_column: str,
    answer_column: str,
    base_model: str | None,
    epochs: int | None,
    new: bool,
    waits: bool,
) -> None:
    """Tune a model on the texts and answers of a file; ESTIMATOR is the class that will use it."""
    from skllm_ray import classification, text2text, tuning
    from skllm_ray.cli.labelled_file import read_columns

    with plain_errors(TimeoutError, TypeError):
        texts, answers = read_columns(data, {"text_column": text_column, "answer_column": answer_column}, "data")
        made = getattr(classification if estimator in _CLASSIFIERS else text2text, estimator)()
        if base_model:
            made.set_params(base_model=base_model)
        if epochs:
            made.set_params(**{"n_epochs" if "n_epochs" in made.get_params() else "epoch_count": epochs})
        if estimator.startswith("MultiLabel"):
            answers = [[label.strip() for label in str(answer).split("|") if label.strip()] for answer in answers]
        job = made.submit_tuning(texts, answers, new=new)
        _show(tuning.wait(job.key) if waits else job)


@tune.command("list")
@_STORE
@_JSON
@click.option("--address", default=None, help="A Ray cluster: its watchers' jobs are listed too.")
def list_(store: str | None, as_json: bool, address: str | None) -> None:
    """List all jobs, those of the cluster's other drivers among them."""
    from skllm_ray import tuning
    from skllm_ray.execution import session

    with plain_errors(TimeoutError, TypeError):
        if address:
            session.init(address)
        jobs = tuning.list_jobs(store=store)
    if as_json:
        for job in jobs:
            click.echo(json.dumps(_facts(job)))
        return
    if not jobs:
        click.echo("No tuning jobs.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Tuning jobs")
    for heading in ("key", "service", "base model", "state", "ID", "tuned model", "created"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        created = "" if job.created_at is None else f"{datetime.fromtimestamp(job.created_at, UTC):%Y-%m-%d %H:%M}"
        facts = (job.key[:12], job.service, job.base_model, job.state, job.id or "", job.model or "", created)
        table.add_row(*map(cell, facts))
    Console().print(table)


@tune.command()
@click.argument("name")
@_STORE
def status(name: str, store: str | None) -> None:
    """Ask the service how the job NAME is: its ID, or its key."""
    _do(lambda tuning: tuning.get_job(name, store=store))


@tune.command()
@click.argument("name")
@_STORE
@click.option("--timeout", "timeout_s", default=None, type=click.FloatRange(0), help="Seconds; without end by default.")
def wait(name: str, store: str | None, timeout_s: float | None) -> None:
    """Wait until the job NAME has ended."""
    _do(lambda tuning: tuning.wait(name, store=store, timeout_s=timeout_s))


@tune.command()
@click.argument("name")
@_STORE
def cancel(name: str, store: str | None) -> None:
    """Ask the service to stop the job NAME; one that succeeded first stays a success."""
    _do(lambda tuning: tuning.cancel(name, store=store))


@tune.command()
@click.argument("name")
@click.argument("job_id")
@_STORE
def adopt(name: str, job_id: str, store: str | None) -> None:
    """Say that the job NAME, whose submission's outcome is unknown, is JOB_ID at its service."""
    _do(lambda tuning: tuning.adopt(name, job_id, store=store))


@tune.command()
@click.argument("name")
@_STORE
@click.confirmation_option(prompt="The same content may then be submitted, and paid, again. Go on?")
def forget(name: str, store: str | None) -> None:
    """Take the job NAME out of the list; the service's job is left alone."""
    _do(lambda tuning: tuning.forget(name, store=store))


def _do(what: Callable[[Any], TuningJob]) -> None:
    from skllm_ray import tuning

    with plain_errors(TimeoutError, TypeError):
        _show(what(tuning))


def _show(job: TuningJob) -> None:
    for name, value in _facts(job).items():
        if value is not None:
            click.echo(f"{name:16} {printable(value)}")


def _facts(job: TuningJob) -> dict[str, Any]:
    return {
        "key": job.key,
        "service": job.service,
        "base_model": job.base_model,
        "state": job.state,
        "id": job.id,
        "model": job.model,
        "error": job.error,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "billable_tokens": job.billable_tokens,
        "cost_usd": job.cost_usd,
    }
