"""``"namespace::model"`` to a backend spec. The only reader of ``SKLLMConfig`` on the way of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from skllm_ray.config import OPENAI_KEY_ENV, Secret, SecretRef, SKLLMConfig, checked_key, checked_org
from skllm_ray.errors import ConfigurationError, UnknownModelError, warn
from skllm_ray.llm.base import BackendSpec
from skllm_ray.tasks.base import ChatRequest

if TYPE_CHECKING:
    from skllm_ray.llm.api.retry import RetryPolicy

Options = Mapping[str, Any] | None


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
    openers = _FAMILIES[family]
    namespace, separator, name = model.partition("::")
    if not separator or (family == "gpt" and namespace.startswith("ft:")):  # ft:gpt-4o-mini:organisation::id
        _refuse_misspelt(model.strip(), openers)
        namespace, name = {"gpt": "openai", "vertex": "vertex"}[family], model
    if namespace not in openers:
        known = ", ".join(f"{known}::" for known in openers)
        raise UnknownModelError(f"Unknown namespace {namespace!r} in model={model!r}.", f"Known: {known}")
    if not name.strip():
        raise UnknownModelError(f"model={model!r} names no model.", f"Write {namespace}::<name>.")
    if request_options is not None and not isinstance(request_options, Mapping):
        raise ConfigurationError(f"request_options must be a dict or None; got {type(request_options).__name__}.")
    return openers[namespace](name.strip(), key, org, dict(request_options or {}))


def _refuse_misspelt(model: str, openers: Mapping[str, object]) -> None:
    """Raise ``UnknownModelError`` if a name without a namespace is a file's, or its namespace lacks a colon.

    A server behind OPENAI_BASE_URL may call its models what it likes, paths included.
    """
    namespace, colon, rest = model.partition(":")
    if colon and namespace.strip().lower() in {*openers, "gguf"}:
        name = rest.removeprefix("//") if "gguf" in namespace.lower() else rest  # gguf:///path, as URLs have it
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


def secrets_of(key: str | None) -> dict[str, Secret]:
    """Return the credentials that this process can hand to workers, by fingerprint."""
    found = [Secret(key) if key else None, SKLLMConfig.get_openai_key(), *SKLLMConfig.get_extra_headers().values()]
    return {secret.fingerprint: secret for secret in found if secret}


def left_behind(key: str | None) -> Secret | None:
    """Return the credential that an estimator, or its settings, came with, if its text stayed behind in a pickle."""
    carried = key if key is not None else SKLLMConfig._settings.openai_key
    return carried if isinstance(carried, Secret) and not carried else None


def warn_of_another_key(spec: BackendSpec, lost: Secret | None) -> None:
    """Say that another credential than the one that was left behind is used: it may be another account's."""
    reference = spec.credential
    if lost is not None and reference is not None and reference.fingerprint not in {"", lost.fingerprint}:
        warn(
            "The API key that this estimator came with is not known here, since no key travels with an estimator. The "
            "one that is configured here is used, and it is another one; set_params(key=…) says which to use."
        )


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


def _openai(name: str, key: str | None, org: str | None, options: dict[str, Any]) -> BackendSpec:
    if SKLLMConfig.get_gpt_url() is not None:
        warn(
            f"A custom URL is set (SKLLMConfig.set_gpt_url), but model={name!r} goes to OpenAI itself. For the custom "
            f"URL write model='custom_url::{name}'; to silence this, call SKLLMConfig.reset_gpt_url()."
        )
    return _openai_spec("openai", name, key, org, options, base_url=SKLLMConfig.get_openai_base_url())


def _azure(name: str, key: str | None, org: str | None, options: dict[str, Any]) -> BackendSpec:
    return _openai_spec(
        "azure",
        name,
        key,
        org,
        options,
        base_url=SKLLMConfig.get_azure_api_base(),
        api_version=SKLLMConfig.get_azure_api_version(),
    )


