"""Whether a run still holds its output: asked before anything is sent or written.

A run that was asleep, because its process was stopped or its machine suspended, may have been overtaken by another.
A run names itself by a token in the lock file; whoever takes the output over writes another one there. Before each
request the token is compared: on a local disk by a look at the file's stamp, elsewhere by reading it when the last
look is older than `lease_s`. A process that slept notices by that age, too: the clock goes on while a machine sleeps.
So only requests that were past this check can still go out. Who takes an output over waits for longer than a look may
be old, so that runs that are awake have noticed by then.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from skllm_ray.batch.output.holder import Holder, is_on_local_disk
from skllm_ray.batch.storage import Folder
from skllm_ray.errors import OutputInUseError

LOCK_FILE: Final = "lock.json"
HEARTBEAT_S: Final = 5.0
"""How often a run shows that it lives, in seconds."""
_LEASE: Final = 0.4  # of a heartbeat: how old a look may be
_UNREADABLE: Final = 3  # heartbeats without a readable lock, before others may think that this run is dead
_CLOCK: Final[int] = vars(time).get("CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def heartbeat_s() -> float:
    """Return how often a run shows that it lives, in seconds."""
    return HEARTBEAT_S


def clock() -> float:
    """Return seconds that go on while a machine sleeps, and that nobody can set."""
    return time.clock_gettime(_CLOCK)


class Fence:
    """Tells whether the run `token` still holds the output whose lock lies in `folder`.

    Parameters
    ----------
    folder : Folder
        Where the lock lies.
    token : str
        The run's; empty for one without a lock, which is never overtaken.
    heartbeat_s : float or None, default=None
        How often runs show that they live, in seconds; None takes 5.
    """

    def __init__(self, folder: Folder, token: str, heartbeat_s: float | None = None) -> None:
        self._folder = folder
        self._token = token
        self._heartbeat_s = HEARTBEAT_S if heartbeat_s is None else heartbeat_s
        self._stamped = folder.is_local and is_on_local_disk(folder.path)
        self._stamp: tuple[int, int] | None = None
        self._looked_at = float("-inf")

    def check(self) -> None:
        """Raise where another run has taken the output over.

        Raises
        ------
        OutputInUseError
            If it has, or if nobody can tell for so long that it may have.
        """
        if not self._token:
            return
        if self._stamped:
            stamp = self._stamp_now()
            if stamp is not None and stamp == self._stamp:
                return
            self._look()
            self._stamp = stamp
        elif clock() - self._looked_at > _LEASE * self._heartbeat_s:
            self._look()

    def _stamp_now(self) -> tuple[int, int] | None:
        with suppress(OSError):
            found = Path(self._folder.at(LOCK_FILE)).stat()
            return found.st_ino, found.st_mtime_ns
        return None

    def _look(self) -> None:
        deadline = time.monotonic() + _UNREADABLE * self._heartbeat_s
        while True:
            began = clock()
            try:
                found = Holder.parse(self._folder.read(LOCK_FILE))
            except FileNotFoundError:
                found = None
            except OSError as error:  # the store is out of order: nothing is sent until it tells
                if time.monotonic() > deadline:
                    raise OutputInUseError(
                        f"The lock of this output cannot be read ({type(error).__name__}), so that nobody can tell "
                        "whether another run took it over.",
                        "Run the same command again when the storage works.",
                    ) from None
                time.sleep(self._heartbeat_s / 10)
                continue
            if found is not None and not found.token and time.monotonic() <= deadline:  # being written just now
                time.sleep(self._heartbeat_s / 100)
                continue
            if found is None or found.token != self._token:
                who = "Its lock is gone" if found is None else f"Another run took over this output: {found}"
                raise OutputInUseError(f"{who}.", "This run has stopped; look at which one is to go on.")
            self._looked_at = began
            return
