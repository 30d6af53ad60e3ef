"""The page of a job's report: the figures, in words, and the HTML around them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup

from skllm_ray.batch.output.timeline import Event, first_row_parts
from skllm_ray.batch.promise import PromiseFacts
from skllm_ray.batch.tools import plots
from skllm_ray.batch.tools.curve import curve_plot
from skllm_ray.batch.tools.evaluation_page import share, span
from skllm_ray.batch.tools.explorer import RowSample, script
from skllm_ray.batch.tools.pages import render
from skllm_ray.batch.tools.part_rows import short
from skllm_ray.batch.tools.review import Corrections
from skllm_ray.batch.tools.tally import Tally
from skllm_ray.batch.tools.timeline_plot import timeline_plot
from skllm_ray.batch.tools.truth_tally import TruthTally

_BARS: Final = 25
_SLOWEST: Final = 10
_SHORT_S: Final = 9.95
"""Seconds below which a tenth of one counts."""
_MATRIX: Final = 12
"""Labels up to which all mistakes fit into one table."""


@dataclass(frozen=True)
class Counted:
    """What was counted of a job's parts."""

    tally: Tally
    rows: RowSample
    truth: TruthTally | None
    """None where no column holds true labels."""
    reviewed: Corrections | None = None
    """What people said of some rows; None before they said anything."""


def render_page(
    manifest: Mapping[str, Any], units: Sequence[Mapping[str, Any]], counted: Counted, *,
    remaining: Mapping[str, Any], promise: PromiseFacts | None = None, timeline: Sequence[Event] = (),
) -> str:  # fmt: skip
    """Return the report of a job as one HTML page that loads nothing.

    Parameters
    ----------
    manifest : mapping
        The job's, with ``rows_total``, ``output`` and ``params``.
    units : sequence of mapping
        The summaries of the finished units.
    counted : Counted
        What was counted.
    remaining : mapping
        ``rows``, ``units`` and ``unreadable`` files with reasons.
    promise : PromiseFacts or None, default=None
        Of a cascade, how its promise stands.
    timeline : sequence of Event, default=()
        What became of the replicas of local models.

    Raises
    ------
    MissingExtraError
        If matplotlib or jinja2 is not installed.
    """
    tally, truth = counted.tally, counted.truth
    code, code_hash = script()
    return render(
        "report.html.j2",
        manifest=manifest,
        heading=_heading(manifest),
        tiles=_tiles(manifest, units, tally),
        remaining=remaining,
        plots=_plots(units, tally, truth)
        | ({} if promise is None else {"curve": curve_plot(promise)})
        | ({"replicas": timeline_plot(timeline, units)} if timeline else {}),
        first_row=first_row_parts(timeline),
        promise={} if promise is None else promise.facts,
        alarm=promise is not None and promise.audit.alarm,
        tally=tally,
        truth=truth,
        truth_tiles=[] if truth is None else _truth_tiles(truth),
        matrix=None if truth is None else _matrix(truth),
        reviewed=counted.reviewed,
        answers=_bars(tally.labels),
        failures=_bars(tally.errors),
        explorer=counted.rows,
        rows=Markup(counted.rows.data()),  # noqa: S704  nothing in it can end the element that it stands in
        script=Markup(code), script_hash=code_hash,  # noqa: S704  a file of this package
        samples=sorted(tally.samples.items(), key=lambda pair: -tally.labels[pair[0]])[:_BARS],
        slowest=sorted(units, key=lambda unit: -float(unit["seconds"]))[:_SLOWEST],
        nodes=_by(units, "node"),
        models=_by(units, "model"),
        begun=_minute(datetime.fromisoformat(manifest["created"])),
        made=_minute(datetime.now(UTC)),
        share=share,
        span=span,
        short=short,
    )  # fmt: skip


def _heading(manifest: Mapping[str, Any]) -> str:
    """Return what was asked of how many rows, in plain words.

    Examples
    --------
    >>> _heading({"labels": ["a", "b"], "rows_total": 3000, "task": "ZeroShotGPTClassifier"})
    '2 labels for 3,000 rows'
    >>> _heading({"labels": None, "rows_total": 1, "task": "GPTSummarizer"})
    'GPTSummarizer for 1 row'
    """
    labels, rows = manifest["labels"], manifest["rows_total"]
    what = manifest["task"] if labels is None else f"{len(labels):,} label{'s' * (len(labels) != 1)}"
    return f"{what} for {rows:,} row{'s' * (rows != 1)}"


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _plots(units: Sequence[Mapping[str, Any]], tally: Tally, truth: TruthTally | None) -> dict[str, str]:
    """Return the plots that there is something to show in."""
    found = {}
    if tally.confidence:
        found["confidence"] = plots.confidence_plot(tally.confidence)
    if units:
        found["rate"] = plots.rate_plot(units)
    if truth is not None and truth.certainty:
        found["calibration"] = plots.calibration_plot(truth)
        found["precision"] = plots.precision_recall_plot(truth)
    return found