def _custom_url(name: str, key: str | None, org: str | None, options: dict[str, Any]) -> BackendSpec:
    return _openai_spec("custom_url", name, key, org, options, base_url=SKLLMConfig.get_gpt_url())


def _openai_spec(
    api: Literal["openai", "azure", "custom_url"],
    name: str,
    key: str | None,
    org: str | None,
    options: dict[str, Any],
    **endpoint: Any,
) -> BackendSpec:
    from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec

    # OPENAI_API_KEY is meant for OpenAI: a custom URL gets only a key that was set for this library.
    env = OPENAI_KEY_ENV[:1] if api == "custom_url" else OPENAI_KEY_ENV
    own = Secret(key) if key else SKLLMConfig.get_openai_key(include_standard_env=api != "custom_url")
    own = (
        checked_key("the API key", own) if own else left_behind(key)
    )  # it has no text here, but the driver or a worker may know it
    resolver = SKLLMConfig.get_secret_resolver() or ""
    reference = SecretRef("openai_key", env, "" if own is None else own.fingerprint, resolver)
    prefix = "" if api == "openai" else f"{api}::"
    return OpenAISpec(
        api=api,
        model=name,
        org=checked_org(org) if org else SKLLMConfig.get_openai_org(),
        key_ref=reference,
        request_options=options,
        limit=SKLLMConfig.get_rate_limit(prefix + name),
        patience=_patience(),
        price=SKLLMConfig.get_price(prefix + name),
        reply_cache=SKLLMConfig.get_reply_cache(),
        reply_cache_max_bytes=SKLLMConfig.get_reply_cache_max_bytes(),
        headers=tuple(
            (header, SecretRef(f"extra_headers[{header!r}]", (), value.fingerprint, resolver))
            for header, value in SKLLMConfig.get_extra_headers().items()
        ),
        **endpoint,
    )


def _patience() -> RetryPolicy:
    from skllm_ray.llm.api.retry import RetryPolicy

    told = SKLLMConfig.get_timeouts()
    return RetryPolicy(timeout_s=told.request_s, deadline_s=told.row_s, connect_s=told.connect_s)


def _gguf(name: str, key: str | None, org: str | None, options: dict[str, Any]) -> BackendSpec:
    from skllm_ray.llm.gpt.clients.llama_cpp.options import GGUFOptions
    from skllm_ray.llm.gpt.clients.llama_cpp.spec import GGUFSpec

    del key, org
    return GGUFSpec(
        name=_absolute(name),
        n_gpu_layers=SKLLMConfig.get_gguf_max_gpu_layers(),
        download_path=SKLLMConfig.get_gguf_download_path(),
        verbose=SKLLMConfig.get_gguf_verbose(),
        resources=SKLLMConfig.get_gguf_resources(name),
        options=GGUFOptions.parse(options),
    )


def _absolute(name: str) -> str:
    """Return a file's name as a path that means the same in every process; other names as they are."""
    from skllm_ray.llm.gpt.clients.llama_cpp.catalog import is_path, supported_models

    if name in supported_models or not is_path(name):
        return name
    return str(Path(name).expanduser().absolute())


def _vertex(name: str, key: str | None, org: str | None, options: dict[str, Any]) -> BackendSpec:
    from skllm_ray.llm.vertex.spec import VertexSpec

    del key, org
    return VertexSpec(
        model=name,
        project=SKLLMConfig.get_google_project(),
        location=SKLLMConfig.get_google_location(),
        request_options=options,
        limit=SKLLMConfig.get_rate_limit(name),
        patience=_patience(),
        price=SKLLMConfig.get_price(name),
        reply_cache=SKLLMConfig.get_reply_cache(),
        reply_cache_max_bytes=SKLLMConfig.get_reply_cache_max_bytes(),
    )


_FAMILIES: Final[dict[str, dict[str, Callable[..., BackendSpec]]]] = {
    "gpt": {"openai": _openai, "azure": _azure, "custom_url": _custom_url, "gguf": _gguf},
    "vertex": {"vertex": _vertex},
}
