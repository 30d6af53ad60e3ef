"""Results come home: each line of a batch's results becomes a line of its unit's journal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from skllm_ray.batch.delivery.batch_records import attempt, read_intents, withdraw_intents
from skllm_ray.batch.delivery.gather import form_name
from skllm_ray.batch.delivery.order import Store
from skllm_ray.batch.delivery.queue import name_parts
from skllm_ray.batch.output.journal import answer_line, end_line, write_segment
from skllm_ray.batch.output.output_state import overlap
from skllm_ray.batch.output.part import JOURNAL
from skllm_ray.batch.output.progress import Progress
from skllm_ray.batch.storage import Folder
from skllm_ray.errors import SkllmRayError
from skllm_ray.llm.provider_batches import BatchApi, BatchService, LineResult, ProviderBatch
from skllm_ray.tasks.base import LOST, Reply, RowError

_SEGMENT: Final = 1000
_ABSENT: Final = RowError(
    "malformed_response", "The batch's results tell nothing of this request, which may be paid for."
)


@dataclass
class Collected:
    """What a batch brought."""

    bill: Progress = field(default_factory=Progress)
    """What its answers used and cost."""
    answered: int = 0
    again: int = 0
    """Requests that are to be asked again."""
    failed: int = 0
    """Requests that failed for good."""
    absent: int = 0
    double: int = 0
    foreign: int = 0
    fatal: str = ""
    """A failure that all requests would share."""

    @property
    def oddities(self) -> str:
        """What was odd about the results; empty where nothing was."""
        told = {
            "no result for {:,} requests, which may be paid for (--retry-errors asks again)": self.absent,
            "{:,} results that came twice": self.double,
            "{:,} results of requests that nobody sent": self.foreign,
        }
        return "; ".join(text.format(n) for text, n in told.items() if n)


class _Segments:
    """The journals of an order's units, written as an attempt of the order's own, always in the same files."""

    def __init__(self, output: Folder, run: str, check: Callable[[], None]) -> None:
        self._output = output
        self._run = run
        self._check = check
        self._numbers: dict[str, int] = defaultdict(int)
        self._lines: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        self._held = 0

    def add(self, unit: str, line: Mapping[str, Any]) -> None:
        self._lines[unit].append(line)
        self._held += 1
        if self._held >= _SEGMENT:
            self.flush()

    def flush(self) -> None:
        self._check()
        for unit, lines in self._lines.items():
            self._numbers[unit] += 1
            write_segment(self._output.below(f"{JOURNAL}/{unit}"), self._run, self._numbers[unit], lines)
        self._lines.clear()
        self._held = 0


class Collector:
    """Takes a batch's results into the journals. Done twice, it writes the same.

    Parameters
    ----------
    output : Folder
        The output.
    records : SubmissionStore
        Where orders are kept.
    check : callable
        Raises where the run may not go on.
    """

    def __init__(self, output: Folder, records: Store, check: Callable[[], None]) -> None:
        self._output = output
        self._records = records
        self._check = check

    def collect(self, record: ProviderBatch, api: BatchApi, service: BatchService) -> tuple[ProviderBatch, Collected]:
        """Return the record of a batch that has ended, and what it brought.

        Raises
        ------
        SkllmRayError
            If the results cannot be read now: the same may be tried again.
        """
        found = Collected()
        if record.state == "failed" and not record.results:  # no line ran
            withdraw_intents(self._output, record.key)
        else:
            self._take_home(record, api, service, found)
        self.on_step("collected")
        told = replace(record, collected=True, answered=found.answered, cost_usd=_cost(record, found))
        self._check()
        record = self._records.write(told) or told
        self.on_step("noted")
        return self.tidy(record, service), found

    def tidy(self, record: ProviderBatch, service: BatchService) -> ProviderBatch:
        """Remove the provider's files of a batch that is home, where they are not to be kept; return its record."""
        if not has_files_to_remove(record):
            return record
        with suppress(SkllmRayError):  # it is away: the next run tries again
            for name in (*record.results, record.data):
                if name:
                    service.remove(name)
            gone = replace(record, data=None, results=())
            return self._records.write(gone) or gone
        return record

    def on_step(self, step: str) -> None:
        """Told every step: ``line``, ``collected``, ``noted``."""

    # --- inside ---------------------------------------------------------------------------------------------------

    def _take_home(self, record: ProviderBatch, api: BatchApi, service: BatchService, found: Collected) -> None:
        left = read_intents(self._output, record.key)
        homes = sorted({unit for unit, _ in left})
        forms = {form_name(form): form for form in record.spec.forms}
        segments = _Segments(self._output, attempt(record.key), self._check)
        seen: set[tuple[str, str]] = set()
        for content in service.results(record):
            told = _told(content)
            parts = name_parts(api.name_of(told))
            if parts is None or parts[2] not in forms:
                found.foreign += 1
                continue
            unit, key, form = parts
            place = next(((home, key) for home in (unit, *homes) if _is_at(home, unit, key, left)), None)
            if place is None:
                found.double += (unit, key) in seen
                found.foreign += (unit, key) not in seen
                continue
            seen.add((unit, key))
            most = left.pop(place)
            segments.add(unit, _line(key, api.read(told, forms[form], record.spec.price), most, found))
            self.on_step("line")
        unrun = _tells_all_answers(record, len(seen))
        for (unit, key), most in left.items():
            for line in _lines_of_absent(key, most, found, unrun=unrun):
                segments.add(unit, line)
        segments.flush()


