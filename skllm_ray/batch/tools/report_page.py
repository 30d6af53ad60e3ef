"""The page of a job's report: counts of its parts, plots, and the HTML around them."""

from __future__ import annotations

import html
import io
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skllm_ray.batch.input.text_template import template_fields, texts_of
from skllm_ray.batch.promise import PromiseFacts
from skllm_ray.batch.tools.curve import curve_plot
from skllm_ray.batch.tools.pages import render
from skllm_ray.errors import MissingExtraError
from skllm_ray.plain_text import printable

_SHOWN: Final = 200
_BARS: Final = 25
_PANELS: Final = 12
_SAMPLES: Final = 4
_LEAST_SURE: Final = 10
_BINS: Final = 20
_BLUE, _ORANGE = "#3b7dd8", "#d9822b"  # told apart with any colour vision


class Tally:
    """What a report tells of the rows, counted part by part: the rows themselves are not kept.

    Parameters
    ----------
    manifest : mapping
        The job's, as plain data.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._prefix = str(manifest["output_prefix"])
        self._text, self._template = manifest["text_column"], manifest["text_template"]
        self._fields = template_fields(self._template) if self._template else frozenset([self._text])
        self._column = self._prefix + str(manifest["prediction_columns"][0])
        self._random = random.Random(0)
        self.rows = 0
        self.labels: Counter[str] = Counter()
        self.invalid = 0
        self.confidence: dict[str, np.ndarray[Any, Any]] = defaultdict(lambda: np.zeros(_BINS, np.int64))
        self.errors: Counter[str] = Counter()
        self.failures: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.samples: dict[str, list[str]] = defaultdict(list)
        self.least_sure: list[tuple[float, str, str]] = []
        self._seen: Counter[str] = Counter()

    def add(self, part: pa.Table) -> None:
        """Count a part."""
        self.rows += part.num_rows
        kinds = part.column(f"{self._prefix}error_kind")
        for kind, count in _counts(kinds):
            self.errors[kind] += count
            self._keep_failures(kind, part.filter(pc.fill_null(pc.equal(kinds, kind), False)))
        self.invalid += dict(_counts(kinds)).get("invalid_answer", 0)
        answers = part.column(self._column)
        if pa.types.is_list(answers.type) and pa.types.is_string(answers.type.value_type):
            answers_flat = pc.list_flatten(answers)
            self.labels.update(dict(_counts(answers_flat)))
            answers = pc.binary_join(answers, ", ")
        elif pa.types.is_string(answers.type) or pa.types.is_integer(answers.type):
            answers = answers.cast(pa.string())
            self.labels.update(dict(_counts(answers)))
        else:
            return
        self._keep_samples(part, answers)
        self._count_confidence(part, answers)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _texts(self, part: pa.Table, rows: Sequence[int]) -> list[str]:
        if not self._fields <= set(part.column_names):
            return ["" for _ in rows]
        some = part.select(sorted(self._fields)).take(pa.array(rows, pa.int64()))
        return [_short(text) for text in texts_of(some, self._text, self._template)]

    def _keep_failures(self, kind: str, failed: pa.Table) -> None:
        room = _SAMPLES - len(self.failures[kind])
        if room <= 0:
            return
        some = failed.slice(0, room)
        reasons = some.column(f"{self._prefix}error").to_pylist()
        texts = self._texts(some, range(some.num_rows))
        self.failures[kind] += [(text, _short(reason)) for text, reason in zip(texts, reasons, strict=True)]

    def _keep_samples(self, part: pa.Table, answers: pa.ChunkedArray) -> None:
        """Keep some rows of each answer, all equally likely: reservoirs, by a few draws of each part."""
        chosen = sorted(self._random.sample(range(part.num_rows), min(64, part.num_rows)))
        found = answers.take(pa.array(chosen, pa.int64())).to_pylist()
        for text, label in zip(self._texts(part, chosen), found, strict=True):
            if label is None or (len(self._seen) > _BARS and label not in self._seen):
                continue
            self._seen[label] += 1
            kept = self.samples[label]
            if len(kept) < _SAMPLES:
                kept.append(text)
            elif (place := self._random.randrange(self._seen[label])) < _SAMPLES:
                kept[place] = text

    def _count_confidence(self, part: pa.Table, answers: pa.ChunkedArray) -> None:
        sure = pc.fill_null(part.column(f"{self._prefix}probability"), float("nan")).to_numpy()
        known = ~np.isnan(sure)
        if not known.any():
            return
        bins = np.minimum((np.where(known, sure, 0) * _BINS).astype(int), _BINS - 1)
        encoded = answers.combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        for code, label in enumerate(encoded.dictionary.to_pylist()):
            self.confidence[label] += np.bincount(bins[known & (codes == code)], minlength=_BINS)
        lowest = np.argsort(np.where(known, sure, 2.0))[:_LEAST_SURE].tolist()
        texts, labels = self._texts(part, lowest), answers.take(pa.array(lowest, pa.int64())).to_pylist()
        rows = [(float(sure[i]), str(label), text) for i, label, text in zip(lowest, labels, texts, strict=True)]
        self.least_sure = sorted({*self.least_sure, *(row for row in rows if row[0] <= 1)})[:_LEAST_SURE]


def render_page(
    manifest: Mapping[str, Any], units: Sequence[Mapping[str, Any]], tally: Tally, *, remaining: Mapping[str, Any],
    promise: PromiseFacts | None = None,
) -> str:  # fmt: skip
    """Return the report of a job as one HTML page that loads nothing.

    Parameters
    ----------
    manifest : mapping
        The job's, with ``rows_total``, ``output`` and ``params``.
    units : sequence of mapping
        The summaries of the finished units.
    tally : Tally
        What was counted.
    remaining : mapping
        ``rows``, ``units`` and ``unreadable`` files with reasons.
    promise : PromiseFacts or None, default=None
        Of a cascade, how its promise stands.

    Raises
    ------
    MissingExtraError
        If matplotlib or jinja2 is not installed.
    """
    return render(
        "report.html.j2",
        manifest=manifest,
        tiles=_tiles(manifest, units, tally),
        remaining=remaining,
        plots=_plots(units, tally) | ({} if promise is None else {"curve": curve_plot(promise, _figure, _axes, _svg)}),
        promise={} if promise is None else promise.facts,
        alarm=promise is not None and promise.audit.alarm,
        tally=tally,
        samples=sorted(tally.samples.items(), key=lambda pair: -tally.labels[pair[0]])[:_BARS],
        slowest=sorted(units, key=lambda unit: -float(unit["seconds"]))[:_LEAST_SURE],
        nodes=_by(units, "node"),
        models=_by(units, "model"),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _tiles(manifest: Mapping[str, Any], units: Sequence[Mapping[str, Any]], tally: Tally) -> list[tuple[str, str, str]]:
    total, failed = int(manifest["rows_total"]), sum(tally.errors.values())
    known, unknown = (sum(float(unit[name]) for unit in units) for name in ("cost_usd", "unknown_usd"))
    unpriced = sum(int(unit["unpriced"]) for unit in units)
    busy = _busy_s(units)
    saved = sum(unit["duplicates"] + unit["reused"] for unit in units)
    notes = [
        f"{1000 * known / (tally.rows - unpriced):,.4f} per 1,000 rows" if known and tally.rows > unpriced else "",
        f"up to {unknown:,.2f} more for lost requests" if unknown else "",
        f"{unpriced:,} replies of unknown price" if unpriced else "",
    ]
    return [
        ("rows", f"{tally.rows:,}", f"of {total:,} ({tally.rows / max(1, total):.1%})"),
        ("failed", f"{failed:,}", f"{failed / max(1, tally.rows):.2%}; {tally.invalid:,} with an invalid answer"),
        ("rows/s", f"{tally.rows / busy:,.1f}" if busy else "–", f"over {_span(busy)} of work"),
        ("cost, USD", "not known" if unpriced and not known else f"{known:,.2f}", "; ".join(filter(None, notes))),
        ("prompt tokens", f"{sum(unit['prompt_tokens'] for unit in units):,}", ""),
        ("completion tokens", f"{sum(unit['completion_tokens'] for unit in units):,}", ""),
        ("not asked again", f"{saved:,}", "identical texts, and replies of interrupted runs"),
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


# --- plots --------------------------------------------------------------------------------------------------------


def _plots(units: Sequence[Mapping[str, Any]], tally: Tally) -> dict[str, str]:
    """Return the plots that there is something to show in, as SVG that takes the page's colours."""
    found = {}
    if tally.labels:
        found["labels"] = _label_bars(tally.labels)
    if tally.confidence:
        found["confidence"] = _confidence(tally)
    if units:
        found["rate"] = _rate(units)
    if tally.errors:
        found["errors"] = _bars(tally.errors.most_common(_BARS), _ORANGE, "rows")
    return found


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError.for_extra("matplotlib", "report") from None
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any, alt: str) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": alt}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor").replace("#123456", "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def _axes(figure: Any, *place: Any) -> Any:
    axes = figure.add_subplot(*place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return axes


def _bars(pairs: Sequence[tuple[str, int]], colour: str, what: str) -> str:
    figure = _figure(7.2, 0.5 + 0.3 * len(pairs))
    axes = _axes(figure)
    names = [_short(name, 40).replace("$", r"\$") for name, _ in pairs]
    places = range(len(pairs))
    bars = axes.barh(places, [count for _, count in pairs], color=colour)
    axes.set_yticks(places, names)
    axes.bar_label(bars, [f"{count:,}" for _, count in pairs], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return _svg(figure, f"{what} by kind: " + ", ".join(f"{name} {count}" for name, count in pairs[:8]))


def _label_bars(labels: Counter[str]) -> str:
    shown = labels.most_common(_BARS)
    others = sum(labels.values()) - sum(count for _, count in shown)
    if others:
        shown.append((f"{len(labels) - len(shown):,} others", others))
    return _bars(shown, _BLUE, "answers")


def _confidence(tally: Tally) -> str:
    shown = sorted(tally.confidence, key=lambda label: -int(tally.confidence[label].sum()))[:_PANELS]
    columns = min(3, len(shown) + 1)
    lines = -(-(len(shown) + 1) // columns)
    figure = _figure(7.2, 0.4 + 1.6 * lines)
    edges = np.arange(_BINS) / _BINS
    whole = np.sum(list(tally.confidence.values()), axis=0)
    for place, (title, counts) in enumerate(
        [("all rows", whole), *((label, tally.confidence[label]) for label in shown)]
    ):
        axes = _axes(figure, lines, columns, place + 1)
        axes.bar(edges, counts, width=1 / _BINS, align="edge", color=_ORANGE if place == 0 else _BLUE)
        axes.set_title(_short(title, 24).replace("$", r"\$"), fontsize=10, loc="left")
        axes.set_xlim(0, 1)
        axes.locator_params(axis="y", nbins=3)
    return _svg(figure, "How sure the model was: a histogram of probabilities, for all rows and for each label")


def _rate(units: Sequence[Mapping[str, Any]]) -> str:
    """Plot rows per second; pauses between runs are left out, and marked."""
    spans = sorted(
        (float(u["started"]), float(u["started"]) + max(0.01, float(u["seconds"])), u["rows"]) for u in units
    )
    first, last = spans[0][0], max(end for _, end, _ in spans)
    width = max((last - first) / 120, 0.5)
    rate = np.zeros(int((last - first) / width) + 1)
    for start, end, rows in spans:
        i, j = int((start - first) / width), int((end - first) / width)
        for k in range(i, j + 1):
            covered = min(end, first + (k + 1) * width) - max(start, first + k * width)
            rate[k] += rows * max(0.0, covered) / (end - start) / width
    scale, unit = (3600, "hours") if last - first > 7200 else (60, "minutes") if last - first > 120 else (1, "seconds")
    figure = _figure(7.2, 2.2)
    axes = _axes(figure)
    axes.fill_between(np.arange(len(rate)) * width / scale, rate, step="post", color=_BLUE, alpha=0.8, linewidth=0)
    axes.set_xlabel(f"{unit} since the first unit", fontsize=9)
    axes.set_ylabel("rows/s", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    return _svg(figure, "Rows per second over time")


def _counts(column: Any) -> list[tuple[str, int]]:
    found = pc.value_counts(column.drop_null()).to_pylist()
    return [(str(one["values"]), int(one["counts"])) for one in found]


def _short(text: object, most: int = _SHOWN) -> str:
    found = " ".join(printable("" if text is None else text)[: 4 * most].split())
    return found if len(found) <= most else found[: most - 1] + "…"


def _span(seconds: float) -> str:
    from skllm_ray.batch.job.progress_display import span

    return span(seconds)
