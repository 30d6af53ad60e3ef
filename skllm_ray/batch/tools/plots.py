"""The plots of a report, as SVG that takes the page's colours."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from skllm_ray.batch.tools.part_rows import short
from skllm_ray.batch.tools.tally import BINS
from skllm_ray.batch.tools.truth_tally import ALL, TruthTally
from skllm_ray.errors import MissingExtraError

BLUE, ORANGE = "#3b7dd8", "#d9822b"  # told apart with any colour vision
_PANELS: Final = 12
_TITLE: Final = 24
_WIDTH: Final = 7.2
_ENOUGH: Final = 5
"""Answers below which a label has no curve."""


def figure_of(width: float, height: float) -> Any:
    """Return an empty figure.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError.for_extra("matplotlib", "report") from None
    return Figure(figsize=(width, height), layout="constrained")


def axes_of(figure: Any, *place: Any) -> Any:
    """Return a figure's axes."""
    axes = figure.add_subplot(*place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return axes


def svg_of(figure: Any, alt: str) -> str:
    """Return a figure as SVG, with what it shows in words."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": alt}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def confidence_plot(confidence: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return a histogram of probabilities, for all rows and for each of the commonest answers."""
    shown = sorted(confidence, key=lambda label: -int(confidence[label].sum()))[:_PANELS]
    whole = np.sum(list(confidence.values()), axis=0)
    panels = [("all rows", whole), *((label, confidence[label]) for label in shown)]
    figure, places = _grid(len(panels))
    edges = np.arange(BINS) / BINS
    for place, (title, counts) in enumerate(panels):
        axes = axes_of(figure, *places, place + 1)
        axes.bar(edges, counts, width=1 / BINS, align="edge", color=ORANGE if place == 0 else BLUE)
        _titled(axes, title)
        axes.set_xlim(0, 1)
        axes.locator_params(axis="y", nbins=3)
    return svg_of(figure, "How sure the model was: a histogram of probabilities, for all rows and for each label")


def precision_recall_plot(truth: TruthTally) -> str:
    """Return precision against recall, of all answers and of those with each of the commonest labels."""
    counted = {label: int(counts.sum()) for label, counts in truth.by_confidence.items() if label is not ALL}
    labels = sorted((label for label in counted if counted[label] >= _ENOUGH), key=lambda label: -counted[label])
    panels = [ALL, *labels[:_PANELS]]
    figure, places = _grid(len(panels))
    for place, label in enumerate(panels):
        axes = axes_of(figure, *places, place + 1)
        recall, precision = truth.precision_recall(label)
        axes.plot(recall, precision, color=ORANGE if label is ALL else BLUE, marker=".", markersize=3, linewidth=1.4)
        _titled(axes, "all rows" if label is ALL else label)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.05)
        axes.locator_params(nbins=3)
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    return svg_of(figure, "Precision against recall, for all rows and for each label")


def calibration_plot(truth: TruthTally) -> str:
    """Return how often answers are right, against how sure the model was."""
    bins = truth.certainty
    figure = figure_of(_WIDTH, 2.8)
    axes = axes_of(figure)
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
    sizes = [30 + 270 * (one.rows / truth.rows) for one in bins]
    axes.plot([one.probability for one in bins], [one.accuracy for one in bins], color=BLUE, linewidth=1)
    axes.scatter([one.probability for one in bins], [one.accuracy for one in bins], s=sizes, color=BLUE, clip_on=False)
    axes.set_xlabel("how sure the model was (mean probability)", fontsize=9)
    axes.set_ylabel("share that is right", fontsize=9)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    return svg_of(figure, "How often answers are right, against how sure the model was")


def rate_plot(units: Sequence[Mapping[str, Any]]) -> str:
    """Return rows per second over time."""
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
    figure = figure_of(_WIDTH, 2.2)
    axes = axes_of(figure)
    axes.fill_between(np.arange(len(rate)) * width / scale, rate, step="post", color=BLUE, alpha=0.8, linewidth=0)
    axes.set_xlabel(f"{unit} since the first row", fontsize=9)
    axes.set_ylabel("rows/s", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    return svg_of(figure, "Rows per second over time")


def _grid(n_panels: int) -> tuple[Any, tuple[int, int]]:
    columns = min(3, n_panels)
    lines = -(-n_panels // columns)
    return figure_of(_WIDTH, 0.4 + 1.6 * lines), (lines, columns)


def _titled(axes: Any, title: str) -> None:
    axes.set_title(short(title, _TITLE).replace("$", r"\$"), fontsize=10, loc="left")
