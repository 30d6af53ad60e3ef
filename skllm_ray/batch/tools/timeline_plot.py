"""The plot of a job's replicas over time: when they were asked for, loaded, lost and given back, above the rows/s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from skllm_ray.batch.output.timeline import Event
from skllm_ray.batch.tools.plots import BLUE, ORANGE, axes_of, figure_of, svg_of

_GREY: Final = "#888888"
_BINS: Final = 160
_GONE: Final = frozenset({"left", "lost", "died"})
_LONG_S: Final = 600.0


def replicas_over_time(events: Sequence[Event]) -> tuple[list[float], list[int], list[int]]:
    """Return times, and how many replicas there are from each on: loaded, and with those on their way.

    Examples
    --------
    >>> events = [Event(0.0, "m", "asked", 0), Event(40.0, "m", "loaded", 1), Event(90.0, "m", "left", 0)]
    >>> replicas_over_time(events)
    ([0.0, 40.0, 90.0], [0, 1, 0], [1, 1, 0])
    """
    times, loaded, wanted = list[float](), list[int](), list[int]()
    here = coming = 0
    for event in events:
        if event.what == "asked":
            coming += 1
        elif event.what == "loaded":
            here, coming = here + 1, max(0, coming - 1)
        elif event.what in _GONE:
            here = max(0, here - 1)
        else:
            continue
        times.append(event.at)
        loaded.append(here)
        wanted.append(here + coming)
    return times, loaded, wanted


def timeline_plot(events: Sequence[Event], units: Sequence[Mapping[str, Any]]) -> str:
    """Return the replicas of a job's local models over time as SVG, and the rows per second below.

    Parameters
    ----------
    events : sequence of Event
        What became of replicas; not empty.
    units : sequence of mapping
        The summaries of the finished units.
    """
    first = events[0].at
    last = max([event.at for event in events] + [float(unit["started"]) + float(unit["seconds"]) for unit in units])
    scale, name = (60.0, "minutes") if last - first > _LONG_S else (1.0, "seconds")
    figure = figure_of(7.2, 3.4)
    above, below = axes_of(figure, 2, 1, 1), axes_of(figure, 2, 1, 2)
    times, loaded, wanted = replicas_over_time(events)
    at = [(time - first) / scale for time in [*times, last]]
    above.step(
        at, [*wanted, wanted[-1]] if wanted else [0], where="post", color=_GREY, linestyle=":", label="asked for"
    )
    above.step(at, [*loaded, loaded[-1]] if loaded else [0], where="post", color=BLUE, label="loaded")
    for what, marker in (("lost", "x"), ("died", "x"), ("drained", "v")):
        here = [(event.at - first) / scale for event in events if event.what == what]
        if here:
            above.plot(here, [0.15] * len(here), marker, color=ORANGE, markersize=5, linestyle="none", label=what)
    above.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=5)
    above.set_ylabel("replicas", fontsize=9)
    above.locator_params(axis="y", integer=True)
    below.fill_between(*_rate(units, first, last, scale), step="mid", color=BLUE, alpha=0.8, linewidth=0)
    below.set_ylabel("rows/s", fontsize=9)
    below.set_xlabel(f"{name} since the first replica was asked for", fontsize=9)
    for axes in (above, below):
        axes.set_xlim(0, max(1e-9, (last - first) / scale))
        axes.set_ylim(bottom=0)
    most, n_lost = max(loaded, default=0), sum(event.what == "lost" for event in events)
    return svg_of(figure, f"Replicas over time: {most} at most, {n_lost} lost with their nodes; rows per second below")


def _rate(units: Sequence[Mapping[str, Any]], first: float, last: float, scale: float) -> tuple[Any, Any]:
    """Return times and rows per second, as if each unit's rows were done evenly while it was worked at."""
    edges = np.linspace(first, max(last, first + 1e-6), _BINS + 1)
    rate, width = np.zeros(_BINS), edges[1] - edges[0]
    for unit in units:
        start, seconds = float(unit["started"]), max(0.01, float(unit["seconds"]))
        covered = np.minimum(edges[1:], start + seconds) - np.maximum(edges[:-1], start)
        rate += float(unit["rows"]) * np.maximum(0.0, covered) / seconds / width
    return (edges[:-1] + width / 2 - first) / scale, rate
