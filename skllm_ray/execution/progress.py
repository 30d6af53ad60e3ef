"""What a call shows of itself: in terminals and notebooks, after two seconds, and nowhere else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from skllm_ray.config import SKLLMConfig

DELAY_S = 2.0


def progress_bar(total: int, label: str, *, show: bool) -> Any:
    """Return a tqdm bar over `total` rows, disabled where nobody looks at it."""
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        desc=label,
        unit=" rows",
        unit_scale=total >= 100_000,
        delay=DELAY_S,
        disable=not (show and _seen()),
        leave=False,
    )


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def slow(what: str) -> Iterator[None]:
    """Say what is being done, in one line, if it takes longer than two seconds and somebody looks.

    Parameters
    ----------
    what : str
        What is done, such as ``"starting Ray on this machine"``.
    """
    timer = threading.Timer(DELAY_S, lambda: sys.stderr.write(f"skllm_ray: {what} …\n"))
    timer.daemon = True
    if _seen():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def download_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many of how many bytes have arrived; nothing appears before its first call."""
    from tqdm.auto import tqdm

    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(desc=f"downloading {label}", unit="B", unit_scale=True, leave=False, disable=not _seen()))
        bars[0].total = total or None
        bars[0].n = done
        bars[0].refresh()

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def _seen() -> bool:
    return SKLLMConfig.get_show_progress() and (_in_notebook() or sys.stderr.isatty())
