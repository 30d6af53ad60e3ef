"""Who holds an output: what its lock file tells of a run, and whether that run lives on this machine."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

_GONE: Final = frozenset("ZXx")  # states of a process that has ended and is still listed
_LOCAL_DISKS: Final = frozenset({
    "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "msdos", "ntfs3", "overlay",
    "ramfs", "reiserfs", "tmpfs", "vfat", "xfs", "zfs",
})  # fmt: skip
_MOUNTS_OF_OTHERS: Final = ("/Volumes/", "/net/", "/Network/")


@dataclass(frozen=True)
class Holder:
    """A run that holds an output, as its lock file tells. A file that is damaged tells nothing."""

    token: str = ""
    """Names the run: no two are alike."""
    beat: int = 0
    """Rises as long as the run lives."""
    host: str = ""
    boot: str = ""
    """The machine's start, and the namespace of its process numbers."""
    pid: int = 0
    began: str = ""
    """When the process began, so that another one with its number is not taken for it."""
    locked: bool = False
    """Whether the run holds the lock of the operating system besides, which ends with its process."""
    watches: bool = False
    """Whether it is the watcher of a job's batches, which a driver of its cluster takes the place of."""
    text: bytes = b""
    """The file itself."""

    @classmethod
    def of_this_process(cls, token: str, beat: int, *, locked: bool, watches: bool = False) -> Holder:
        """Return what this process writes."""
        return cls(token, beat, socket.gethostname(), _boot(), os.getpid(), _state_of(os.getpid())[1], locked, watches)

    @classmethod
    def parse(cls, text: bytes) -> Holder:
        """Return what a lock file tells."""
        try:
            told = json.loads(text or b"{}")
        except (ValueError, RecursionError):  # damaged, or being written just now
            told = {}
        if not isinstance(told, Mapping):
            told = {}
        plain = cls()
        held: dict[str, Any] = {}
        for one in fields(cls):
            value = told.get(one.name)
            if one.name != "text" and type(value) is type(vars(plain)[one.name]):
                held[one.name] = value
        return cls(**held, text=text)

    def dump(self) -> bytes:
        """Return the text of the lock file."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "text"}).encode()

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its process would be found here, if it lives."""
        return (
            bool(self.boot) and self.host == socket.gethostname() and self.boot in {_boot(), _boot().partition(" ")[0]}
        )

    @property
    def is_alive_here(self) -> bool:
        """Whether its process exists on this machine, even if it is stopped."""
        state, began = _state_of(self.pid)
        return self.is_of_this_machine and bool(began) and began == self.began and state not in _GONE

    @property
    def is_dead_here(self) -> bool:
        """Whether it has certainly ended: its process was one of this machine, since its last start, and is gone."""
        return self.is_of_this_machine and not self.is_alive_here

    def __str__(self) -> str:
        """Return who it is, in words."""
        if not self.pid:
            return "a process that its lock does not name"
        stopped = self.is_alive_here and _state_of(self.pid)[0] in "Tt"
        more = f", which is stopped (kill -CONT {self.pid} lets it go on)" if stopped else ""
        what = "the watcher of its batches, process" if self.watches else "process"
        return f"{what} {self.pid} on {self.host}{more}"


@lru_cache(maxsize=64)
def is_on_local_disk(path: str) -> bool:
    """Return whether a file lies on a disk of this machine alone, whose locks all its users see at once.

    Shared filesystems, and unknown ones, do not count.
    """
    if sys.platform != "linux":
        return not path.startswith(_MOUNTS_OF_OTHERS)
    real = os.path.realpath(path)
    best, kind = "", ""
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
            mount, _, about = line.partition(" - ")
            point = mount.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
                best, kind = point, about.split()[0]
    return kind in _LOCAL_DISKS


def _boot() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  it is no path
    return ""


def _state_of(pid: int) -> tuple[str, str]:
    """Return the state of a process, and when it began in ticks since the machine's start; empty where it is gone."""
    with suppress(OSError, IndexError):
        told = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return told[0], told[19]
    return "", ""
