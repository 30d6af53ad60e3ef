"""One run at a time on one output: a lock file whose owner shows that it lives."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from typing import Any, Final, Self

from skllm_ray.batch.storage import Folder
from skllm_ray.errors import OutputInUseError

HEARTBEAT_S: Final = 5.0
_DEAD_AFTER: Final = 4  # heartbeats without a change
_NAME: Final = "lock.json"


class OutputLock:
    """Holds an output for one run. A dead run's lock is taken over.

    On a local filesystem the file is created exclusively. Object stores offer that to none of the clients used here:
    there the file is read back, so that two runs which begin in the very same moment may both believe they hold it;
    the loser sees the other's name at its first heartbeat and stops.

    Parameters
    ----------
    folder : Folder
        Where the lock lies.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_life, name="skllm-ray-lock", daemon=True)
        self.lost = False

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            if not self.lost:
                self._folder.delete(_NAME)

    def _take(self) -> None:
        if self._folder.create(_NAME, self._content()):
            return
        first = self._read()
        if first is not None and not _is_dead(first):
            deadline = time.monotonic() + _DEAD_AFTER * HEARTBEAT_S
            while time.monotonic() < deadline:
                time.sleep(HEARTBEAT_S / 4)
                now = self._read()
                if now is None:
                    break
                if (now.get("token"), now.get("beat")) != (first.get("token"), first.get("beat")):
                    raise OutputInUseError(
                        f"Another run writes to this output: process {now.get('pid')} on {now.get('host')}.",
                        "Wait until it has ended, or stop it; the same command then goes on where it was.",
                    )
        self._folder.delete(_NAME)
        if not self._folder.create(_NAME, self._content()):
            raise OutputInUseError("Another run has just begun on this output.", "Wait until it has ended.")

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._folder.read(_NAME) or b"{}")
        except FileNotFoundError:
            return None
        except ValueError:  # being written just now
            return {}
        return found if isinstance(found, dict) else {}

    def _content(self) -> bytes:
        told = {
            "token": self._token,
            "beat": self._beat,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "boot": _boot(),
            "began": _began(os.getpid()),
        }
        return json.dumps(told).encode()

    def _show_life(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self._beat += 1
            with suppress(OSError):
                found = self._read()
                if found and found.get("token") != self._token:
                    self.lost = True
                    return
                self._folder.write(_NAME, self._content())


def _is_dead(lock: dict[str, Any]) -> bool:
    """Return whether the owner surely lives no more: a process of this machine, since its last start, that is gone."""
    if lock.get("host") != socket.gethostname() or not lock.get("boot") or lock.get("boot") != _boot():
        return False
    return _began(int(lock.get("pid", 0))) != lock.get("began")


def _boot() -> str:
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123  no path of the user's
        return file.read().strip()
    return ""


def _began(pid: int) -> str:
    """Return when a process began, in ticks since the machine's start; empty where it is gone or nobody can tell."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as file:  # noqa: PTH123  as above
        return file.read().rpartition(")")[2].split()[19]
    return ""
