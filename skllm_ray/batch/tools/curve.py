"""The plot of a threshold: how many labels it keeps, against how many of them differ in the sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from skllm_ray.batch.promise import PromiseFacts

_BLUE, _ORANGE = "#3b7dd8", "#d9822b"  # told apart with any colour vision
_PERCENT: Final = 100


def curve_plot(
    promise: PromiseFacts,
    figure_of: Callable[[float, float], Any],
    axes_of: Callable[..., Any],
    svg_of: Callable[[Any, str], str],
) -> str:
    """Return the curve of a promise's sample as SVG, with what was promised and where the threshold lies.

    Parameters
    ----------
    promise : PromiseFacts
        How it stands.
    figure_of, axes_of, svg_of : callable
        Make the page's figures, axes and SVG.
    """
    figure, certificate = figure_of(7.2, 2.6), promise.certified.certificate
    axes = axes_of(figure)
    points = [(0.0, 0.0), *promise.curve()]
    kept, differ = ([_PERCENT * value for value in column] for column in zip(*points, strict=True))
    axes.plot(kept, differ, color=_BLUE, drawstyle="steps-post")
    axes.axhline(_PERCENT * certificate.max_disagreement, color=_ORANGE, linestyle="--", linewidth=1)
    here = _PERCENT * float(certificate.keeps(promise.certified.scores).mean())
    axes.axvline(here, color=_ORANGE, linewidth=1)
    axes.set_xlabel("% of the sampled rows whose fast label would be kept", fontsize=9)
    axes.set_ylabel("% that differ", fontsize=9)
    axes.set_xlim(0, _PERCENT)
    axes.set_ylim(bottom=0)
    most = _PERCENT * certificate.max_disagreement
    return svg_of(figure, f"The threshold keeps {here:.0f}% of the sample; at most {most:g}% may differ")
