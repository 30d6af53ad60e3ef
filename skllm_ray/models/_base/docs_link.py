"""The ``?`` in an estimator's HTML: a link to its page in this library's documentation."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final

_SITE: Final = "SKLLM_CONFIG_DOCS_URL"
"""The environment variable with the address of the site that ``make docs`` builds."""
_PUBLIC: Final = ("classification", "text2text", "vectorization")
"""Modules that show estimators which live deeper."""


class DocsLink:
    """Tells scikit-learn where an estimator is documented, where it is known on which site."""

    _doc_link_module: ClassVar[str] = "skllm_ray"

    @property
    def _doc_link_template(self) -> str:
        site = os.environ.get(_SITE, "").rstrip("/")
        return f"{site}/api.html#{{path}}" if site.startswith(("http://", "https://", "file://")) else ""

    def _doc_link_url_param_generator(self) -> dict[str, Any]:
        kind = type(self)
        deep = kind.__module__.split(".")
        public = next((name for name in _PUBLIC if name in deep), None)
        module = kind.__module__ if public is None else f"skllm_ray.{public}"
        if kind.__name__ in {"CascadeClassifier", "DistilledClassifier"}:
            module = "skllm_ray.classification"
        return {"path": f"{module}.{kind.__name__}"}
