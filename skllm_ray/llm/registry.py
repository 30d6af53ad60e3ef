"""``"namespace::model"`` to a backend spec, by one table of providers.

A new vendor is one row of `PROVIDERS`, and one file, or a folder beside `gpt/clients/openai` or `vertex`: its spec, its
backend, and a function that makes the spec of a :class:`~skllm_ray.llm.base.ModelChoice` and of ``SKLLMConfig``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Final, Literal

from skllm_ray.config import DEFAULT_NAMESPACES, SKLLMConfig
from skllm_ray.errors import ConfigurationError, UnknownModelError, warn
from skllm_ray.llm.base import BackendSpec, ModelChoice
from skllm_ray.tasks.base import ChatRequest

Options = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Provider:
    """A row of the table."""

    family: Literal["gpt", "vertex"]
    """Whose estimators take its models: those named GPT…, or those named Vertex…"""
    spec: str
    """``module:function``: what makes the spec. It is imported when a model of the provider is asked for."""
    embedder: Literal["itself", "default", "unknown"]
    """Who makes the vectors of dynamic few-shot where no vectorizer is given: the model itself, the family's default
    model at the same provider, or nobody knows, so that one must be given."""
    tuning: Literal["none", "served", "to deploy"]
    """Whether models can be tuned there, and whether a tuned one answers at once, or must be deployed by hand."""


PROVIDERS: Final[dict[str, Provider]] = {
    "openai": Provider("gpt", "skllm_ray.llm.gpt.clients.openai.spec:openai", "default", "served"),
    "azure": Provider("gpt", "skllm_ray.llm.gpt.clients.openai.spec:azure", "unknown", "to deploy"),
    "custom_url": Provider("gpt", "skllm_ray.llm.gpt.clients.openai.spec:custom_url", "unknown", "served"),
    "gguf": Provider("gpt", "skllm_ray.llm.gpt.clients.llama_cpp.spec:gguf", "itself", "none"),
    "vertex": Provider("vertex", "skllm_ray.llm.vertex.spec:vertex", "default", "served"),
}
"""The providers, by namespace."""


def resolve(
    model: str, key: str | None = None, org: str | None = None, request_options: Options = None, family: str = "gpt"
) -> BackendSpec:
    """Return the spec of `model` under the settings of this process.

    Parameters
    ----------
    model : str
        ``namespace::name``, or a name alone for the family's default backend.
    key, org : str or None
        The estimator's own credentials; None takes the settings'.
    request_options : mapping or None
        Extra request parameters of the backend.
    family : {"gpt", "vertex"}, default="gpt"
        The estimator's family.

    Raises
    ------
    UnknownModelError
        If the namespace is unknown or the name is empty.
    ConfigurationError
        If `model` is not a string, or what the backend needs is not set.
    """
    if not isinstance(model, str):
        raise ConfigurationError(f"model must be a str; got {type(model).__name__}.")
    row, choice = _choose(model, family)
    if request_options is not None and not isinstance(request_options, Mapping):
        raise ConfigurationError(f"request_options must be a dict or None; got {type(request_options).__name__}.")
    module, _, function = row.spec.partition(":")
    make: Callable[[ModelChoice], BackendSpec] = getattr(import_module(module), function)
    return make(replace(choice, key=key, org=org, options=dict(request_options or {})))


def provider_of(model: str, family: str = "gpt") -> Provider:
    """Return the row of a model's provider; raises as :func:`resolve` does.

    Examples
    --------
    >>> provider_of("gguf::demo").embedder
    'itself'
    """
    return _choose(model, family)[0]


def family_of(model: str) -> Literal["gpt", "vertex"]:
    """Return whose estimators take a model; a name without a namespace is one of OpenAI's.

    Examples
    --------
    >>> family_of("vertex::gemini-3.5-flash"), family_of("gpt-5.4-mini")
    ('vertex', 'gpt')
    """
    namespace, separator, _ = model.partition("::")
    row = PROVIDERS.get(namespace) if separator else None
    return "gpt" if row is None else row.family


def _choose(model: str, family: str) -> tuple[Provider, ModelChoice]:
    """Return a model's row of the table, and its name without the namespace."""
    known = {namespace: row for namespace, row in PROVIDERS.items() if row.family == family}
    namespace, separator, name = model.partition("::")
    if not separator or namespace.startswith("ft:"):  # ft:gpt-4o-mini:organisation::id
        _refuse_misspelt(model.strip())
        namespace, name = DEFAULT_NAMESPACES[family], model
    if namespace not in known:
        shown = ", ".join(f"{one}::" for one in known)
        raise UnknownModelError(f"Unknown namespace {namespace!r} in model={model!r}.", f"Known: {shown}")
    if not name.strip():
        raise UnknownModelError(f"model={model!r} names no model.", f"Write {namespace}::<name>.")
    return known[namespace], ModelChoice(namespace, name.strip())


def _refuse_misspelt(model: str) -> None:
    """Raise ``UnknownModelError`` if a name without a namespace is a file's, or its namespace lacks a colon.

    A server behind OPENAI_BASE_URL may call its models what it likes, paths included.
    """
    namespace, colon, rest = model.partition(":")
    if colon and namespace.strip().lower() in PROVIDERS:
        name = rest.removeprefix("//")  # gguf:///path, as URLs have it
        raise UnknownModelError(
            f"model={model!r} names no model: two colons end a namespace.",
            f"Write model='{namespace.strip().lower()}::{name.strip()}'.",
        )
    if _is_file_name(model) and SKLLMConfig.get_openai_base_url() is None:
        name = model.removeprefix("file://").removeprefix("file:")
        raise UnknownModelError(
            f"model={model!r} is a file's name, and says not what runs it.",
            f"A GGUF file is written model='gguf::{name}', one on the hub gguf::owner/repo/file.gguf; a server's model "
            f"of this name custom_url::{name}.",
        )


def _is_file_name(name: str) -> bool:
    drive = len(name) > 2 and name[0].isalpha() and name[1] == ":" and name[2] in "\\/"  # C:\\models\\m.gguf
    return drive or name.startswith(("/", "./", "../", "~", ".\\", "..\\", "file:")) or name.lower().endswith(".gguf")


def warn_if_ended(spec: BackendSpec) -> None:
    """Warn of a model that its provider has turned off."""
    notice = spec.end_notice(datetime.now(tz=UTC).date())
    if notice is not None:
        warn(notice)


def count_prompt_tokens(spec: BackendSpec, requests: Sequence[ChatRequest]) -> tuple[list[int], bool]:
    """Return the tokens of each prompt, and whether they were counted with the model's own tokenizer.

    Elsewhere four bytes are taken for a token, and four tokens for what stands around a message.
    """
    found = spec.count_prompt_tokens(requests)
    if found is not None:
        return found, True
    return [
        round(sum(len(m["content"].encode("utf-8", "replace")) / 4 + 4 for m in r.messages)) for r in requests
    ], False
