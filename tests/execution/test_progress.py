"""The progress bar, in a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SCRIPT = """
import skllm_ray
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.plan import Step
from skllm_ray.execution.runner import run
from skllm_ray.tasks import ZeroShotTask
from skllm_ray.testing import FakeSpec

def answer(request):
    return '{"label": "a"}'

skllm_ray.init(local_mode=True)
SKLLMConfig.set_show_progress(SHOW)
rows = run(["x"] * 768, (Step(ZeroShotTask(("a", "b")), FakeSpec(answer, latency_s=LATENCY)),))
assert all(row.value == "a" for row in rows)
"""


SLOW = """
import time
from skllm_ray.config import SKLLMConfig
from skllm_ray.execution.progress import slow

SKLLMConfig.set_show_progress(SHOW)
with slow("starting Ray on this machine"):
    time.sleep(LATENCY)
"""


def terminal_output(show: bool, latency_s: float, *, terminal: bool = True, script: str = SCRIPT) -> str:
    """Return what the script leaves on a terminal's standard error (or on a pipe)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    source = script.replace("SHOW", str(show)).replace("LATENCY", str(latency_s))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=theirs if terminal else subprocess.PIPE,
        env=environment,
    )
    os.close(theirs)
    shown = read_to_the_end(ours)
    printed, piped = process.communicate()
    assert (process.returncode, printed) == (0, b"")
    return shown if terminal else piped.decode()


def read_to_the_end(terminal: int) -> str:
    parts = []
    try:
        while part := os.read(terminal, 1 << 12):
            parts.append(part)
    except OSError:  # how Linux says that nobody writes to it any more
        pass
    os.close(terminal)
    return b"".join(parts).decode()


def test_it_appears_on_a_terminal_after_two_seconds() -> None:
    shown = terminal_output(show=True, latency_s=1.1)
    assert "768" in shown
    assert "rows/s" in shown


@pytest.mark.parametrize(("show", "latency_s", "terminal"), [(False, 1.1, True), (True, 0.0, True), (True, 1.1, False)])
def test_it_does_not_appear(show: bool, latency_s: float, terminal: bool) -> None:
    """Switched off, on a call that is over before two seconds are, or where no terminal is."""
    assert terminal_output(show, latency_s, terminal=terminal) == ""


def test_what_takes_long_says_what_it_does_and_what_is_quick_says_nothing() -> None:
    assert terminal_output(show=True, latency_s=2.5, script=SLOW).strip() == "skllm_ray: starting Ray on this machine …"
    for show, latency_s, terminal in ((True, 0.1, True), (False, 2.5, True), (True, 2.5, False)):
        assert terminal_output(show, latency_s, terminal=terminal, script=SLOW) == ""
