"""An evaluation as files: a page to look at, a table of the candidates, and every row with every answer."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path

from skllm_ray.batch.tools.evaluate import Comparison
from skllm_ray.batch.tools.pages import render
from skllm_ray.batch.tools.scores import CertaintyBin, Difference, Labels, LabelScore


def share(value: float | None) -> str:
    """Return a share as a percentage; a dash where there is none."""
    return "–" if value is None else f"{value:.1%}"


def recall(value: LabelScore) -> str:
    """Return a label's recall with its 95% interval in percent; a dash where there is none.

    Examples
    --------
    >>> recall(LabelScore("a", 6, None, 0.0, 0.0, 0.0, 0.39))
    '0.0% (0–39)'
    """
    if value.recall_low is None or value.recall_high is None:
        return share(value.recall)
    return f"{share(value.recall)} ({100 * value.recall_low:.0f}–{100 * value.recall_high:.0f})"


def difference(value: Difference | None) -> str:
    """Return a difference of accuracies with its interval, in percentage points; a dash where there is none."""
    if value is None:
        return "–"
    return f"{100 * value.difference:+.1f} [{100 * value.low:+.0f}, {100 * value.high:+.0f}]"


def cost(usd_per_1000: float | None) -> str:
    """Return what a thousand rows cost in US dollars: a provider's charge, which local models have not.

    Examples
    --------
    >>> cost(0.0123), cost(0.0), cost(None)
    ('0.0123', 'no charge', 'not known')
    """
    if usd_per_1000 is None:
        return "not known"
    return f"{usd_per_1000:,.4f}" if usd_per_1000 else "no charge"


def span(value: CertaintyBin) -> str:
    """Return the probabilities of a bin."""
    return f"{value.low:.0%} and more" if value.high == 1.0 else f"{value.low:.0%} to {value.high:.0%}"


def write_html(found: Comparison, path: str) -> None:
    """Write an evaluation as one HTML page that loads nothing.

    Raises
    ------
    MissingExtraError
        If jinja2 is not installed.
    """
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    page = render(
        "evaluation.html.j2",
        found=found.evaluations,
        n_rows=len(found.texts),
        made=made,
        share=share,
        recall=recall,
        difference=difference,
        cost=cost,
        span=span,
    )
    Path(path).write_text(page, "utf-8")


def write_csv(found: Comparison, path: str) -> None:
    """Write a line of figures for each candidate and label, and one for all labels, as CSV."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(
            ["candidate", "label", "rows", "accuracy", "precision", "recall", "f1", "failed", "usd_per_1000"]
        )
        for one in found.evaluations:
            lines.writerow([one.model, "", one.rows, one.accuracy, "", "", one.macro_f1, one.failed, one.usd_per_1000])
            for label in one.scores:
                lines.writerow(
                    [one.model, label.label, label.rows, "", label.precision, label.recall, label.f1, "", ""]
                )


def write_rows(found: Comparison, path: str) -> None:
    """Write every row, its true label, and each candidate's answer and probability, as CSV."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        heads = [(f"{name}", f"{name} probability") for name in found.answers]
        lines.writerow(["text", "truth", *(head for pair in heads for head in pair)])
        first = next(iter(found.truth))
        for i, text in enumerate(found.texts):
            cells: list[str | float] = []
            for name, answers in found.answers.items():
                probability = found.probabilities[name][i]
                cells += [_joined(answers[i]), probability if probability >= 0 else ""]
            lines.writerow([text, _joined(found.truth[first][i]), *cells])


def _joined(labels: Labels | None) -> str:
    return "" if labels is None else ", ".join(sorted(labels))
