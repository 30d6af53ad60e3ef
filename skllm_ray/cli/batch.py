"""``skllm-ray run``, ``estimate``, ``evaluate`` and ``report``: batch jobs on the command line."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin

import click

from skllm_ray.errors import SkllmRayError
from skllm_ray.plain_text import cell, printable

if TYPE_CHECKING:
    from skllm_ray.batch import JobResult
    from skllm_ray.cli.job_file import JobFile

_TASKS: Final = ("classify", "multilabel", "cot", "few-shot", "summarize", "translate", "ner", "embed")
_UNFINISHED: Final = 3
_MOSTLY_FAILED: Final = 4
_TERMINATED: Final = frozenset({signal.SIGTERM, 128 + signal.SIGTERM})
"""What ends the command by ``SystemExit`` after SIGTERM; the first is Ray's, once it runs."""
_INTERRUPTED: Final = "Interrupted. What was paid for is kept; the same command goes on."


class _LazyOptions(click.Command):
    """A command whose options are the fields of a job file, looked up when they are needed: pydantic takes time."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not any(param.name == "input" for param in self.params):
            self.params += _options()
        return super().get_params(ctx)


@click.command(cls=_LazyOptions)
@click.argument("task", required=False, type=click.Choice(_TASKS))
@click.option("--config", type=click.Path(dir_okay=False), help="A YAML file with these settings; flags win over it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(config: str | None, as_json: bool, **given: Any) -> None:
    """Ask a model about every row of some files, and write Parquet parts.

    The same command goes on after any interruption. Exit code 0: all rows are done, be it with a result or an error;
    3: something remains, the same command does it; 4: more than half of the rows failed; 130 or 143: interrupted;
    1 or 2: nothing could be done as asked.
    """
    with _messages():
        from skllm_ray.batch import LineScreen, job_for, open_screen

        job = _job(config, given)
        screen = open_screen(True)
        if not sys.stderr.isatty():
            screen = LineScreen(lambda line: click.echo(printable(line), err=True))
        with _ray(job):
            result = job_for(_prepare(job), job.input, job.output or "", **_batch_options(job)).run(screen)
    if as_json:
        click.echo(json.dumps({**vars(result), "complete": result.complete}, default=vars))
    else:
        _show(result)
    if result.signal:
        click.echo(_INTERRUPTED, err=True)
        sys.exit(128 + result.signal)
    if result.mostly_failed:
        sys.exit(_MOSTLY_FAILED)
    if not result.complete or result.stopped:
        sys.exit(_UNFINISHED)


@click.command(cls=_LazyOptions)
@click.argument("task", required=False, type=click.Choice(_TASKS))
@click.option("--config", type=click.Path(dir_okay=False), help="A YAML file with these settings; flags win over it.")
@click.option("--sample", type=click.IntRange(1), default=None, help="Ask so many rows, which costs, to know better.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(config: str | None, sample: int | None, as_json: bool, **given: Any) -> None:
    """Tell what a job would take: rows, tokens, cost, time. Asks nothing, unless --sample says so."""
    with _messages():
        from skllm_ray.batch import job_for
        from skllm_ray.batch.tools.estimate import estimate_job

        job = _job(config, given, needs_output=False)
        with _ray(job):
            made = job_for(_prepare(job), job.input, job.output or "/nowhere", **_batch_options(job))
            found = estimate_job(made, sample)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        _table("Estimate", found.facts())
    if found.sample_mostly_failed:
        sys.exit(_MOSTLY_FAILED)


@click.command(cls=_LazyOptions)
@click.argument("task", required=False, type=click.Choice(_TASKS))
@click.option("--config", type=click.Path(dir_okay=False), help="A YAML file with these settings; flags win over it.")
@click.option("--models", default=None, help="Models to compare, separated by commas; by default the job's.")
@click.option(
    "--prompts", default=None, help="Files with a prompt template each, separated by commas: all are compared."
)
@click.option("--sample", type=click.IntRange(2), default=200, show_default=True, help="Rows to ask each model.")
@click.option("--seed", default=0, show_default=True, help="Which rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(dir_okay=False), default=None, help="Write a page with all figures.")
@click.option("--csv", type=click.Path(dir_okay=False), default=None, help="Write all figures, a line for each label.")
@click.option("--rows", type=click.Path(dir_okay=False), default=None, help="Write each row with every answer, as CSV.")
def evaluate(config: str | None, sample: int, seed: int, as_json: bool, **given: Any) -> None:
    """Compare models and prompts on labelled rows (--label-column) before the big job: quality, cost, speed."""
    with _messages():
        from skllm_ray.batch import job_for
        from skllm_ray.batch.tools.evaluate import compare_models
        from skllm_ray.cli.evaluation import candidates, checked_files, show
        from skllm_ray.cli.job_file import without_fast

        write = checked_files(**{kind: given.pop(kind) for kind in ("html", "csv", "rows")})
        models, prompts = given.pop("models"), given.pop("prompts")
        job = without_fast(_job(config, given, needs_output=False))
        with _ray(job):
            jobs = {}
            for name, (told, model) in candidates(job, models, prompts).items():
                made = _prepare(told, model)
                key = name if model or prompts else str(made.model)
                jobs[key] = job_for(made, job.input, "/nowhere", **_batch_options(job))
            compared = compare_models(jobs, job.label_column, sample, seed)
        write(compared)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in compared.evaluations]))
    else:
        show(compared.evaluations)
    if any(one.mostly_failed for one in compared.evaluations):
        sys.exit(_MOSTLY_FAILED)


@click.command()
@click.argument("output")
@click.option("--to", default=None, type=click.Path(dir_okay=False), help="The page; by default report.html here.")
@click.option("--storage-options", default=None, help="JSON: what opens the filesystem.")
def report(output: str, to: str | None, storage_options: str | None) -> None:
    """Write an HTML page about the job whose parts are in OUTPUT."""
    with _messages():
        from skllm_ray.batch.tools.report import write_report

        path = write_report(output, to or "report.html", _json("storage-options", storage_options))
    click.echo(f"wrote {printable(path)}")


@click.command("job-schema")
def schema() -> None:
    """Print the JSON schema of a job file, for editors and checks."""
    from skllm_ray.cli.job_file import job_schema

    click.echo(json.dumps(job_schema(), indent=2))


# --- inside -------------------------------------------------------------------------------------------------------


def _options() -> list[click.Parameter]:
    """Return an option for each field of a job file that a flag can say."""
    from skllm_ray.batch.job.options import JobOptions
    from skllm_ray.cli.job_file import JobFile

    found: list[click.Parameter] = []
    own = {
        name: field for name, field in JobFile.model_fields.items() if name not in {*JobOptions.model_fields, "task"}
    }
    for name, field in {**own, **JobOptions.model_fields}.items():  # what is asked, then how
        kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)] or [field.annotation]
        kind = kinds[0] if get_origin(field.annotation) is not None and len(kinds) == 1 else field.annotation
        shown = "" if field.default in (None, "", [], False) else f"  [default: {field.default}]"
        options: dict[str, Any] = {"help": f"{field.description}{shown}", "default": None}
        if name in {"keep_replies", "on_error"}:
            options["type"] = click.Choice(get_args(field.annotation))
        elif name == "input":  # a path may hold a comma
            options.update(multiple=True, callback=_as_list, metavar="PATH", help=f"{field.description} Several times.")
        elif name == "text_template":
            options.update(callback=_unescaped, help=rf"{field.description} \n is a line break, \\ a backslash.")
        elif get_origin(kind) is dict or kind is dict or "dict" in str(kind):
            options.update(callback=_from_json, metavar="JSON")
        elif "list" in str(field.annotation):
            options.update(multiple=True, callback=_as_list, metavar="TEXT[,TEXT…]")
        elif kind is bool:
            options.update(is_flag=True)
        elif kind in {int, float}:
            options["type"] = kind
        found.append(click.Option([f"--{name.replace('_', '-')}"], **options))
    return found


def _as_list(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    del ctx
    if not value:
        return None
    if param.name == "input":
        return list(value)
    return [part.strip() for one in value for part in one.split(",") if part.strip()]


def _unescaped(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    r"""Return a flag's text with ``\n``, ``\t`` and ``\\`` as what they stand for: shells leave them as they are."""
    del ctx, param
    if value is None:
        return None
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], "\\"), value)


