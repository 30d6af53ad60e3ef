"""What is in an output already: parts, journals, and what both of them cost."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Final, TypeVar

from skllm_ray.batch.input.files import Unit
from skllm_ray.batch.output.journal import paid, split
from skllm_ray.batch.output.part import BESIDE, JOURNAL, SYSTEM, UnitSummary, summary_of
from skllm_ray.batch.output.progress import Progress
from skllm_ray.batch.storage import Folder
from skllm_ray.config import Price

_DONE: Final = f"{SYSTEM}/done"
_SAVE_S: Final = 5.0
_COMPACT_FILES: Final = 50
_LINES: Final = 10_000  # in a file of the log
_THREADS: Final = 16
_PART: Final = re.compile(r"part-(\d+-\d+-\d+)\.parquet")
_TORN: Final = re.compile(r"\.part-[\w.-]+\.tmp")
_KEY: Final = re.compile(r"(\d+)-(\d+)-(\d+)")
T = TypeVar("T")


class OutputState:
    """The parts of an output, as far as they belong to `units`, and what all that is there has cost.

    The summaries of finished units stand in the parts' own metadata. A log of them, written every few seconds, saves
    looking into each part; what the log tells of a part of another size is out of date, and the part is looked into.

    Parameters
    ----------
    output : Folder
        The output.
    units : sequence of Unit
        The job's.

    Attributes
    ----------
    summaries : dict of str to UnitSummary
        The finished units, by key.
    lost : dict of str to UnitSummary
        Units that were finished once and whose parts are gone: they are done again, but what they cost stays spent.
    journals : dict of str to dict of str to Progress
        What was paid for by the attempts that journals tell of, by unit and attempt.
    """

    def __init__(self, output: Folder, units: Sequence[Unit]) -> None:
        self.output = output
        self.units = units
        self.journals: dict[str, dict[str, Progress]] = {}
        self.read_journals()  # before the parts: a unit that ends meanwhile is then found in one of them, or in both
        self._run = uuid.uuid4().hex[:8]
        self._number = 0
        self._saved_at = time.monotonic()
        logged, known, unknown = self._logged(), dict[str, UnitSummary](), list[str]()
        for name, size in output.names().items():
            found = _PART.fullmatch(name)
            one = logged.get(found[1]) if found else None
            if one is not None and one.size == size:
                known[one.unit] = one
            elif found:
                unknown.append(found[1])
        with ThreadPoolExecutor(_THREADS) as pool:
            looked_into = list(pool.map(lambda key: summary_of(output, f"part-{key}.parquet"), unknown))
        self._unsaved = [one for one in looked_into if one is not None]  # else it is damaged, and done again
        known |= {one.unit: one for one in self._unsaved}
        beside = {key: summary_of(output, name) for key, name in BESIDE.items()}
        known |= {key: one for key, one in beside.items() if one is not None}
        self.lost = {key: one for key, one in logged.items() if key not in known}
        self._known = known
        self.summaries = {one.unit: one for unit in units if (one := known.get(unit.key)) is not None}

    @property
    def rows_done(self) -> int:
        """Rows in the parts."""
        return sum(one.rows for one in self.summaries.values())

    @property
    def reasons(self) -> dict[str, str]:
        """Why the first row of each kind of failure failed."""
        found: dict[str, str] = {}
        for one in self.summaries.values():
            for kind, reason in one.reasons.items():
                found.setdefault(kind, reason)
        return found

    @property
    def pending(self) -> Progress:
        """What was paid for that no part tells of: it stands in the journals."""
        return _sum(self._pending())

    @property
    def bill(self) -> Progress:
        """What all that is there has cost, whatever became of it."""
        return _sum(self._bills()).bill()

    def spent_usd(self, price: Price | None) -> float:
        """Return how much of a budget is used; replies that had no price yet are counted at `price`."""
        return sum(_usd(bill, price) for bill in self._bills())

    def read_journals(self) -> None:
        """See what the journals tell now."""
        keys = {name.partition("/")[0] for name in self.output.below(JOURNAL).names(recursive=True)}
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda key: (key, paid(self._journal(key))), sorted(keys))
        self.journals = dict(found)

    def expect(self, keys: Iterable[str]) -> None:
        """Note that the parts of some units are about to change, so that the log does not tell of the old ones."""
        doubtful = [replace(self._known[key], size=0) for key in keys]
        if doubtful:
            self._write(doubtful)

    def add(self, summary: UnitSummary) -> None:
        """Take a unit's summary, to be saved soon."""
        summary = replace(summary)  # it came from another process, and shares nothing yet
        self._known[summary.unit] = summary
        self.lost.pop(summary.unit, None)
        self._unsaved.append(summary)
        if summary.unit not in BESIDE:
            self.summaries[summary.unit] = summary

    def save(self, *, force: bool = False) -> None:
        """Write new summaries down, every few seconds."""
        now = time.monotonic()
        if not self._unsaved or not (force or now - self._saved_at > _SAVE_S):
            return
        with suppress(OSError):  # on a full disk: they are in the parts as well, and later runs find them there
            self._write(self._unsaved)
            self._unsaved = []
        self._saved_at = now

    def tidy(self) -> None:
        """Put in order what earlier runs left: for who holds the output's lock alone."""
        for name in (name for name in self.output.names() if _TORN.fullmatch(name)):  # killed while it was written
            self.output.delete(name)
        names = sorted(self.output.below(_DONE).names())
        if len(names) > _COMPACT_FILES + 2 * len(self._known) // _LINES:
            self._write([*self.lost.values(), *self._known.values()])
            for name in names:
                self.output.below(_DONE).delete(name)
        for key in sorted(
            set(self.journals) - {unit.key for unit in self.units} if self.journals else ()
        ):  # a limit has cut its unit in two
            into = [unit.key for unit in self.units if overlap(unit.key, key) and unit.key not in self.summaries]
            if into:
                split(self._journal(key), [self._journal(one) for one in into])
        self.read_journals()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _pending(self) -> Iterator[Progress]:
        for key, attempts in self.journals.items():
            settled = self._known[key].attempts if key in self._known else ()
            yield from (bill for attempt, bill in attempts.items() if attempt not in settled)

    def _bills(self) -> Iterator[Progress]:
        yield from self._pending()
        yield from (one.progress for one in (*self._known.values(), *self.lost.values()))

    def _journal(self, key: str) -> Folder:
        return self.output.below(f"{JOURNAL}/{key}")

    def _logged(self) -> dict[str, UnitSummary]:
        folder = self.output.below(_DONE)
        found: dict[str, UnitSummary] = {}
        for line in (line for text in _read_all(folder) for line in text.splitlines()):
            with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):  # the part itself tells
                one = UnitSummary.load(json.loads(line))
                found[one.unit] = one
        return found

    def _write(self, summaries: Iterable[UnitSummary]) -> None:
        for some in _batched(summaries, _LINES):
            self._number += 1
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{self._run}-{self._number:05d}.jsonl"
            text = "".join(json.dumps(one.dump(), ensure_ascii=False) + "\n" for one in some)
            self.output.below(_DONE).write(name, text.encode("utf-8", "replace"))


def _read_all(folder: Folder) -> Iterator[bytes]:
    """Yield the files of a folder, some of them at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for some in _batched(sorted(folder.names()), _THREADS):
            yield from pool.map(folder.read_if_there, some)


def _batched(items: Iterable[T], n: int) -> Iterator[list[T]]:
    left = iter(items)
    while some := list(islice(left, n)):
        yield some


def _sum(bills: Iterable[Progress]) -> Progress:
    total = Progress()
    for one in bills:
        total.add(one)
    return total


def _usd(bill: Progress, price: Price | None) -> float:
    by_tokens = price.cost_usd(bill.prompt_tokens, bill.completion_tokens) if bill.unpriced and price else 0.0
    return max(bill.cost_usd, by_tokens) + bill.unknown_usd


def overlap(one: str, other: str) -> bool:
    """Return whether two units have rows in common."""
    (a, start, n), (b, start_b, n_b) = (_numbers(key) for key in (one, other))
    return a == b and start < start_b + n_b and start_b < start + n


def _numbers(key: str) -> tuple[int, ...]:
    found = _KEY.fullmatch(key)
    return tuple(map(int, found.groups())) if found else (-1, 0, 0)
