"""The notebooks of the docs: run again, they show what they showed, but for figures that depend on the processor."""

from __future__ import annotations

import json
import re
import runpy
from difflib import SequenceMatcher
from pathlib import Path

import pytest

import skllm_ray

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
TOOL = runpy.run_path(str(DOCS / "notebook.py"))


def words(outputs: list[dict]) -> list[str]:
    """Return the words that a cell shows, without numbers, bars and boxes."""
    plain = ["".join(one.get("text") or one["data"]["text/plain"]) for one in outputs]
    return re.findall(r"[^\W\d_]{2,}", " ".join(plain))


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore::skllm_ray.errors.SkllmRayWarning")  # some show what a warning is about
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_what_it_showed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    notebook = json.loads(path.read_text("utf-8"))
    try:
        again = TOOL["run"](notebook)
    finally:
        skllm_ray.shutdown()
    for cell, outputs in zip(TOOL["code_cells"](notebook), again, strict=True):
        # Rows near a boundary, and which of several equal lines comes first, depend on the processor.
        alike = SequenceMatcher(None, words(cell["outputs"]), words(outputs), autojunk=False).ratio()
        assert alike > 0.7, (cell["source"], cell["outputs"], outputs)


def test_each_is_in_the_gallery_and_its_links_lead_somewhere() -> None:
    gallery = (DOCS / "gallery.md").read_text("utf-8")
    for path in NOTEBOOKS:
        assert f"notebooks/{path.stem}\n" in gallery
        cells = json.loads(path.read_text("utf-8"))["cells"]
        told = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        assert all((path.parent / link).exists() for link in re.findall(r"\]\(([^)#]+)\)", told))
