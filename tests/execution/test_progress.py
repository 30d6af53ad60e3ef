"""The progress bar, in a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import time
from collections.abc import Callable

import pytest

from skllm_ray.config import SKLLMConfig
from skllm_ray.execution import progress
from skllm_ray.execution.plan import Step
from skllm_ray.execution.runner import run
from skllm_ray.tasks import ZeroShotTask
from skllm_ray.testing import FakeSpec

pytestmark = pytest.mark.usefixtures("local_mode")
DELAY_S = 0.3
"""After which something appears, in these tests."""


def call(seconds: float) -> None:
    """Ask for three blocks of rows, each for so long."""
    spec = FakeSpec(lambda request: '{"label": "a"}', latency_s=seconds)
    rows = run(["x"] * 768, (Step(ZeroShotTask(("a", "b")), spec),))
    assert all(row.value == "a" for row in rows)


def start(seconds: float) -> None:
    with progress.slow("starting Ray on this machine"):
        time.sleep(2 * seconds)


def shown(monkeypatch: pytest.MonkeyPatch, act: Callable[[float], None], seconds: float, where: str = "") -> str:
    """Return what something leaves on standard error: a terminal, or a pipe."""
    ours, theirs = os.pipe() if where == "no terminal" else pty.openpty()
    if where != "no terminal":
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        act(seconds)
    return read_to_the_end(ours)


def read_to_the_end(descriptor: int) -> str:
    parts = []
    try:
        while part := os.read(descriptor, 1 << 12):
            parts.append(part)
    except OSError:  # how Linux says that nobody writes to a terminal any more
        pass
    os.close(descriptor)
    return b"".join(parts).decode()


def test_they_appear_on_a_terminal_after_a_while(monkeypatch, capfd) -> None:
    assert progress.DELAY_S == 2
    monkeypatch.setattr(progress, "DELAY_S", DELAY_S)
    bar = shown(monkeypatch, call, DELAY_S)
    assert "768" in bar
    assert "rows/s" in bar
    assert shown(monkeypatch, start, DELAY_S).strip() == "skllm_ray: starting Ray on this machine …"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("act", [call, start])
@pytest.mark.parametrize("why", ["switched off", "no terminal", "over before two seconds are"])
def test_they_do_not_appear(monkeypatch, act, why: str) -> None:
    quick = why == "over before two seconds are"
    if not quick:
        monkeypatch.setattr(progress, "DELAY_S", DELAY_S)
    SKLLMConfig.set_show_progress(why != "switched off")
    assert shown(monkeypatch, act, 0.0 if quick else DELAY_S, why) == ""
