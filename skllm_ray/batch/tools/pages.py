"""HTML pages that load nothing: a template of this package, with a style that all share."""

from __future__ import annotations

import importlib.util
from importlib import resources
from typing import Any

from skllm_ray.errors import MissingExtraError
from skllm_ray.plain_text import printable


def require_pages() -> None:
    """Raise ``MissingExtraError`` unless jinja2 is installed."""
    if importlib.util.find_spec("jinja2") is None:
        raise MissingExtraError.for_extra("jinja2", "report")


def render(template: str, **values: Any) -> str:
    """Return a page: all texts in it are shown, and none is obeyed as markup.

    Parameters
    ----------
    template : str
        The name of a file beside this one.
    **values
        What the template shows.

    Raises
    ------
    MissingExtraError
        If jinja2 is not installed.
    """
    require_pages()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    files = resources.files(__package__)
    style = Markup(files.joinpath("style.css").read_text("utf-8"))  # noqa: S704  a file of this package
    return environment.from_string(files.joinpath(template).read_text("utf-8")).render(style=style, **values)


def _shown(value: Any) -> Any:
    """Return a value of the page; what is markup already stays."""
    return printable(value) if type(value) is str else value
