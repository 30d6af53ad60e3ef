"""The docs: every link leads somewhere, the tutorial's commands run, and no page is left out of the site."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import skllm_ray
from skllm_ray.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "cluster/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def links() -> list[tuple[Path, str]]:
    return [(page, link) for page in PAGES for link in LINK.findall(FENCED.sub("", page.read_text("utf-8")))]


@pytest.mark.parametrize(("page", "link"), [one for one in links() if not one[1].startswith("http")])
def test_a_link_leads_to_a_file_and_a_heading(page, link):
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    assert target.exists()
    if anchor:
        assert anchor in anchors(target)


def test_links_to_other_sites_are_encrypted():
    assert {link for _, link in links() if link.startswith("http:")} == set()


def test_every_page_is_in_the_site():
    listed = set(re.findall(r"^(\w+)$", (ROOT / "docs" / "index.md").read_text("utf-8"), re.MULTILINE))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} == listed


def steps(page: Path) -> list[tuple[str, str]]:
    """Return a page's Python blocks and the commands of its console blocks, in their order."""
    found = re.findall(r"^```(python|console)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [
        (kind, line)
        for kind, text in found
        for line in (text.replace("\\\n", "").splitlines() if kind == "console" else [text])
    ]


@pytest.mark.deep
@pytest.mark.usefixtures("local_mode")
def test_the_tutorial_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "SKLLM_CONFIG_OPENAI_KEY"):
        monkeypatch.delenv(name, raising=False)
    told = []
    for kind, text in steps(ROOT / "docs" / "tutorial.md"):
        if kind == "python":
            exec(compile(text, "tutorial", "exec"), {})  # noqa: S102  the page's own code
            continue
        program, *words = shlex.split(text.removeprefix("$ "))
        assert program == "skllm-ray"
        skllm_ray.init(local_mode=True)  # a command ends what it began
        done = CliRunner().invoke(main, words, env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        told.append(done.output)
    estimated, checked, without_neutral, *_, report = told
    assert "true labels are no candidates" in " ".join(checked.split())
    assert "4,000,000, as if they were like the 80 of the input" in " ".join(estimated.split())
    assert "have a true label that is no candidate" in " ".join(without_neutral.split())
    assert "wrote report.html" in report
    assert {file.name for file in tmp_path.iterdir()} >= {"reviews.csv", "evaluation.html", "report.html", "out"}
