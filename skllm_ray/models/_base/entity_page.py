"""Texts with their entities as HTML: in Jupyter, or as a page that needs no other file."""

from __future__ import annotations

import html
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from skllm_ray.errors import SkllmRayWarning
from skllm_ray.tasks.ner import Span, flat

_STYLE: Final = """
.skllm-entities { --text: #1b1b1f; --page: #fff; --line: #d7d7de; --light: 88%; --tag: 28%;
  color: var(--text); background: var(--page); font: 16px/1.8 system-ui, sans-serif; padding: 1rem; }
@media (prefers-color-scheme: dark) {
  .skllm-entities { --text: #ececf1; --page: #17171c; --line: #3a3a44; --light: 26%; --tag: 82%; } }
[data-theme="dark"] .skllm-entities, [data-jp-theme-light="false"] .skllm-entities {
  --text: #ececf1; --page: #17171c; --line: #3a3a44; --light: 26%; --tag: 82%; }
[data-theme="light"] .skllm-entities, [data-jp-theme-light="true"] .skllm-entities {
  --text: #1b1b1f; --page: #fff; --line: #d7d7de; --light: 88%; --tag: 28%; }
.skllm-entities p { margin: 0; padding: .6rem 0; border-top: 1px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; }
.skllm-entities .legend { border: 0; }
.skllm-entities mark { color: inherit; background: hsl(var(--hue) 70% var(--light)); border-radius: .3em;
  padding: .1em .3em; -webkit-box-decoration-break: clone; box-decoration-break: clone;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.skllm-entities mark[title]:focus::after { content: " – " attr(title); font-size: .9em; font-style: italic; }
.skllm-entities mark b { color: hsl(var(--hue) 60% var(--tag)); font-size: .7em; margin-left: .4em; }
.skllm-entities .none { font-style: italic; opacity: .7; }
"""
_WHOLE_PAGE: Final = "body { margin: 0 } .skllm-entities { min-height: 100vh; box-sizing: border-box }"
"""The style of a page that has nothing else."""


class EntityPage:
    """Texts with their entities marked; hovering over one, or focusing it, shows the reason.

    Parameters
    ----------
    texts : sequence of str or None
        The texts; None where one is missing.
    spans : sequence of sequence of Span or None
        Each text's entities; None where there is no result.
    tags : sequence of str
        All types, in the order of the legend.

    Examples
    --------
    >>> page = EntityPage(["Ann & Bob"], [[Span(0, 3, "PERSON", "Ann", "a name")]], ["PERSON"])
    >>> "Ann" in page.to_html(), "&amp; Bob" in page.to_html()
    (True, True)
    """

    def __init__(
        self, texts: Sequence[str | None], spans: Sequence[Sequence[Span] | None], tags: Sequence[str]
    ) -> None:
        self._texts = list(texts)
        self._spans = list(spans)
        self._hues = {tag: round(position * 137.508 + 210) % 360 for position, tag in enumerate(tags)}

    def to_html(self) -> str:
        """Return a whole page."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Entities</title>'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
            f"<style>{_WHOLE_PAGE}</style></head><body>{self._repr_html_()}</body></html>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, which needs no other one.

        Parameters
        ----------
        path : str or path-like
            Where to.
        """
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        legend = " ".join(self._mark(tag, html.escape(tag)) for tag in self._hues)
        texts = "\n".join(map(self._paragraph, self._texts, self._spans))
        return f'<style>{_STYLE}</style><div class="skllm-entities"><p class="legend">{legend}</p>\n{texts}</div>'

    def _paragraph(self, text: str | None, spans: Sequence[Span] | None) -> str:
        if text is None or spans is None:
            shown = "missing text" if text is None else html.escape(text)
            return f'<p class="none">{shown}</p>'
        parts, position = [], 0
        for span in flat(spans):
            inner = f"{html.escape(text[span.start : span.end])}<b>{html.escape(span.tag)}</b>"
            parts += [html.escape(text[position : span.start]), self._mark(span.tag, inner, span.reasoning)]
            position = span.end
        return f"<p>{''.join(parts)}{html.escape(text[position:])}</p>"

    def _mark(self, tag: str, inner: str, reasoning: str = "") -> str:
        why = f' title="{html.escape(reasoning)}" tabindex="0"' if reasoning else ""
        return f'<mark style="--hue: {self._hues.get(tag, 0)}"{why}>{inner}</mark>'


def show(page: EntityPage) -> None:
    """Show a page in Jupyter; elsewhere, warn that there is nowhere to show it."""
    ipython: Any = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        ipython.display.display(page)
        return
    warnings.warn(
        "display_predictions=True shows the entities in Jupyter, and this is not it. To write a page, use "
        "display(X).save('entities.html').",
        SkllmRayWarning,
        stacklevel=3,
    )