def _bars(counts: Counter[str]) -> list[tuple[str, int, float]]:
    """Return the commonest values, how often each stands there, and how long its bar is: 1 for the longest."""
    shown = counts.most_common(_BARS)
    others = counts.total() - sum(count for _, count in shown)
    if others:
        shown.append((f"{len(counts) - len(shown):,} others", others))
    longest = max((count for _, count in shown), default=1)
    return [(short(name), count, count / longest) for name, count in shown]


def _matrix(truth: TruthTally) -> list[tuple[str, list[tuple[str, int, float]]]] | None:
    """Return each truth with how often it has each answer, and that as a share; None where it would not fit."""
    names, counts = truth.matrix()
    if len(names) > _MATRIX:
        return None
    heads = [*names, ""]
    return [
        (name, [(head, n, n / max(1, sum(row))) for head, n in zip(heads, row, strict=True)])
        for name, row in zip(names, counts, strict=True)
    ]


def _truth_tiles(truth: TruthTally) -> list[tuple[str, str, str]]:
    low, high = truth.interval
    found = [
        ("right", share(truth.right / truth.rows), f"of {truth.rows:,} rows with a true label; 95% interval "
         f"{low:.1%} to {high:.1%}"),
        ("without any model", share(truth.baseline), "right, for whoever always answers the commonest true label"),
        ("mean F1 of the labels", share(truth.macro_f1), "macro-F1: rare labels count as much as common ones"),
    ]  # fmt: skip
    if truth.calibration_error is not None:
        told = "between how sure the model is and how often it is right, in the mean (calibration error)"
        found.append(("off by", share(truth.calibration_error), told))
    return found


def _tiles(manifest: Mapping[str, Any], units: Sequence[Mapping[str, Any]], tally: Tally) -> list[tuple[str, str, str]]:
    total, failed = int(manifest["rows_total"]), sum(tally.errors.values())
    known, unknown = (sum(float(unit[name]) for unit in units) for name in ("cost_usd", "unknown_usd"))
    unpriced = sum(int(unit["unpriced"]) for unit in units)
    read, written = (sum(int(unit[name]) for unit in units) for name in ("prompt_tokens", "completion_tokens"))
    busy = _busy_s(units)
    saved = sum(unit["duplicates"] + unit["reused"] for unit in units)
    notes = [
        f"{1000 * known / (tally.rows - unpriced):,.4f} per 1,000 rows" if known and tally.rows > unpriced else "",
        f"up to {unknown:,.2f} more for requests whose cost nobody told" if unknown else "",
        f"{unpriced:,} replies of unknown price" if unpriced else "",
        str(manifest.get("delivered", "")),
    ]
    cost = "not known" if unpriced and not known else f"{known:,.2f}"
    if (read or written) and not (known or unknown or unpriced):
        cost = "no charge"
    invalid = f"; {tally.invalid:,} of them gave an answer that was not allowed" if tally.invalid else ""
    return [
        ("rows", f"{tally.rows:,}", f"of {total:,} ({tally.rows / max(1, total):.1%}) are done"),
        ("failed", f"{failed:,}", f"{failed / max(1, tally.rows):.1%} of the rows have no result{invalid}"),
        ("rows per second", f"{tally.rows / busy:,.1f}" if busy else "–", f"over {_span(busy)} of work"),
        ("cost, USD", cost, "; ".join(filter(None, notes))),
        ("prompt tokens", f"{read:,}", "what the model read"),
        ("answer tokens", f"{written:,}", "what the model wrote"),
        ("not asked again", f"{saved:,}", "rows with the same text as another, and answers of interrupted runs"),
    ]


def _busy_s(units: Sequence[Mapping[str, Any]]) -> float:
    """Return the time in which at least one unit was worked on, in seconds."""
    total, until = 0.0, 0.0
    for start, seconds in sorted((float(unit["started"]), float(unit["seconds"])) for unit in units):
        total += max(0.0, start + seconds - max(start, until))
        until = max(until, start + seconds)
    return total


def _by(units: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, int, int, float]]:
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for unit in units:
        sums = found[str(unit[name])]
        sums[0] += 1
        sums[1] += unit["rows"]
        sums[2] += unit["seconds"]
    return [(key, int(n), int(rows), rows / seconds if seconds else 0.0) for key, (n, rows, seconds) in found.items()]


def _span(seconds: float) -> str:
    from skllm_ray.batch.job.progress_display import span as words

    return f"{seconds:.1f} s" if seconds < _SHORT_S else words(seconds)
