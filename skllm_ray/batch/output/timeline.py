"""When the replicas of a job's local models came and went: written down at the end of each run, shown by the report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.storage import Folder

_FOLDER: Final = f"{SYSTEM}/timeline"
_STEPS: Final = (
    ("loaded", "for the first block"),
    ("fetched", "loading the model"),
    ("placed", "for the model's files"),
    ("asked", "waiting for a node"),
)
"""What happens before a first answer, the last first, and what the time from then on is spent with."""


@dataclass(frozen=True)
class Event:
    """What became of a replica."""

    at: float
    """Seconds since 1970-01-01 UTC."""
    model: str
    what: str
    """"asked", "placed", "fetched" (the model's files), "loaded", "answered" (the first block), "drained", "lost",
    "died" or "left"."""
    replicas: int
    """How many there were, about then."""


def save_timeline(output: Folder, events: Sequence[tuple[float, str, str, int]]) -> None:
    """Write down what became of replicas in a run; nothing where there were none."""
    if events:
        text = "".join(json.dumps(event) + "\n" for event in events)
        with suppress(OSError):  # it is worth showing, and no more than that
            output.below(_FOLDER).write(f"{time.time_ns()}.jsonl", text.encode())


def read_timeline(output: Folder) -> list[Event]:
    """Return what became of replicas in all runs, in the order of time."""
    folder = output.below(_FOLDER)
    found = []
    for name in sorted(folder.names()):
        for line in folder.read_if_there(name).splitlines():
            with suppress(ValueError, TypeError):
                at, model, what, replicas = json.loads(line)
                found.append(Event(float(at), str(model), str(what), int(replicas)))
    return sorted(found, key=lambda event: event.at)


def first_row_parts(events: Sequence[Event]) -> list[tuple[str, float]]:
    """Return how long the first answers took from when a replica was asked for, in parts; nothing where unknown.

    Replicas that never came to an answer count for nothing: each step is the last one before the next.

    Examples
    --------
    >>> told = (10, "asked"), (51, "placed"), (58, "fetched"), (60, "loaded"), (61, "answered")
    >>> first_row_parts([Event(at, "m", what, 1) for at, what in told])
    [('waiting for a node', 41), ("for the model's files", 7), ('loading the model', 2), ('for the first block', 1)]
    """
    answered = next((event for event in events if event.what == "answered"), None)
    if answered is None:
        return []
    found, until = list[tuple[str, float]](), answered.at
    for what, told in _STEPS:
        times = [event.at for event in events if (event.model, event.what) == (answered.model, what)]
        since = max((at for at in times if at <= until), default=None)
        if since is None:
            return []
        found.insert(0, (told, until - since))
        until = since
    return found
