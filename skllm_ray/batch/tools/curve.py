"""The plot of a threshold: how many labels it keeps, against how many of them differ in the sample."""

from __future__ import annotations

from typing import Final

from skllm_ray.batch.promise import PromiseFacts
from skllm_ray.batch.tools.plots import BLUE, ORANGE, axes_of, figure_of, svg_of

_PERCENT: Final = 100


def curve_plot(promise: PromiseFacts) -> str:
    """Return the curve of a promise's sample as SVG, with what was promised and where the threshold lies."""
    figure, certificate = figure_of(7.2, 2.6), promise.certified.certificate
    axes = axes_of(figure)
    points = [(0.0, 0.0), *promise.curve()]
    kept, differ = ([_PERCENT * value for value in column] for column in zip(*points, strict=True))
    axes.plot(kept, differ, color=BLUE, drawstyle="steps-post")
    axes.axhline(_PERCENT * certificate.max_disagreement, color=ORANGE, linestyle="--", linewidth=1)
    here = _PERCENT * float(certificate.keeps(promise.certified.scores).mean())
    axes.axvline(here, color=ORANGE, linewidth=1)
    axes.set_xlabel("% of the sampled rows whose fast label would be kept", fontsize=9)
    axes.set_ylabel("% that differ", fontsize=9)
    axes.set_xlim(0, _PERCENT)
    axes.set_ylim(bottom=0)
    most = _PERCENT * certificate.max_disagreement
    return svg_of(figure, f"The threshold keeps {here:.0f}% of the sample; at most {most:g}% may differ")