def has_files_to_remove(record: ProviderBatch) -> bool:
    """Return whether the provider holds files of a batch that is home, and is not to keep them."""
    return record.collected and not record.spec.keep_files and bool(record.data or record.results)


def _tells_all_answers(record: ProviderBatch, n_seen: int) -> bool:
    """Return whether the provider, which did not do the whole batch, counts no more answers than the results told.

    That it counts none is believed where it counts the lines, since else it may tell no counts at all, and names no
    files.
    """
    if record.state not in {"expired", "cancelled", "failed"} or n_seen < record.n_done:
        return False
    return record.n_done > 0 or (record.n_total == record.spec.n_lines and not record.results)


def _is_at(home: str, unit: str, key: str, left: Mapping[tuple[str, str], float]) -> bool:
    """Return whether a unit's journal tells of a request: of the unit itself, or of one that took its place."""
    return (home, key) in left and (home == unit or overlap(home, unit))


def _told(content: bytes) -> dict[str, Any]:
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _line(key: str, result: LineResult, most: float, found: Collected) -> dict[str, Any]:
    """Return the journal's line of what came of a request, and count it."""
    answer, bill = result.answer, found.bill
    usage, error = answer.usage, answer.error
    bill.asked += not result.unrun
    bill.prompt_tokens += usage.prompt_tokens
    bill.completion_tokens += usage.completion_tokens
    bill.cached_tokens += usage.cached_tokens
    bill.cost_usd += usage.cost_usd or 0.0
    if error is None:
        found.answered += 1
        bill.unpriced += usage.cost_usd is None
        bill.unknown_usd += most if usage.cost_usd is None else 0.0
        return answer_line(key, answer)
    if not _is_again(error):
        found.failed += 1
        return answer_line(key, answer)
    found.again += 1
    if error.fatal:
        found.fatal = found.fatal or f"{error.kind}: {error.message}"
    is_lost = error.kind in LOST and usage.cost_usd is None and not result.unrun
    bill.unknown_usd += most if is_lost else 0.0
    return end_line({key: (usage.cost_usd or 0.0, most if is_lost else 0.0)})


def _lines_of_absent(key: str, most: float, found: Collected, *, unrun: bool) -> list[dict[str, Any]]:
    """Return the journal's lines of a request of which the results tell nothing.

    Where the provider counts no more answers than it told, it did not run. Else it may be paid for: it fails for good,
    and is asked again only where the user wants that.
    """
    if unrun:
        found.again += 1
        return [end_line({key: (0.0, 0.0)})]
    found.absent += 1
    found.failed += 1
    found.bill.unknown_usd += most
    return [end_line({key: (0.0, most)}), answer_line(key, Reply(error=_ABSENT, attempts=1))]


def _is_again(error: RowError) -> bool:
    return error.retryable or error.fatal


def _cost(record: ProviderBatch, found: Collected) -> float | None:
    return None if record.spec.price is None and found.bill.unpriced else found.bill.cost_usd
