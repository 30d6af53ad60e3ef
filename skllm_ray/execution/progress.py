"""The progress bar: in terminals and notebooks, after two seconds, and nowhere else."""

from __future__ import annotations

import sys
from typing import Any

from skllm_ray.config import SKLLMConfig

DELAY_S = 2.0


def progress_bar(total: int, label: str, *, show: bool) -> Any:
    """Return a tqdm bar over `total` rows, disabled where nobody looks at it."""
    from tqdm.auto import tqdm

    enabled = show and SKLLMConfig.get_show_progress() and (_in_notebook() or sys.stderr.isatty())
    return tqdm(
        total=total,
        desc=label,
        unit=" rows",
        unit_scale=total >= 100_000,
        delay=DELAY_S,
        disable=not enabled,
        leave=False,
    )


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
