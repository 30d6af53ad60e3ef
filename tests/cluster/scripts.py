"""Running a script in a process of its own, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment with the repository importable, and `extra` variables."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def run_script(source: str, timeout_s: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `source` and return what it did."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**extra),
    )


def start_script(source: str, **extra: str) -> subprocess.Popen[str]:
    """Start `source` and return its process, with standard output to read from."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**extra),
    )
