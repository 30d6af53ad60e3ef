"""The library's errors on the command line: a message, without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from skllm_ray.errors import SkllmRayError
from skllm_ray.plain_text import printable


@contextmanager
def plain_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn the library's errors, and those of the types in `more`, into messages."""
    ours: tuple[type[Exception], ...] = (SkllmRayError, *more)
    try:
        yield
    except ours as error:
        raise click.ClickException(printable(error)) from None
