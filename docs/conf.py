"""Sphinx configuration."""

from importlib.metadata import version as installed_version

project = "skllm-ray"
author = "The skllm-ray authors"
copyright = "2026, The skllm-ray authors"
version = release = installed_version("skllm-ray")

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"skllm-ray {release}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the types
numpydoc_show_class_members = False
suppress_warnings = ["myst.xref_missing"]  # the README's links are relative to the repository
