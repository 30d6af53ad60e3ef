"""Sphinx configuration."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from notebook import page as notebook_page

project = "skllm-ray"
author = "The skllm-ray authors"
copyright = "2026, The skllm-ray authors"
version = release = installed_version("skllm-ray")

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_theme = "furo"
html_title = f"skllm-ray {release}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the types
numpydoc_show_class_members = False

ROOT = Path(__file__).parents[1]
PAGES = {"index": "README.md", "clusters": "cluster/README.md", "model_card": "", "development": "CONTRIBUTING.md"}
PAGES["model_card"] = "skllm_ray/llm/gpt/clients/llama_cpp/demo/MODEL_CARD.md"


def with_repository(app, name, source):  # noqa: ARG001
    """Put a file of the repository into the page that stands for it, and links to such files right; read notebooks."""
    if name.startswith("notebooks/"):
        source[0] = notebook_page(source[0], f"{Path(name).name}.ipynb")
    if name in PAGES:
        source[0] = (ROOT / PAGES[name]).read_text("utf-8") + "\n" + source[0]
    for page, file in PAGES.items():
        for link in (file, f"../{file}"):
            source[0] = source[0].replace(f"]({link})", f"]({page}.md)")
    source[0] = source[0].replace("](docs/", "](")


def setup(app):
    """Register it."""
    app.connect("source-read", with_repository)
