"""What waits to be ordered: lines of requests, in a file for each unit and step, in the output's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from skllm_ray.batch.output.part import SYSTEM
from skllm_ray.batch.storage import Folder
from skllm_ray.llm.provider_batches import Form

QUEUE: Final = f"{SYSTEM}/queue"
"""The folder in the output."""


@dataclass(frozen=True)
class Line:
    """A request that waits."""

    unit: str
    key: str
    """The hash of the request's key in the unit's journal."""
    form: str
    """The hash of how its answer is read."""
    most_usd: float
    tokens: int
    """About how many it puts into the provider's queue."""
    content: bytes
    """As the provider wants it, with the line's end."""


@dataclass
class UnitQueue:
    """The lines of a unit for one step, while they are gathered."""

    unit: str
    step: int
    forms: dict[str, Form] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def save(self, output: Folder) -> None:
        """Write them down; nothing where there are none."""
        if not self.lines:
            return
        head = {
            "unit": self.unit,
            "forms": {name: asdict(form) for name, form in self.forms.items()},
            "lines": [(line.key, line.form, line.most_usd, line.tokens) for line in self.lines],
        }
        content = [json.dumps(head).encode() + b"\n", *(line.content for line in self.lines)]
        output.below(QUEUE).write(f"{self.step}.{self.unit}.jsonl", b"".join(content))


@dataclass(frozen=True)
class QueuedFile:
    """A file of waiting lines."""

    name: str

    @property
    def step(self) -> int:
        """Which step of the plan the lines are for."""
        return int(self.name.partition(".")[0])

    @property
    def unit(self) -> str:
        """Whose lines they are."""
        return self.name.split(".")[1]

    def read(self, output: Folder) -> tuple[dict[str, Form], Iterator[Line]]:
        """Return the forms of the lines, and the lines."""
        first, *contents = output.below(QUEUE).read(self.name).splitlines(keepends=True)
        head = json.loads(first)
        forms = {name: Form.from_json(told) for name, told in head["forms"].items()}
        told: Iterator[tuple[Any, bytes]] = zip(head["lines"], contents, strict=True)
        return forms, (Line(self.unit, key, form, most, tokens, content) for (key, form, most, tokens), content in told)


def queued(output: Folder) -> list[QueuedFile]:
    """Return the files that wait, by step and unit."""
    return [QueuedFile(name) for name in sorted(output.below(QUEUE).names())]


def clear(output: Folder) -> None:
    """Forget what waits: it is gathered anew."""
    output.below(QUEUE).delete("")


def line_name(unit: str, key: str, form: str) -> str:
    """Return what a line is called at the provider."""
    return f"{unit}.{key}.{form}"


def name_parts(name: str) -> tuple[str, str, str] | None:
    """Return the unit, the key and the form in a line's name; None where it is none of ours.

    Examples
    --------
    >>> name_parts(line_name("0-0000000000-0000100", "ab12", "f0"))
    ('0-0000000000-0000100', 'ab12', 'f0')
    >>> name_parts("request-1") is None
    True
    """
    found = name.split(".")
    return (found[0], found[1], found[2]) if len(found) == 3 and all(found) else None
