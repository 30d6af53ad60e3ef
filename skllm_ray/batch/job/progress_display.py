"""What a person sees of a running job: a live table in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from skllm_ray.batch.job.budget import Snapshot
from skllm_ray.batch.output.progress import Progress
from skllm_ray.execution.cluster_status import ClusterStatus
from skllm_ray.plain_text import printable

if TYPE_CHECKING:
    from skllm_ray.execution.pool_state import Standing
    from skllm_ray.execution.rate_limiter import BucketInfo

_LINE_S: Final = 10.0
_WINDOW_S: Final = 60.0
_FEWEST_STEPS: Final = 6  # times at which rows were done, from which a rate is told
_KINDS: Final = 4
_FULL: Final = 0.9


@dataclass
class State:
    """How far a job is."""

    model: str
    rows_total: int
    rows_before: int
    """Rows that earlier runs did."""
    n_units: int = 0
    units_done: int = 0
    n_tasks: int = 0
    progress: Progress = field(default_factory=Progress)
    waiting_for: str = ""
    stopped: str = ""
    reason: str = ""
    """Why the first row failed that did."""
    status: ClusterStatus = field(default_factory=ClusterStatus)
    delivery: str = ""
    """How the batches at the provider stand, if there are any."""
    delivered: Progress = field(default_factory=Progress)
    """What they have used and cost in this run."""
    began: float = field(default_factory=time.monotonic)
    _past: deque[tuple[float, int]] = field(default_factory=deque)
    _before: Progress = field(default_factory=Progress)
    _ledger: str = ""

    def see(self, snapshot: Snapshot | None) -> None:
        """Take the ledger's numbers; they add up where its process died and another one began to count."""
        if snapshot is None:
            return
        if snapshot.ledger != self._ledger:
            self._before, self._ledger = self.progress, snapshot.ledger
        self.progress = Progress()
        self.progress.add(self._before)
        self.progress.add(snapshot.progress)
        self.waiting_for, self.stopped = snapshot.waiting_for, snapshot.stopped
        self.reason = self.reason or snapshot.reason
        now, rows = time.monotonic(), self.progress.rows
        if not self._past:
            self._past.append((self.began, 0))
        if rows != self._past[-1][1]:
            self._past.append((now, rows))
        while len(self._past) > _FEWEST_STEPS and self._past[1][0] < now - _WINDOW_S:
            self._past.popleft()

    @property
    def rows(self) -> int:
        """Rows that are done."""
        return min(self.rows_total, self.rows_before + self.progress.rows)

    @property
    def rate(self) -> float:
        """Rows per second over the last minute, or longer: rows are told a block at a time, and a few blocks count."""
        if not self._past:
            return 0.0
        since, rows = self._past[0]
        return (self.progress.rows - rows) / max(1e-3, time.monotonic() - since)

    @property
    def eta_s(self) -> float | None:
        """Seconds that are left at this rate; None where there is none."""
        rate = self.rate
        return (self.rows_total - self.rows) / rate if rate > 0 else None

    def facts(self) -> dict[str, str]:
        """Return what is worth telling, in words."""
        done = Progress()
        for part in (self.progress, self.delivered):
            done.add(part)
        found = {
            "batches": self.delivery,
            "rate": f"{self.rate:,.1f} rows/s" if self.rate else "",
            "tokens": f"{done.prompt_tokens:,} in, {done.completion_tokens:,} out",
            "cost": cost_of(done) if done.asked or done.cost_usd else "",
        }
        if self.units_done < self.n_units:
            found["workers"] = f"{self.n_tasks} at {self.n_units - self.units_done:,} of {self.n_units:,} parts"
        if self.status.replicas:
            found["replicas"] = "; ".join(replicas_in_words(*one) for one in self.status.replicas)
        if done.reused or done.duplicates:
            found["not asked again"] = f"{done.reused:,} paid before, {done.duplicates:,} same texts"
        if done.errors:
            kinds = done.errors.most_common(_KINDS)
            found["failed rows"] = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
            if self.reason:
                found["first reason"] = self.reason
        if self.stopped:
            found["stopping"] = self.stopped
        elif self.waiting_for or self.status.quotas:
            reasons = [self.waiting_for, *map(held_up, self.status.quotas)]
            found["held up"] = "; ".join(filter(None, reasons))
        return {name: printable(value) for name, value in found.items() if value}


