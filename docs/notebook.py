"""Notebooks: `python docs/notebook.py docs/notebooks/*.ipynb` runs them and keeps what their cells show.

They stand in the repository with their outputs, so that GitHub and the site show them, and nobody needs Jupyter. The
tests run them again. nbclient and myst-nb would do the same, with some forty packages besides.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PLACE = re.compile(r" at 0x[0-9a-f]+")


def run(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Run all code cells in one namespace, in a folder of their own; return each cell's outputs.

    The value of a cell's last expression is shown, and what the cell prints.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        return [_run("".join(cell["source"]), namespace) for cell in code_cells(notebook)]


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a notebook's cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _run(source: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), namespace)  # noqa: S102  the notebook's own code
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)  # noqa: S307  as above
    text = _ANSI.sub("", printed.getvalue())
    found: list[dict[str, Any]] = [{"name": "stdout", "output_type": "stream", "text": _lines(text)}] if text else []
    if value is not None:
        html = getattr(value, "_repr_html_", None)  # Jupyter's own protocol
        data = {"text/plain": _lines(_PLACE.sub("", repr(value)))} | (
            {} if html is None else {"text/html": _lines(html())}
        )
        found.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return found


def page(source: str, name: str) -> str:
    """Return a notebook's JSON as a page in MyST's Markdown, with a link to the notebook's file."""
    parts = []
    for cell in json.loads(source)["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"````python\n{text}\n````")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text")})
            html = "text/html" in data
            shown = "".join(data["text/html" if html else "text/plain"])
            kind = "{raw} html\n<div class='shown'>" if html else "{code-block} text\n:class: output\n\n"
            parts.append(f"````{kind}{shown}{'</div>' if html else ''}\n````")
    return "\n\n".join([*parts, f"{{download}}`This page as a notebook <{name}>`"])


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    for path in map(Path, sys.argv[1:]):
        told = json.loads(path.read_text("utf-8"))
        for number, (cell, outputs) in enumerate(zip(code_cells(told), run(told), strict=True), 1):
            cell.update(outputs=outputs, execution_count=number)
        path.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", "utf-8")
