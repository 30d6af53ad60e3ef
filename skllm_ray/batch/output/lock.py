"""One run at a time on one output."""

from __future__ import annotations

import os
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Final, Self

import filelock

from skllm_ray.batch.output.fence import LOCK_FILE, Fence, clock, heartbeat_s
from skllm_ray.batch.output.holder import Holder, is_on_local_disk
from skllm_ray.batch.storage import Folder, first_look
from skllm_ray.errors import OutputInUseError

_DEAD_AFTER: Final = 4  # heartbeats without a change
_SETTLE: Final = 0.6  # of a heartbeat: longer than a look at the lock may be old, see `fence`
_OS_LOCK: Final = "run.lock"
_GOODBYES: Final = 3
_held_here: set[str] = set()


class OutputLock:
    """Holds an output for one run. A dead run's lock is taken over.

    On a local disk the operating system decides. Its lock ends with the process that holds it and with nothing else:
    a stopped process keeps it, and only one of many that want it gets it. Elsewhere, on shared filesystems and object
    stores, a run shows with a heartbeat that it lives. A run whose process exists on this machine is not dead, even if
    it is stopped. A run that takes over writes a token of its own, waits until all runs that are awake have noticed,
    and looks whether the token is still there: of several runs, the last one to write goes on. A run that was asleep
    in the meantime notices before it sends or writes anything: see `Fence`.

    Parameters
    ----------
    folder : Folder
        Where the lock lies.
    watches : bool, default=False
        Whether this run is that of the watcher of a job's batches.

    Attributes
    ----------
    token : str
        Names this run.
    """

    def __init__(self, folder: Folder, *, watches: bool = False) -> None:
        self._folder = folder
        self._watches = watches
        self.token = uuid.uuid4().hex
        self._heartbeat_s = heartbeat_s()
        self._exclusive = folder.is_local and is_on_local_disk(folder.path)
        self._os_lock: filelock.BaseFileLock | None = None
        self._fence = Fence(folder, self.token, self._heartbeat_s)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_life, name="skllm-ray-lock", daemon=True)

    def __enter__(self) -> Self:
        at = f"output folder {self._folder.path!r}"
        with first_look(at):
            self._os_lock = self._lock_here()
        self._mine = Holder.of_this_process(self.token, 0, locked=self._os_lock is not None, watches=self._watches)
        try:
            with first_look(at):
                self._take()
        except BaseException:
            self._unlock_here()
            raise
        _held_here.add(self.token)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        _held_here.discard(self.token)
        for _ in range(_GOODBYES):  # a store may be out of order; what stays is that of a dead run
            with suppress(OSError):
                held = self._read()
                if held is not None and held.token == self.token:
                    self._folder.delete(LOCK_FILE)
                break
        self._unlock_here()

    def check(self) -> None:
        """Raise ``OutputInUseError`` where another run has taken the output over."""
        self._fence.check()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _lock_here(self) -> filelock.BaseFileLock | None:
        """Return the operating system's lock; None where the filesystem has none."""
        if not self._folder.is_local:
            return None
        self._folder.make()
        lock = filelock.FileLock(self._folder.at(_OS_LOCK), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise _in_use(self._read()) from None
        except PermissionError:
            raise
        except (OSError, NotImplementedError):
            return None
        return lock

    def _unlock_here(self) -> None:
        if self._os_lock is not None:
            self._os_lock.release()

    def _take(self) -> None:
        if self._create():
            return
        held = self._read()
        if held is not None and not self._is_dead(held):
            held = self._watch(held)
        if held is None:
            if not self._create():
                raise _in_use(self._read(), just=True)
            return
        now = self._read()
        if now is not None and now.text != held.text:  # somebody was faster, or it woke up
            raise _in_use(now, just=True)
        self._folder.write(LOCK_FILE, self._mine.dump())
        self._settle()

    def _create(self) -> bool:
        if not self._folder.create(LOCK_FILE, self._mine.dump()):
            return False
        if not self._folder.is_local:  # others may have looked in the same moment
            self._settle()
        return True

    def _settle(self) -> None:
        """Wait until whoever had the output has noticed, and look whether anybody else took it in the same moment."""
        if self._exclusive:
            return
        time.sleep(_SETTLE * self._heartbeat_s)
        now = self._read()
        if now is None or now.token != self.token:
            raise _in_use(now, just=True)

    def _is_dead(self, held: Holder) -> bool:
        """Return whether a run has certainly ended; raise where it certainly has not."""
        left_here = held.pid == os.getpid() and held.token not in _held_here  # a run of this process that could not end
        if held.is_alive_here and not left_here:
            raise _in_use(held)
        return (
            held.is_dead_here
            or (held.is_alive_here and left_here)
            or (held.locked and self._exclusive and self._os_lock is not None)
        )

    def _watch(self, held: Holder) -> Holder | None:
        """Return the lock of a run that shows no sign of life, or None where it has ended."""
        deadline = time.monotonic() + _DEAD_AFTER * self._heartbeat_s  # a clock that stands while this machine sleeps
        while time.monotonic() < deadline:
            time.sleep(self._heartbeat_s / 4)
            now = self._read()
            if now is None:
                return None
            if now.text != held.text:
                raise _in_use(now)
        return held

    def _read(self) -> Holder | None:
        try:
            return Holder.parse(self._folder.read(LOCK_FILE))
        except FileNotFoundError:
            return None

    def _show_life(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            with suppress(OSError):
                began = clock()
                held = self._read()
                if held is not None and held.token not in {self.token, ""}:
                    return
                if clock() - began > self._heartbeat_s:  # it was asleep since it looked
                    continue
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                self._folder.write(LOCK_FILE, self._mine.dump())


def _in_use(held: Holder | None, *, just: bool = False) -> OutputInUseError:
    if held is None or just:
        return OutputInUseError(
            f"Another run has just begun on this output{'' if held is None else f': {held}'}.",
            "Wait until it has ended.",
        )
    hint = "Wait until it has ended, or stop it; the same command then goes on where it was."
    if held.watches:
        hint = "In its cluster the same command takes its place; `skllm-ray batches cancel OUTPUT` ends it elsewhere."
    return OutputInUseError(f"Another run writes to this output: {held}.", hint)
