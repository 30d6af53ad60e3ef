"""What a process tells those that it starts, such as joblib's: which Ray to join, and as whose children."""

from __future__ import annotations

import os

_PARENT = "SKLLM_RAY_PARENT"


def announce(address: str, job: str) -> None:
    """Tell the processes that this one will start which cluster to join, and as whose children."""
    os.environ[_PARENT] = f"{os.getpid()} {address} {job}"


def withdraw() -> None:
    """Take back what `announce` told, if this process told it."""
    if os.environ.get(_PARENT, "").startswith(f"{os.getpid()} "):
        del os.environ[_PARENT]


def parent() -> tuple[str, str] | None:
    """Return the address and the job of the parent's Ray, if a parent told them."""
    pid, _, rest = os.environ.get(_PARENT, "").partition(" ")
    if not pid or pid == str(os.getpid()):
        return None
    address, _, job = rest.partition(" ")
    return address, job
