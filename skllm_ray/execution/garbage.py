"""Python's garbage collector while a worker processes rows."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_RARELY: Final = (100_000, 20, 20)


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Let the collector look rarely: rows are many small objects without cycles, for which it looks in vain."""
    before = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
