"""``skllm-ray run``, ``estimate``, ``evaluate`` and ``report``: batch jobs on the command line."""

from __future__ import annotations

import json
import signal
import sys
import threading
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from skllm_ray.cli.grouped import Examples
from skllm_ray.cli.job_flags import ONLY_RUN, from_json, job_options
from skllm_ray.cli.plain_errors import plain_warnings
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


TASK: Final = click.argument("task", required=False, metavar="TASK", type=click.Choice(_TASKS))


class LazyOptions(Examples):
    """A command whose options are the fields of a job file, looked up when they are needed: pydantic takes time.

    Parameters
    ----------
    unused : collection of str, default=()
        Fields that the command takes and has no use for.
    """

    def __init__(self, *args: Any, unused: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unused = unused

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options."""
        if not any(param.name == "input" for param in self.params):
            self.params += job_options(self._unused)
        return super().get_params(ctx)


@click.command(
    cls=LazyOptions,
    examples=[
        "skllm-ray run classify --input tickets.csv --output out/ \\\n"
        "    --labels billing,delivery,other --model gpt-5.4-mini --budget-usd 5",
        "skllm-ray run --config job.yaml",
    ],
)
@TASK
@click.option("--config", type=click.Path(dir_okay=False), help="A YAML file with these settings; flags win over it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(config: str | None, as_json: bool, **given: Any) -> None:
    """Ask a model about every row of some files.

    TASK is classify, multilabel, cot, few-shot, summarize, translate, ner or embed. The answers are Parquet files in
    the folder --output. Stop it at any time: the same command goes on, and what was paid for is not asked again.

    Exit code 0: all rows are done, some perhaps with an error. 3: rows remain, and the same command does them. 4: more
    than half of the rows failed. 130 or 143: interrupted. 1 or 2: the command cannot work as it is.
    """
    with messages():
        from skllm_ray.batch import LineScreen, job_for, open_screen

        job = job_of(config, given)
        screen = open_screen(True)
        if not sys.stderr.isatty():
            screen = LineScreen(lambda line: click.echo(printable(line), err=True))
        with ray_of(job):
            result = job_for(prepared(job), job.input, job.output or "", **batch_options(job)).run(screen)
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


@click.command(
    cls=LazyOptions,
    examples=[
        "skllm-ray estimate classify --input tickets.csv \\\n    --labels billing,delivery --model gpt-5.4-mini",
        "# asks 200 rows: this costs a little, and tells more\nskllm-ray estimate classify … --sample 200",
        "# four million rows like those of the input\nskllm-ray estimate classify … --as-if-rows 4000000",
    ],
)
@TASK
@click.option("--config", type=click.Path(dir_okay=False), help="A YAML file with these settings; flags win over it.")
@click.option("--sample", type=click.IntRange(1), default=None, help="Ask so many rows, which costs, to know better.")
@click.option("--as-if-rows", type=click.IntRange(1), default=None, help="Tell it for so many rows like these.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(config: str | None, sample: int | None, as_if_rows: int | None, as_json: bool, **given: Any) -> None:
    """Tell what a job would take: rows, tokens, cost, time.

    Nothing is asked and no key is needed, unless --sample says how many rows to ask. TASK and the options are those of
    the command run.
    """
    with messages(), keyless() if sample is None else nullcontext():
        from skllm_ray.batch import job_for
        from skllm_ray.batch.tools.estimate import estimate_job

        job = job_of(config, given, needs_output=False)
        with ray_of(job):
            made = job_for(prepared(job), job.input, job.output or "/nowhere", **batch_options(job))
            found = estimate_job(made, sample, as_if_rows)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        show_table("Estimate", found.facts())
    if found.sample_mostly_failed:
        sys.exit(_MOSTLY_FAILED)


@click.command(
    cls=LazyOptions,
    unused=ONLY_RUN,
    examples=[
        "skllm-ray evaluate classify --input sample.csv --label-column truth \\\n"
        "    --labels billing,delivery --models gpt-5.4-mini,gguf::qwen3-4b \\\n    --html evaluation.html",
        "skllm-ray evaluate classify … --prompts short.txt,long.txt --sample 400",
        "# other labels, descriptions or a label prior, against those given\n"
        "skllm-ray evaluate classify … --variants renamed.yaml,described.yaml",
    ],
)
@TASK
@click.option("--config", type=click.Path(dir_okay=False), help="A YAML file with these settings; flags win over it.")
@click.option("--models", default=None, help="Models to compare, separated by commas; by default the job's.")
@click.option(
    "--prompts", default=None, help="Files with a prompt template each, separated by commas: all are compared."
)
@click.option(
    "--variants", default=None, help="YAML files with other settings, such as labels, to compare with those given."
)
@click.option("--sample", type=click.IntRange(2), default=200, show_default=True, help="Rows to ask each model.")
@click.option("--seed", default=0, show_default=True, help="Which rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(dir_okay=False), default=None, help="Write a page with all figures.")
@click.option("--csv", type=click.Path(dir_okay=False), default=None, help="Write all figures, a line for each label.")
@click.option("--rows", type=click.Path(dir_okay=False), default=None, help="Write each row with every answer, as CSV.")
def evaluate(config: str | None, sample: int, seed: int, as_json: bool, **given: Any) -> None:
    """Compare models, prompts and labels on labelled rows.

    For each: how good, at what cost, how fast. --label-column names the column with the true labels; --renamed-labels
    tells which of them the column names otherwise. TASK and the other options are those of the command run.
    """
    with messages():
        from skllm_ray.batch import job_for
        from skllm_ray.batch.tools.evaluate import compare_models
        from skllm_ray.cli.evaluation import candidates, checked_files, show
        from skllm_ray.cli.job_file import without_fast

        write = checked_files(**{kind: given.pop(kind) for kind in ("html", "csv", "rows")})
        variety = [given.pop(kind) for kind in ("models", "prompts", "variants")]
        asked = job_of(config, given, needs_output=False)
        if asked.fast_model is not None:
            click.echo("evaluate asks the strong model alone; name the fast one in --models to compare both.", err=True)
        job = without_fast(asked)
        with ray_of(job):
            jobs, renamed = {}, {}
            for one in candidates(job, *variety):
                made = prepared(one.job, one.model)
                name = one.name if one.model or any(variety) else str(made.model)
                jobs[name] = job_for(made, job.input, "/nowhere", **batch_options(job))
                renamed[name] = one.job.renamed_labels or {}
            compared = compare_models(jobs, job.label_column, sample, seed, renamed)
        write(compared)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in compared.evaluations]))
    else:
        show(compared.evaluations)
    if any(one.mostly_failed for one in compared.evaluations):
        sys.exit(_MOSTLY_FAILED)


@click.command(
    cls=Examples,
    examples=["skllm-ray report out/", "skllm-ray report out/ --label-column truth --to tickets.html"],
)
@click.argument("output")
@click.option("--to", default=None, type=click.Path(dir_okay=False), help="The page; by default report.html here.")
@click.option("--label-column", default=None, help="A column of the input with true labels: how good are the answers?")
@click.option("--renamed-labels", default=None, metavar="JSON", help="Labels that the column calls otherwise.")
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(0), help="Rows to search in the page.")
@click.option("--storage-options", default=None, help="JSON: what opens the filesystem.")
def report(output: str, to: str | None, label_column: str | None, renamed_labels: str | None, rows: int,
           storage_options: str | None) -> None:  # fmt: skip
    """Write a web page about a job, finished or not.

    OUTPUT is the folder of the job. The page is one file. Open it in a browser: it shows the answers, how sure the
    model was, what failed, and the rows, to search and to filter. With --label-column it also shows what is right.
    """
    with messages():
        from skllm_ray.batch.tools.report import write_report

        opens = from_json("storage-options", storage_options)
        renamed = from_json("renamed-labels", renamed_labels)
        path = write_report(
            output, to or "report.html", opens, label_column=label_column, rows=rows, renamed_labels=renamed
        )
    click.echo(f"wrote {printable(path)}")


@click.command("job-schema")
def schema() -> None:
    """Print the JSON schema of a job file, for editors."""
    from skllm_ray.cli.job_file import job_schema

    click.echo(json.dumps(job_schema(), indent=2))


# --- inside -------------------------------------------------------------------------------------------------------


def job_of(
    config: str | None, given: Mapping[str, Any], *, needs_output: bool = True, needs_input: bool = True
) -> JobFile:
    """Return the settings in a file, under the flags that were given."""
    from skllm_ray.cli.job_file import read_job
    from skllm_ray.errors import ConfigurationError

    said = {name: value for name, value in given.items() if value is not None and value is not False}
    job = read_job(config, said)
    if needs_input and not job.input:
        raise ConfigurationError("input is missing.", "Name files, a folder or a pattern: --input 'in/*.parquet'.")
    if needs_output and not job.output:
        raise ConfigurationError("output is missing.", "Name a folder for the parts: --output out.")
    return job


def prepared(job: JobFile, model: str | None = None) -> Any:
    """Return the fitted estimator that a job describes."""
    from skllm_ray.cli.job_estimator import prepare

    return prepare(job, model)


def batch_options(job: JobFile) -> dict[str, Any]:
    """Return how a job reads, writes and spends."""
    from skllm_ray.batch.job.options import JobOptions

    return {name: getattr(job, name) for name in JobOptions.model_fields}


@contextmanager
def keyless() -> Iterator[None]:
    """Put something in the place of a key that is missing: nobody is asked."""
    from skllm_ray.config import SKLLMConfig

    missing = SKLLMConfig.get_openai_key() is None
    if missing:
        SKLLMConfig.set_openai_key("nobody-is-asked")
    try:
        yield
    finally:
        if missing:
            SKLLMConfig.reset_openai_key()


@contextmanager
def ray_of(job: JobFile) -> Iterator[None]:
    """Be in the cluster that the job names; a process that `ray job submit` started finds its own.

    Meanwhile what is printed goes to standard error. Ray prints there what became of processes that died, and standard
    output holds the result alone.
    """
    import skllm_ray

    with redirect_stdout(sys.stderr):
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
        "not in a part yet": f"{pending.asked:,} answers that are kept, {cost_of(pending)}",
        "delivered by": result.delivered,
        "in live batches": f"at most {result.set_aside_usd:,.4f} USD, which counts as spent",
        "this run": f"{result.this_run.rows:,} rows in {result.seconds:,.1f} s",
        "output": result.output,
    }
    if not pending.asked:
        del facts["not in a part yet"]
    if not result.delivered:
        del facts["delivered by"]
    if not result.set_aside_usd:
        del facts["in live batches"]
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
    show_table(title, facts)


def show_table(title: str, facts: Mapping[str, str]) -> None:
    """Print facts by their names."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, cell(value))
    Console().print(table)


@contextmanager
def messages() -> Iterator[None]:
    """Turn this library's errors into a line, and Ctrl-C and SIGTERM into a word on how to go on."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        with plain_warnings():
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