class Screen(Protocol):
    """Shows a job's state."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def show(self, state: State) -> None:
        """Show it, as often as is good for this kind of screen."""
        ...


class LineScreen:
    """Writes a line now and then.

    Parameters
    ----------
    write : callable
        Takes a line.
    every_s : float, default=10
        Seconds between two lines.
    """

    def __init__(self, write: Callable[[str], object], every_s: float = _LINE_S) -> None:
        self._write = write
        self._every_s = every_s
        self._last: tuple[float, int] = (0.0, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def show(self, state: State) -> None:
        """Write a line if it is time, and at the end."""
        ended = state.rows >= state.rows_total or (state.units_done and state.units_done == state.n_units)
        now = time.monotonic()
        if (now - self._last[0] < self._every_s and not ended) or self._last[1] == state.units_done == state.n_units:
            return
        self._last = now, state.units_done
        share = 100 * state.rows / max(1, state.rows_total)
        facts = "; ".join(f"{name}: {value}" for name, value in state.facts().items())
        left = f"; ETA {span(state.eta_s)}" if state.eta_s is not None and not ended else ""
        self._write(f"{state.rows:,} of {state.rows_total:,} rows ({share:.1f}%){left}; {facts}")


class LiveScreen:
    """Keeps a bar and a few lines up to date in a terminal."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, state: State) -> None:
        """Show it now."""
        self._live.update(self._page(state))

    def _page(self, state: State) -> Any:
        from rich.columns import Columns
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Columns(
            [
                Text(printable(state.model), style="bold"),
                ProgressBar(total=max(1, state.rows_total), completed=state.rows, width=40),
                Text(f"{state.rows:,} / {state.rows_total:,} rows"),
                Text(f"ETA {span(state.eta_s)}" if state.eta_s is not None else "", style="cyan"),
                Text(span(time.monotonic() - state.began), style="dim"),
            ]
        )
        table = Table.grid(padding=(0, 2))
        for name, value in state.facts().items():
            style = {"failed rows": "red", "held up": "yellow", "stopping": "yellow"}.get(name, "")
            table.add_row(Text(name, style="dim"), Text(value, style=style))
        return Group(head, table)


class NoScreen:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def show(self, state: State) -> None:
        """Show nothing."""


def open_screen(show: bool) -> Screen:
    """Return a live screen where a person looks at the terminal, else none."""
    return LiveScreen() if show and sys.stderr.isatty() else NoScreen()


def held_up(bucket: BucketInfo) -> str:
    """Return which limit makes requests wait; empty where that is not known."""
    if bucket.paused_s:
        return f"waiting for quota: the server refuses, for {span(bucket.paused_s)} more; {bucket.waiting:,} waiting"
    if not bucket.waiting:
        return ""
    limits = (
        (bucket.requests_used, bucket.requests_per_minute, "requests"),
        (bucket.tokens_used, bucket.tokens_per_minute, "tokens"),
    )
    full = [f"{n:,} of {most:,} {what}/min" for n, most, what in limits if most and n >= _FULL * most]
    if full:
        return f"waiting for quota: {', '.join(full)}; {bucket.waiting:,} waiting"
    if bucket.in_flight >= _FULL * bucket.concurrency:
        declared = bucket.max_concurrency is not None
        why = "max_concurrency" if declared else "answers: as many requests are in flight as the server has taken well"
        return f"waiting for {why}: {bucket.in_flight:,} of {bucket.concurrency:,} requests in flight"
    paced = [f"{most:,} {what}/min" for _, most, what in limits if most and what in bucket.paced_by]
    return f"keeping to the pace of {', '.join(paced)}; {bucket.waiting:,} waiting" if paced else ""


def replicas_in_words(model: str, now: Standing) -> str:
    """Return how many replicas a model has, and how many come and go.

    Examples
    --------
    >>> from skllm_ray.execution.pool_state import Standing
    >>> replicas_in_words("gguf::demo", Standing(replicas=3, nodes=2, waiting=1, leaving=1))
    '3 of gguf::demo on 2 nodes (1 waiting for room, 1 leaving)'
    """
    moving = ((now.waiting, "waiting for room"), (now.loading, "loading"), (now.leaving, "leaving"))
    told = ", ".join(f"{n:,} {what}" for n, what in moving if n)
    nodes = f"{now.nodes:,} node{'s' if now.nodes != 1 else ''}"
    return f"{now.replicas:,} of {model} on {nodes}" + (f" ({told})" if told else "")


def cost_of(done: Progress) -> str:
    """Return what something did cost, in words that show no figure which is not known.

    Examples
    --------
    >>> cost_of(Progress(cost_usd=1.5)), cost_of(Progress(unpriced=3)), cost_of(Progress(cost_usd=1.5, unpriced=3))
    ('1.5000 USD', 'price not known', '1.5000 USD and more of unknown price')
    >>> cost_of(Progress(completion_tokens=9)), cost_of(Progress())
    ('no charge', '0.0000 USD')
    """
    if done.unpriced and not done.cost_usd:
        return "price not known" + (f", counted as {done.unknown_usd:,.4f} USD" if done.unknown_usd else "")
    if not done.cost_usd and not done.unknown_usd and (done.prompt_tokens or done.completion_tokens):
        return "no charge"  # what a provider charges for has a cost, or an unknown price
    lost = f", and up to {done.unknown_usd:,.4f} for requests whose cost nobody told" if done.unknown_usd else ""
    return f"{done.cost_usd:,.4f} USD" + (" and more of unknown price" if done.unpriced else "") + lost


def span(seconds: float | None) -> str:
    """Return a time in words, such as ``2 h 05 min``.

    Examples
    --------
    >>> span(7500)
    '2 h 05 min'
    """
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
