"""The command line: ``skllm-ray``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from skllm_ray import __version__
from skllm_ray.cli.batch import commands
from skllm_ray.cli.batches import batches
from skllm_ray.cli.grouped import Commands
from skllm_ray.cli.labels import labels
from skllm_ray.cli.models import models
from skllm_ray.cli.review import review
from skllm_ray.cli.tune import tune
from skllm_ray.errors import SkllmRayError
from skllm_ray.plain_text import cell


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples=[
        "skllm-ray demo",
        "skllm-ray estimate classify --input tickets.csv \\\n    --labels billing,delivery --model gpt-5.4-mini",
        "skllm-ray run --help",
    ],
)
@click.version_option(__version__, prog_name="skllm-ray")
def main() -> None:
    """Classify and rewrite texts with language models, a few or millions, on one machine or on a Ray cluster."""


main.add_command(batches)
main.add_command(models)
main.add_command(labels)
main.add_command(review)
main.add_command(tune)
for command in commands():
    main.add_command(command)


@main.command()
@click.option("--actors", default=2, show_default=True, type=click.IntRange(1, 64), help="Model actors to start.")
@click.option("--model", default="gguf::demo", show_default=True, help="The GGUF model that answers.")
@click.option("--rows", default=480, show_default=True, type=click.IntRange(10), help="Reviews to classify.")
@click.option("--address", default=None, help="A Ray cluster's address; by default RAY_ADDRESS, else this machine.")
def demo(actors: int, model: str, rows: int, address: str | None) -> None:
    """Classify customer reviews and show how well it went."""
    from skllm_ray.cli.demo import run_demo

    try:
        run_demo(actors=actors, model=model, n_rows=rows, address=address)
    except SkllmRayError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--address", default=None, help="A Ray cluster's address; by default RAY_ADDRESS, else this machine.")
def doctor(address: str | None) -> None:
    """Check whether this machine has what a first call needs.

    It looks at Ray, llama.cpp, memory, disk, keys and servers. Each line is fine, or says what mends it. No Ray is
    started and no model is asked. Exit code 1: something keeps every call from working.
    """
    from skllm_ray.cli.doctor import show

    if not show(address):
        raise SystemExit(1)


@main.command()
@click.option("--address", default=None, help="A Ray cluster's address; by default RAY_ADDRESS, else this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines rather than a table.")
def limits(address: str | None, as_json: bool) -> None:
    """Show the API limits that all jobs of a cluster share.

    For each: the quota, what was used of it in the last 60 s, what waits, and how often the server refused.
    """
    import skllm_ray
    from skllm_ray.execution.rate_limiter import show_limits

    try:
        skllm_ray.init(address or "auto")
        buckets = show_limits()
    except SkllmRayError as error:
        raise click.ClickException(str(error)) from None
    finally:
        skllm_ray.shutdown()
    if as_json:
        for bucket in buckets:
            click.echo(json.dumps(asdict(bucket)))
        return
    if not buckets:
        click.echo("No API model was asked on this cluster yet.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Limits that this cluster's jobs share")
    for heading in ("bucket", "requests/min", "tokens/min", "in flight", "waiting", "429s", "paused"):
        table.add_column(heading, justify="left" if heading == "bucket" else "right", overflow="fold")
    for bucket in buckets:
        table.add_row(
            cell(bucket.bucket),
            f"{bucket.requests_used:,} / {bucket.requests_per_minute or '∞'}",
            f"{bucket.tokens_used:,} / {bucket.tokens_per_minute or '∞'}",
            f"{bucket.in_flight} / {bucket.concurrency}",
            str(bucket.waiting),
            str(bucket.refusals),
            f"{bucket.paused_s:.1f} s" if bucket.paused_s else "no",
        )
    Console().print(table)