def _from_json(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    del ctx
    return _json(str(param.name), value)


def _json(name: str, value: str | None) -> Any:
    """Return the JSON in `value`, or in the file that it names after an ``@``; its text appears in no message."""
    if value is None:
        return None
    try:
        if value.startswith("@"):
            with click.open_file(value[1:]) as file:
                value = file.read()
        return json.loads(value)
    except (OSError, ValueError):
        raise click.BadParameter("it must be JSON, or @FILE with JSON.", param_hint=f"--{name}") from None


def _job(config: str | None, given: Mapping[str, Any], *, needs_output: bool = True) -> JobFile:
    from skllm_ray.cli.job_file import read_job
    from skllm_ray.errors import ConfigurationError

    said = {name: value for name, value in given.items() if value is not None and value is not False}
    job = read_job(config, said)
    if not job.input:
        raise ConfigurationError("input is missing.", "Name files, a folder or a pattern: --input 'in/*.parquet'.")
    if needs_output and not job.output:
        raise ConfigurationError("output is missing.", "Name a folder for the parts: --output out.")
    return job


def _prepare(job: JobFile, model: str | None = None) -> Any:
    from skllm_ray.cli.job_file import prepare

    return prepare(job, model)


def _batch_options(job: JobFile) -> dict[str, Any]:
    from skllm_ray.batch.job.options import JobOptions

    return {name: getattr(job, name) for name in JobOptions.model_fields}


@contextmanager
def _ray(job: JobFile) -> Iterator[None]:
    """Be in the cluster that the job names; a process that `ray job submit` started finds its own."""
    import skllm_ray

    if job.address:
        skllm_ray.init(job.address)
    try:
        yield
    finally:
        skllm_ray.shutdown()


def _show(result: JobResult) -> None:
    from skllm_ray.batch.job.progress_display import cost_of

    total = result.total
    pending = result.pending
    facts = {
        "rows": f"{result.rows_done:,} of {result.rows_total:,}",
        "failed rows": ", ".join(f"{n:,} {kind}" for kind, n in sorted(result.errors.items())) or "none",
        "tokens": f"{total.prompt_tokens:,} in, {total.completion_tokens:,} out",
        "cost": cost_of(total),
        "not in a part yet": f"{pending.asked:,} answers that are paid for, {cost_of(pending)}",
        "this run": f"{result.this_run.rows:,} rows in {result.seconds:,.1f} s",
        "output": result.output,
    }
    if not pending.asked:
        del facts["not in a part yet"]
    if result.reasons:
        facts["first reasons"] = "\n".join(f"{kind}: {reason}" for kind, reason in sorted(result.reasons.items()))
    facts |= result.promise
    if result.unreadable:
        facts["not done"] = "\n".join(f"{name}: {reason}" for name, reason in list(result.unreadable.items())[:20])
    if result.stopped:
        facts["stopped"] = result.stopped
    if result.next_step:
        facts["next"] = result.next_step
    title = "Most rows failed" if result.mostly_failed else "Done" if result.complete else "Not all is done"
    _table(title, facts)


def _table(title: str, facts: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, cell(value))
    Console().print(table)


@contextmanager
def _messages() -> Iterator[None]:
    """Turn this library's errors into a line, and Ctrl-C and SIGTERM into a word on how to go on."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except SkllmRayError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            printable(f"{type(error).__name__}: {error}. The same command goes on when it is mended.")
        ) from None
    except KeyboardInterrupt:
        click.echo(_INTERRUPTED, err=True)
        sys.exit(128 + signal.SIGINT)
    except SystemExit as end:
        if end.code not in _TERMINATED:
            raise
        click.echo(_INTERRUPTED, err=True)
        sys.exit(128 + signal.SIGTERM)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:  # noqa: BLE001  a job's log is read by people, and must hold no text of a row
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise click.ClickException(
            f"{type(error).__name__} in {where.name} ({Path(where.filename).name}, line {where.lineno}), which was not "
            "foreseen. What was paid for is kept; please report it."
        ) from None


def _terminated(number: int, frame: object) -> None:
    del frame
    raise SystemExit(128 + number)


def commands() -> list[click.Command]:
    """Return the commands of this module."""
    return [run, estimate, evaluate, report, schema]
