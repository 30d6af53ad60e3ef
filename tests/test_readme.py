"""Every Python block of the README and the docs runs, or, where it needs a cloud, at least names what exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from skllm_ray.config import SKLLMConfig

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python( notest)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
for name in (
    "tutorial",
    "banking77",
):  # their blocks go on from one another; they have tests of their own
    PAGES.remove(ROOT / "docs" / f"{name}.md")
BLOCKS = [
    pytest.param(found[2], bool(found[1]), id=f"{page.name}-{number}")
    for page in PAGES
    for number, found in enumerate(BLOCK.finditer(page.read_text("utf-8")))
]


@pytest.mark.usefixtures("local_mode")
@pytest.mark.parametrize(("source", "needs_a_cloud"), BLOCKS)
def test_block(source: str, needs_a_cloud: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(source, "block", "exec")
    if needs_a_cloud:
        check_names(ast.parse(source))
    else:
        exec(code, {"__name__": "block"})  # noqa: S102 - the pages' own code


def check_names(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("skllm_ray"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "SKLLMConfig":
            assert hasattr(SKLLMConfig, node.attr)


def test_there_is_something_to_test() -> None:
    assert len(BLOCKS) >= 8


def test_every_message_that_troubleshooting_explains_is_one_of_the_library() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = [text for line in re.findall(r"^### (.*)$", page, re.MULTILINE) for text in re.findall(r"`([^`]+)`", line)]
    assert len(quoted) >= 25
    said = "\n".join(map(constants_of, (ROOT / "skllm_ray").rglob("*.py")))
    pieces = {piece.strip() for text in quoted if text != "AuthenticationError" for piece in text.split("…")}
    assert {piece for piece in pieces if piece not in said} == set()


def constants_of(file: Path) -> str:
    """Return all texts of a file, and of f-strings what is fixed, one per line."""
    tree = ast.parse(file.read_text("utf-8"))
    return "\n".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
