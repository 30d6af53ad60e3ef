"""``skllm-ray models``: which GGUF models there are, and what they take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from skllm_ray.cli.grouped import Commands
from skllm_ray.cli.plain_errors import plain_errors
from skllm_ray.plain_text import cell, printable

if TYPE_CHECKING:
    from skllm_ray.llm.gpt.clients.llama_cpp.catalog import CatalogModel
    from skllm_ray.llm.gpt.clients.llama_cpp.description import ModelDescription

_NAME, _FILE = (  # with or without the namespace
    click.argument(name, callback=lambda _context, _parameter, given: given.rpartition("::")[2])
    for name in ("name", "file")
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON rather than a table.")
_N_CTX = click.option("--n-ctx", default=None, type=click.IntRange(32), help="Tokens of context to tell memory for.")

_UNBROKEN = ("file", "hub", "not here")
"""What stands below a table, each in one line: a copy of it works."""


@click.group(cls=Commands)
def models() -> None:
    """List, describe, download and check GGUF models."""


@models.command("list")
@_JSON
def list_(as_json: bool) -> None:
    """List the models that have a short name."""
    from skllm_ray.llm.gpt.clients.llama_cpp.catalog import RECOMMENDED, supported_models

    with plain_errors():
        rows = [(name, model, _is_here(name)) for name, model in supported_models.items()]
    if as_json:
        for name, model, here in rows:
            click.echo(json.dumps({"name": name, **asdict(model), "is_here": here}))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "file", "licence", "here", "note"):
        table.add_column(heading, justify="right" if heading == "file" else "left")
    for name, model, here in rows:
        size = _size(model)
        facts = (f"gguf::{name}", model.parameters, size, model.licence, "yes" if here else "", model.note)
        table.add_row(*map(cell, facts))
    Console().print(table)
    click.echo(f"Begin with gguf::{RECOMMENDED}. Contexts and memory: skllm-ray models show NAME.")
    click.echo("Others: gguf::/path/to/model.gguf, or from the hub gguf::owner/repo/file.gguf.")


@models.command()
@_NAME
@_N_CTX
@_JSON
def show(name: str, n_ctx: int | None, as_json: bool) -> None:
    """Tell what the model NAME takes, and where its labels would be scored.

    NAME is what follows "gguf::": a short name, a file's path, or owner/repo/file.gguf. Of a model that is not on this
    machine only what the catalogue says is told.
    """
    from skllm_ray.llm.gpt.clients.llama_cpp.catalog import supported_models

    with plain_errors():
        found = _described(name, n_ctx)
    known = supported_models.get(name)
    if found is not None:
        _print(name, dict(_rows(found)), {**asdict(found), "path": str(found.path)}, as_json)
    elif known is not None:
        _print(name, dict(_listed(name, known)), {"name": name, **asdict(known), "is_here": False}, as_json)
    else:
        raise _absent(name)


@models.command()
@_NAME
@click.option("--on-cluster", is_flag=True, help="Bring it to all nodes of the Ray cluster, from one another.")
@click.option("--address", default=None, help="With --on-cluster: the cluster's address, where not the one found here.")
def pull(name: str, on_cluster: bool, address: str | None) -> None:
    """Download the model NAME, all its parts, and check its SHA-256."""
    from skllm_ray.config import SKLLMConfig
    from skllm_ray.llm.gpt.clients.llama_cpp.catalog import check_name
    from skllm_ray.llm.gpt.clients.llama_cpp.download import local_file

    if address is not None and not on_cluster:
        raise click.UsageError("--address is the cluster's of --on-cluster, which is not given.")
    with plain_errors():
        check_name(name)
        if on_cluster:
            _pull_on_cluster(name, address)
            return
        path = local_file(name, SKLLMConfig.get_gguf_download_path())
        click.echo(printable(f"{path} is here and whole."))


def _pull_on_cluster(name: str, address: str | None) -> None:
    from skllm_ray.config import SKLLMConfig
    from skllm_ray.execution import session
    from skllm_ray.execution.weights import Fetched, warm_nodes

    def tell(one: Fetched) -> None:
        how = "was here" if one.source == "here" else f"from {one.source}, {one.seconds:,.1f} s"
        click.echo(printable(f"{one.node}: {one.path} ({how})"))

    session.init(address)
    found = warm_nodes(name, SKLLMConfig.get_gguf_download_path(), tell)
    click.echo(f"{name} is whole on {len(found)} node(s).")


@models.command()
@_FILE
@_N_CTX
@_JSON
def check(file: str, n_ctx: int | None, as_json: bool) -> None:
    """Check whether this llama.cpp can run FILE, and end with 1 if it cannot answer prompts.

    FILE is a path, a short name, or owner/repo/file.gguf.
    """
    name = file
    with plain_errors():
        found = _described(name, n_ctx)
    if found is None:
        raise _absent(name)
    _print(name, dict(_rows(found)), {**asdict(found), "path": str(found.path)}, as_json)
    if found.problem:
        raise click.exceptions.Exit(1)


def _is_here(name: str) -> bool:
    from skllm_ray.config import SKLLMConfig
    from skllm_ray.llm.gpt.clients.llama_cpp.download import file_if_here

    return file_if_here(name, SKLLMConfig.get_gguf_download_path()) is not None


def _size(model: CatalogModel) -> str:
    if not model.size_gb:
        return ""
    return f"{model.size_gb:,.1f} GB" if model.size_gb >= 1 else f"{model.size_gb * 1e3:,.0f} MB"


def _described(name: str, n_ctx: int | None) -> ModelDescription | None:
    from skllm_ray.llm.gpt.clients.llama_cpp.catalog import check_name
    from skllm_ray.llm.gpt.clients.llama_cpp.description import describe

    check_name(name)
    return describe(name, n_ctx)


def _absent(name: str) -> click.ClickException:
    return click.ClickException(printable(f"{name} is not on this machine. Download it: skllm-ray models pull {name}"))


def _print(title: str, rows: Mapping[str, str], facts: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=cell(title), show_header=False, box=box.SIMPLE, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, value in rows.items():
        if heading not in _UNBROKEN:
            table.add_row(heading, cell(value))  # a file's own words among them
    Console(width=min(120, shutil.get_terminal_size().columns)).print(table)
    for heading in [heading for heading in _UNBROKEN if heading in rows]:
        click.echo(printable(f"  {heading}: {rows[heading]}"))


def _listed(name: str, known: CatalogModel) -> Iterator[tuple[str, str]]:
    yield "hub", f"{known.repo}/{known.file}"
    yield "parameters", known.parameters
    if known.size_gb:
        yield "size", _size(known)
    yield "licence", known.licence
    yield "opened context", f"{known.n_ctx:,} tokens"
    yield "not here", f"skllm-ray models pull {name}"


def _rows(found: ModelDescription) -> Iterator[tuple[str, str]]:
    yield "file", f"{found.path}" + (f" and {found.n_files - 1} more" if found.n_files > 1 else "")
    yield from ((key, value) for key, value in (("name", found.title), ("licence", found.licence)) if value)
    size = " · ".join(part for part in (found.parameters, found.precision) if part)
    yield "architecture", found.architecture + (f" ({size})" if size else "")
    yield "vocabulary", f"{found.n_vocab:,} tokens"
    if found.n_ctx_train is not None:
        yield "trained context", f"{found.n_ctx_train:,} tokens"
    if found.memory is not None:
        yield "memory", str(found.memory)
    if found.problem:
        yield "cannot be used", found.problem
    if found.notice:
        yield "note", found.notice
    if found.tail:
        yield "labels are scored after", found.tail
