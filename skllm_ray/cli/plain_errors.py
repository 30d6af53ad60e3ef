"""The library's errors and warnings on the command line: a message, without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from skllm_ray.errors import SkllmRayError, SkllmRayWarning
from skllm_ray.plain_text import printable


@contextmanager
def plain_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn the library's errors, and those of the types in `more`, into messages."""
    ours: tuple[type[Exception], ...] = (SkllmRayError, *more)
    try:
        yield
    except ours as error:
        raise click.ClickException(printable(error)) from None


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show this library's warnings as lines, without a place in the code."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
            if issubclass(category, SkllmRayWarning):
                click.echo(f"Warning: {printable(message)}", err=True)
            else:
                shown(message, category, *place, **more)

        warnings.showwarning = show
        yield
