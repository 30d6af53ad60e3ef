"""``skllm-ray batches``: the provider batches of a job's output."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from skllm_ray.cli.grouped import Commands
from skllm_ray.cli.plain_errors import plain_errors
from skllm_ray.plain_text import cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skllm_ray.batch import ProviderBatch

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON lines rather than a table.")
_STORAGE = click.option("--storage-options", default=None, help="JSON: what opens the filesystem.")


@click.group(cls=Commands)
def batches() -> None:
    """See and steer a job's provider batches.

    They are those of `run --delivery batch`; OUTPUT is the folder that it writes to.
    """


@batches.command("list")
@click.argument("output")
@_STORAGE
@_JSON
def list_(output: str, storage_options: str | None, as_json: bool) -> None:
    """List the batches that OUTPUT has had, as its records tell; nobody is asked."""
    _show(lambda batch, given: batch.list_batches(output, **given), storage_options, as_json)


@batches.command()
@click.argument("output")
@click.argument("name", required=False)
@_STORAGE
@_JSON
def status(output: str, name: str | None, storage_options: str | None, as_json: bool) -> None:
    """Ask the provider how the batches of OUTPUT are, or the one NAME: its ID, or its key."""
    _show(lambda batch, given: batch.look_at_batches(output, name, **given), storage_options, as_json)


@batches.command()
@click.argument("output")
@click.argument("name", required=False)
@_STORAGE
@_JSON
def cancel(output: str, name: str | None, storage_options: str | None, as_json: bool) -> None:
    """Ask the provider to stop the live batches of OUTPUT, or the one NAME.

    What they have answered is paid for, and the next run takes it home. Without NAME, the run or the cluster's watcher
    that delivers OUTPUT ends, too.
    """
    _show(lambda batch, given: batch.cancel_batches(output, name, **given), storage_options, as_json)


@batches.command()
@click.argument("output")
@click.argument("key")
@click.argument("batch_id")
@_STORAGE
@_JSON
def adopt(output: str, key: str, batch_id: str, storage_options: str | None, as_json: bool) -> None:
    """Say that the batch KEY of OUTPUT, whose submission's outcome is unknown, is BATCH_ID at the provider."""
    _show(lambda batch, given: [batch.adopt_batch(output, key, batch_id, **given)], storage_options, as_json)


@batches.command()
@click.argument("output")
@click.argument("key")
@_STORAGE
@click.confirmation_option(prompt="Its requests may then be sent, and paid for, again. Go on?")
def forget(output: str, key: str, storage_options: str | None) -> None:
    """Give the batch KEY of OUTPUT up; what is at the provider is left alone."""

    def do(batch: Any, given: dict[str, Any]) -> Sequence[ProviderBatch]:
        batch.forget_batch(output, key, **given)
        found: Sequence[ProviderBatch] = batch.list_batches(output, **given)
        return found

    _show(do, storage_options, as_json=False)


# --- inside -------------------------------------------------------------------------------------------------------


def _show(do: Callable[[Any, dict[str, Any]], Sequence[ProviderBatch]], storage: str | None, as_json: bool) -> None:
    from skllm_ray import batch

    with plain_errors():
        found = do(batch, {"storage_options": _options(storage)})
    if as_json:
        for record in found:
            click.echo(json.dumps(_facts(record)))
        return
    if not found:
        click.echo("No batches.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Provider batches")
    for heading in ("key", "ID", "state", "requests", "done", "home", "cost, USD", "ordered"):
        table.add_column(heading, justify="right" if heading in {"requests", "done"} else "left", overflow="fold")
    for record in found:
        table.add_row(*map(cell, _row(record)))
    Console().print(table)


def _row(record: ProviderBatch) -> tuple[str, ...]:
    spec = record.spec
    cost = "not known" if record.collected and record.cost_usd is None else f"{record.cost_usd or 0.0:,.4f}"
    return (
        record.key,
        record.id or "",
        record.state,
        f"{spec.n_lines:,}",
        f"{record.n_done:,}",
        "yes" if record.collected else "no",
        cost if record.collected else f"at most {spec.most_usd:,.4f}" if spec.price else "price not known",
        f"{datetime.fromtimestamp(spec.ordered_at, UTC):%Y-%m-%d %H:%M}",
    )


def _facts(record: ProviderBatch) -> dict[str, Any]:
    spec = record.spec
    return {
        "key": record.key,
        "id": record.id,
        "service": record.service,
        "model": spec.model,
        "state": record.state,
        "error": record.error,
        "requests": spec.n_lines,
        "done": record.n_done,
        "failed": record.n_failed,
        "collected": record.collected,
        "answered": record.answered,
        "cost_usd": record.cost_usd,
        "most_usd": spec.most_usd if spec.price else None,
        "ordered_at": spec.ordered_at,
        "created_at": record.created_at,
    }


def _options(told: str | None) -> Any:
    try:
        return None if told is None else json.loads(told)
    except ValueError:
        raise click.BadParameter("it must be JSON.", param_hint="--storage-options") from None
