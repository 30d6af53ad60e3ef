"""Settings of this process: credentials, endpoints, GGUF placement, limits."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from skllm_ray.config.checks import (
    _at_least,
    _fault_in,
    _flag,
    _from_environment,
    _gpu_layers,
    _may_hold_secret,
    _number,
    _path,
    _refuse,
    _seconds,
    checked_key,
    checked_url,
)
from skllm_ray.config.secret import Secret, _text
from skllm_ray.config.values import GGUFResources, Price, RateLimit, SecretRef, Timeouts, lasting
from skllm_ray.errors import ConfigurationError

__all__ = ["GGUFResources", "Price", "RateLimit", "SKLLMConfig", "Secret", "SecretRef", "Timeouts"]


@lasting
@dataclass(frozen=True, slots=True)
class Settings:
    """What was set in a process. It travels with estimators, without any credential."""

    openai_key: Secret | None = None
    openai_org: str | None = None
    azure_api_base: str | None = None
    azure_api_version: str | None = None
    google_project: str | None = None
    google_location: str | None = None
    google_bucket: str | None = None
    tuning_store: str | None = None
    gpt_url: str | None = None
    gguf_download_path: str | None = None
    gguf_max_gpu_layers: int | None = None
    gguf_verbose: bool | None = None
    show_progress: bool | None = None
    reply_cache: str | None = None
    reply_cache_max_bytes: int | None = None
    secret_resolver: str | None = None
    timeouts: Timeouts | None = None
    rate_limits: tuple[tuple[str, RateLimit], ...] = ()
    prices: tuple[tuple[str, Price], ...] = ()
    gguf_resources: tuple[tuple[str | None, GGUFResources], ...] = ()
    extra_headers: tuple[tuple[str, Secret], ...] = ()


_Settings = Settings  # its name in the first release's pickles
_ENV = {
    "openai_key": "SKLLM_CONFIG_OPENAI_KEY",
    "openai_org": "SKLLM_CONFIG_OPENAI_ORG",
    "azure_api_base": "SKLLM_CONFIG_AZURE_API_BASE",
    "azure_api_version": "SKLLM_CONFIG_AZURE_API_VERSION",
    "google_project": "GOOGLE_CLOUD_PROJECT",
    "google_location": "GOOGLE_CLOUD_LOCATION",
    "google_bucket": "SKLLM_CONFIG_GOOGLE_BUCKET",
    "tuning_store": "SKLLM_CONFIG_TUNING_STORE",
    "gpt_url": "SKLLM_CONFIG_GPT_URL",
    "gguf_download_path": "SKLLM_CONFIG_GGUF_DOWNLOAD_PATH",
    "gguf_max_gpu_layers": "SKLLM_CONFIG_GGUF_MAX_GPU_LAYERS",
    "gguf_verbose": "SKLLM_CONFIG_GGUF_VERBOSE",
    "show_progress": "SKLLM_CONFIG_SHOW_PROGRESS",
    "reply_cache": "SKLLM_CONFIG_REPLY_CACHE",
    "reply_cache_max_bytes": "SKLLM_CONFIG_REPLY_CACHE_MAX_BYTES",
    "secret_resolver": "SKLLM_CONFIG_SECRET_RESOLVER",
}
_DEFAULTS: dict[str, Any] = {
    "azure_api_version": "2024-10-21",
    "google_location": "global",
    "tuning_store": "~/.skllm/tuning",
    "gguf_max_gpu_layers": 0,
    "gguf_verbose": False,
    "show_progress": True,
    "reply_cache_max_bytes": 1_000_000_000,
}

_OWN_HEADERS = {"host", "connection", "content-length", "content-type", "transfer-encoding", "accept-encoding"}

OPENAI_KEY_ENV = (_ENV["openai_key"], "OPENAI_API_KEY")


_own = Settings()
_setting = threading.Lock()
_brought: ContextVar[Settings | None] = ContextVar("skllm_ray_brought_settings", default=None)
"""The settings that an estimator brought with it from another process, while this thread works for that estimator."""
_logger = logging.getLogger(__name__)


def _joined(own: Settings, brought: Settings | None) -> Settings:
    """Return `own` and, for what is not set there, `brought`: setting by setting, and model by model."""
    if brought is None or own is brought:
        return own
    pairs = {name: (getattr(own, name), getattr(brought, name)) for name in (one.name for one in fields(own))}
    return Settings(**{name: _first(mine, theirs) for name, (mine, theirs) in pairs.items()})


def _first(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, tuple):
        return tuple({**dict(theirs), **dict(mine)}.items())
    return theirs if mine is None else mine


class _ReadableSettings(type):
    """Gives the class itself a table as its repr."""

    @property
    def _settings(cls) -> Settings:
        """What was set in this process and, while a thread works for an estimator from another one, what it brought."""
        return _joined(_own, _brought.get())

    def __repr__(cls) -> str:
        lines = [f"  {name} = {_shown(name)}" for name in _ENV]
        settings = cls._settings
        lines.append(f"  timeouts = {settings.timeouts or Timeouts()}")
        lines += [f"  rate_limit[{model!r}] = {limit}" for model, limit in settings.rate_limits]
        lines += [f"  price[{model!r}] = {price}" for model, price in settings.prices]
        lines += [f"  gguf_resources[{model or 'all'!r}] = {given}" for model, given in settings.gguf_resources]
        lines += [f"  extra_headers[{name!r}] = ***" for name, _ in settings.extra_headers]
        return "\n".join(["SKLLMConfig(", *lines, ")"])


class SKLLMConfig(metaclass=_ReadableSettings):
    """Settings of this process, by static setters and getters as in scikit-llm.

    A setting that was set wins over its environment variable, which wins over the default. No setting is
    ever written into the environment, and ``repr(SKLLMConfig)`` shows no credential.

    Examples
    --------
    >>> SKLLMConfig.set_gguf_max_gpu_layers(-1)
    >>> SKLLMConfig.get_gguf_max_gpu_layers()
    -1
    >>> SKLLMConfig.reset()
    """

    @staticmethod
    @contextmanager
    def _borrowed(settings: Settings | None) -> Iterator[None]:
        """Use the settings of another process, in this thread, for whatever this process has not set itself."""
        token = _brought.set(settings)
        try:
            yield
        finally:
            _brought.reset(token)

    @staticmethod
    def _adopt(settings: Settings | None) -> None:
        """Take over the settings of another process, for whatever this process has not set itself."""
        global _own
        with _setting:
            _own = _joined(_own, settings)

    @staticmethod
    def reset() -> None:
        """Forget everything that was set."""
        global _own
        _own = Settings()

    # --- credentials and endpoints -------------------------------------------------------------------------------

    @staticmethod
    def set_openai_key(key: str) -> None:
        """Set the OpenAI (or Azure, or custom URL) API key.

        Raises
        ------
        ConfigurationError
            If it is empty, or holds what no key can: a line break or other white space, or a character beyond ASCII.
        """
        key = Secret(_text("key", key))  # so that no frame that raises holds its text
        _set("openai_key", checked_key("key", key))

    @staticmethod
    def get_openai_key(*, include_standard_env: bool = True) -> Secret | None:
        """Return the API key, or None. It prints as stars; ``.reveal()`` gives the text.

        Parameters
        ----------
        include_standard_env : bool, default=True
            Whether ``OPENAI_API_KEY`` counts where neither the setting nor ``SKLLM_CONFIG_OPENAI_KEY`` is there.
        """
        names = OPENAI_KEY_ENV if include_standard_env else OPENAI_KEY_ENV[:1]
        value = SKLLMConfig._settings.openai_key or next(filter(None, map(_from_environment, names)), None)
        return Secret(value) if value else None

    @staticmethod
    def set_secret_resolver(function: str | None) -> None:
        """Set the function that workers ask for a credential, so that it never passes through the driver.

        Parameters
        ----------
        function : str or None
            ``package.module:function``, importable on every worker. It is called with the credential's name, such as
            ``"openai_key"``, and returns it as a str, or None where it has none. It is asked after this process's
            settings and before the environment.
        """
        if function is not None and not re.fullmatch(r"[\w.]+:\w+", _text("secret_resolver", function)):
            raise ConfigurationError(
                f"secret_resolver must be written package.module:function; got {function!r}.",
                "For example my_company.vault:get_secret.",
            )
        _set("secret_resolver", function)

    @staticmethod
    def get_secret_resolver() -> str | None:
        """Return the function that workers ask for a credential, or None."""
        return _optional("secret_resolver")

    @staticmethod
    def set_openai_org(key: str) -> None:
        """Set the OpenAI organisation ID."""
        _refuse("org", _fault_in(_text("org", key)))
        _set("openai_org", _text("org", key))

    @staticmethod
    def get_openai_org() -> str | None:
        """Return the OpenAI organisation ID, or None."""
        return _optional("openai_org")

    set_gpt_key = set_openai_key
    get_gpt_key = get_openai_key
    set_gpt_org = set_openai_org
    get_gpt_org = get_openai_org

    @staticmethod
    def set_azure_api_base(base: str) -> None:
        """Set the Azure OpenAI endpoint, such as ``https://NAME.openai.azure.com``."""
        _set("azure_api_base", checked_url("azure_api_base", base))

    @staticmethod
    def get_azure_api_base() -> str | None:
        """Return the Azure OpenAI endpoint, or None."""
        url = _optional("azure_api_base")
        return None if url is None else checked_url("azure_api_base", url)

    @staticmethod
    def set_azure_api_version(ver: str) -> None:
        """Set the Azure OpenAI API version, such as ``2024-10-21``."""
        _set("azure_api_version", _text("azure_api_version", ver))

    @staticmethod
    def get_azure_api_version() -> str:
        """Return the Azure OpenAI API version."""
        return str(_get("azure_api_version"))

    @staticmethod
    def set_google_project(project: str) -> None:
        """Set the Google Cloud project ID for Vertex AI."""
        _set("google_project", _text("google_project", project))

    @staticmethod
    def get_google_project() -> str | None:
        """Return the Google Cloud project ID, or None."""
        return _optional("google_project")

    @staticmethod
    def set_google_location(location: str) -> None:
        """Set the Vertex AI location, such as ``europe-west4``; ``global`` is the default."""
        _set("google_location", _text("google_location", location))

    @staticmethod
    def get_google_location() -> str:
        """Return the Vertex AI location."""
        return str(_get("google_location"))

    @staticmethod
    def set_google_bucket(bucket: str) -> None:
        """Set the Cloud Storage bucket for data sets that Vertex AI tunes on."""
        _set("google_bucket", _text("google_bucket", bucket))

    @staticmethod
    def get_google_bucket() -> str | None:
        """Return the Cloud Storage bucket for data sets, or None."""
        return _optional("google_bucket")

    @staticmethod
    def set_tuning_store(url: str | os.PathLike[str]) -> None:
        """Set where tuning jobs are kept: a folder, ``gs://BUCKET/FOLDER`` or an fsspec URL."""
        _set("tuning_store", _text("tuning_store", os.fspath(url)))

    @staticmethod
    def get_tuning_store() -> str:
        """Return where tuning jobs are kept; ``~/.skllm/tuning`` by default."""
        return str(_get("tuning_store"))

    @staticmethod
    def set_gpt_url(url: str) -> None:
        """Set the base URL that ``model="custom_url::…"`` uses, such as ``http://localhost:11434/v1``."""
        _set("gpt_url", checked_url("gpt_url", url))

    @staticmethod
    def get_gpt_url() -> str | None:
        """Return the custom base URL, or None."""
        url = _optional("gpt_url")
        return None if url is None else checked_url("gpt_url", url)

    @staticmethod
    def get_openai_base_url() -> str | None:
        """Return what ``OPENAI_BASE_URL`` says, or None: where models without a namespace are asked then."""
        url = os.environ.get("OPENAI_BASE_URL")
        return checked_url("OPENAI_BASE_URL", url) if url else None

    @staticmethod
    def set_extra_headers(headers: Mapping[str, str] | None) -> None:
        """Set HTTP headers that every request of the GPT family carries: what a gateway asks for.

        They are sent to OpenAI, Azure OpenAI and custom URLs alike. Their values are kept as keys are: nothing shows
        them, and no file and no pickle holds them. For fields of a request's body there is
        ``request_options={"extra_body": {…}}``.

        Parameters
        ----------
        headers : mapping of str to str, or None
            The headers, in place of all that were set before; None is none.

        Raises
        ------
        ConfigurationError
            If a name or a value is no header, or the client needs it for itself.

        Examples
        --------
        >>> SKLLMConfig.set_extra_headers({"x-portkey-api-key": "pk-1234"})
        >>> SKLLMConfig.get_extra_headers()
        {'x-portkey-api-key': Secret(***)}
        >>> SKLLMConfig.set_extra_headers(None)
        """
        headers = {name: _hidden(value) for name, value in (headers or {}).items()}
        _set("extra_headers", tuple((_header(name), _value(name, value)) for name, value in headers.items()))

    @staticmethod
    def get_extra_headers() -> dict[str, Secret]:
        """Return the HTTP headers that every request of the GPT family carries."""
        return dict(SKLLMConfig._settings.extra_headers)

    @staticmethod
    def reset_gpt_url() -> None:
        """Forget the custom base URL."""
        _set("gpt_url", None)

    # --- GGUF ------------------------------------------------------------------------------------------------------

    @staticmethod
    def set_gguf_download_path(path: str | os.PathLike[str]) -> None:
        """Set the directory for downloaded GGUF files, on every node; default ``~/.skllm/gguf``."""
        _set("gguf_download_path", _text("gguf_download_path", os.fspath(path)))

    @staticmethod
    def get_gguf_download_path() -> str:
        """Return the directory for downloaded GGUF files."""
        return str(Path(_get("gguf_download_path") or "~/.skllm/gguf").expanduser())

    @staticmethod
    def set_gguf_max_gpu_layers(n_layers: int) -> None:
        """Set how many layers go to the GPU: 0 none, -1 all, n > 0 that many. A loaded model is not reloaded."""
        _set("gguf_max_gpu_layers", _gpu_layers(n_layers))

    @staticmethod
    def get_gguf_max_gpu_layers() -> int:
        """Return how many layers go to the GPU."""
        return _gpu_layers(_get("gguf_max_gpu_layers"))

    @staticmethod
    def set_gguf_verbose(verbose: bool) -> None:
        """Set whether llama.cpp's own log is shown."""
        _set("gguf_verbose", _flag("gguf_verbose", verbose))

    @staticmethod
    def get_gguf_verbose() -> bool:
        """Return whether llama.cpp's own log is shown."""
        return _flag("gguf_verbose", _get("gguf_verbose"))

    @staticmethod
    def set_gguf_resources(
        model: str | None = None,
        *,
        min_replicas: int = 1,
        max_replicas: int | None = None,
        num_gpus: float | None = None,
        num_cpus: float | None = None,
        n_ctx: int | None = None,
        keep_alive_s: float | None = None,
        placement_timeout_s: float = 60.0,
    ) -> None:
        """Set how many actors hold a GGUF model and what each takes of the cluster.

        Parameters
        ----------
        model : str or None, default=None
            The name after ``gguf::``; None sets it for all models that have no setting of their own.
        min_replicas : int, default=1
            Actors that must find room; a ``PlacementError`` otherwise.
        max_replicas : int or None, default=None
            Actors that there may be; None means one for each node, or `min_replicas` if that is more. As many are
            started as the cluster has room for, and more when a later call finds room.
        num_gpus : float or None, default=None
            GPUs per actor: a fraction shares a GPU, above 1 splits the model. None means 1 if
            GPU layers are set, else 0.
        num_cpus : float or None, default=None
            CPUs, and as many llama.cpp threads, per actor. None means as many threads as the largest node has CPUs,
            eight at most, and one CPU less than that, which is left for reading and writing Datasets.
        n_ctx : int or None, default=None
            Tokens of llama.cpp's context, of at least 32: the longest prompt with its answer that fits, and what the
            rows decoded together share. Its memory grows with it. None takes a catalogue model's own length, else what
            the model was trained for, 8,192 at most. More than it was trained for is refused when it is loaded.
        keep_alive_s : float or None, default=None
            How long, in seconds, an idle model stays loaded when the driver has ended, so that the cluster's next job
            finds it. All jobs share such a model. None unloads it with the driver.
        placement_timeout_s : float, default=60.0
            How long, in seconds, actors may wait for room. A cluster that starts nodes on demand may need minutes.

        Raises
        ------
        ConfigurationError
            If a number is out of its range.
        """
        resources = GGUFResources(
            min_replicas=_at_least("min_replicas", min_replicas, 1),
            max_replicas=None if max_replicas is None else _at_least("max_replicas", max_replicas, min_replicas),
            num_gpus=None if num_gpus is None else _number("num_gpus", num_gpus),
            num_cpus=None if num_cpus is None else _number("num_cpus", num_cpus),
            n_ctx=None if n_ctx is None else _at_least("n_ctx", n_ctx, 32),
            keep_alive_s=None if keep_alive_s is None else _number("keep_alive_s", keep_alive_s),
            placement_timeout_s=_number("placement_timeout_s", placement_timeout_s),
        )
        if resources.num_gpus is not None and resources.num_gpus > 1 and resources.num_gpus % 1:
            raise ConfigurationError(f"num_gpus={num_gpus}: above 1, Ray takes whole GPUs only.", "Pass 2, not 1.5.")
        name = None if model is None else model.removeprefix("gguf::")
        _set_for("gguf_resources", name, resources)

    @staticmethod
    def get_gguf_resources(model: str | None = None) -> GGUFResources:
        """Return the resources of `model`: its own setting, else the one for all, else the defaults."""
        given = dict(SKLLMConfig._settings.gguf_resources)
        return given.get(model and model.removeprefix("gguf::")) or given.get(None) or GGUFResources()

    # --- limits and looks ------------------------------------------------------------------------------------------

    @staticmethod
    def set_rate_limit(
        model: str,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrency: int | None = None,
    ) -> None:
        """Declare the quota of an API model.

        Parameters
        ----------
        model : str
            The model as it is passed to an estimator, with its namespace.
        requests_per_minute, tokens_per_minute, max_concurrency : int or None, default=None
            The limits, each at least 1; None means not limited.
        """
        limits = {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "max_concurrency": max_concurrency,
        }
        checked = {name: None if value is None else _at_least(name, value, 1) for name, value in limits.items()}
        name = _bare(_text("model", model))
        _set_for("rate_limits", name, RateLimit(**checked))

    @staticmethod
    def get_rate_limit(model: str) -> RateLimit | None:
        """Return the declared quota of `model`, or None."""
        return dict(SKLLMConfig._settings.rate_limits).get(_bare(model))

    @staticmethod
    def set_timeouts(*, connect_s: float = 10.0, request_s: float = 120.0, row_s: float = 600.0) -> None:
        """Set how long API models may take. What is not passed returns to its default.

        A call also ends, with an error that says so, when no row at all was served for `row_s`, or for 30 s where the
        server was never reached.

        Parameters
        ----------
        connect_s : float, default=10
            Seconds to connect.
        request_s : float, default=120
            Seconds for one try of a row, once it is connected. A slow local model may need more.
        row_s : float, default=600
            Seconds for a row with all its tries and the pauses between them, from when the limits first let it through.

        Raises
        ------
        ConfigurationError
            If one is not a number above 0.
        """
        given = {"connect_s": connect_s, "request_s": request_s, "row_s": row_s}
        _set("timeouts", Timeouts(**{name: _seconds(name, value) for name, value in given.items()}))

    @staticmethod
    def get_timeouts() -> Timeouts:
        """Return how long API models may take."""
        return SKLLMConfig._settings.timeouts or Timeouts()

    @staticmethod
    def set_price(
        model: str,
        *,
        input_per_million: float,
        output_per_million: float = 0.0,
        cached_input_per_million: float | None = None,
        as_of: str = "",
    ) -> None:
        """Set what an API model costs; it wins over the library's own table.

        Parameters
        ----------
        model : str
            The model as it is passed to an estimator, with its namespace.
        input_per_million, output_per_million : float
            US dollars per million tokens.
        cached_input_per_million : float or None, default=None
            For input that the provider had cached; None is `input_per_million`.
        as_of : str, default=""
            The day of the price, for your own records.
        """
        cached = cached_input_per_million
        price = Price(
            _number("input_per_million", input_per_million),
            _number("output_per_million", output_per_million),
            None if cached is None else _number("cached_input_per_million", cached),
            as_of,
        )
        _set_for("prices", _bare(_text("model", model)), price)

    @staticmethod
    def get_price(model: str) -> Price | None:
        """Return the price that was set for `model`, or None."""
        return dict(SKLLMConfig._settings.prices).get(_bare(model))

    @staticmethod
    def set_reply_cache(path: str | os.PathLike[str] | None, max_bytes: int = 1_000_000_000) -> None:
        """Set the file in which the answers of API models are kept, so that none is paid for twice.

        Parameters
        ----------
        path : str or path-like or None
            A file that every worker can write: on one machine any, on a cluster one of a shared file system, or each
            node keeps its own. None, the default, keeps nothing. The file holds replies, vectors and hashes, never
            prompts or keys.
        max_bytes : int, default=1_000_000_000
            The largest size of the file, at least 100,000; where it is reached, the oldest answers are removed.
        """
        _set("reply_cache", None if path is None else _path("path", path))
        _set("reply_cache_max_bytes", _at_least("max_bytes", max_bytes, 100_000))

    @staticmethod
    def get_reply_cache() -> str | None:
        """Return the file in which answers are kept, or None."""
        path = _optional("reply_cache")
        return None if path is None else _path("reply_cache", path)

    @staticmethod
    def get_reply_cache_max_bytes() -> int:
        """Return the largest size of the file in which answers are kept."""
        value = _get("reply_cache_max_bytes")
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        return _at_least("reply_cache_max_bytes", number, 100_000)

    @staticmethod
    def set_show_progress(show: bool) -> None:
        """Set whether a progress bar appears, in terminals and notebooks, on calls that take more than 2 s."""
        _set("show_progress", _flag("show_progress", show))

    @staticmethod
    def get_show_progress() -> bool:
        """Return whether a progress bar may appear."""
        return _flag("show_progress", _get("show_progress"))


def _get(name: str) -> Any:
    value = getattr(SKLLMConfig._settings, name)
    if value is None:
        value = os.environ.get(_ENV[name]) or None
    return _DEFAULTS.get(name) if value is None else value


def _optional(name: str) -> str | None:
    value = _get(name)
    return None if value is None else str(value)


def _set(name: str, value: object) -> None:
    global _own
    with _setting:
        _own = replace(_own, **{name: value})  # type: ignore[arg-type]


def _set_for(name: str, model: object, value: object) -> None:
    """Set what a setting is for one model."""
    global _own
    with _setting:
        known = dict(getattr(_own, name))
        _own = replace(_own, **{name: tuple({**known, model: value}.items())})  # type: ignore[arg-type]


def _shown(name: str) -> str:
    value = SKLLMConfig.get_openai_key() if name == "openai_key" else _get(name)
    if value is None:
        return "None"
    source = "set" if getattr(SKLLMConfig._settings, name) is not None else "environment"
    if name in _DEFAULTS and source == "environment" and not os.environ.get(_ENV[name]):
        source = "default"
    hidden = name == "openai_key" or (name in {"gpt_url", "azure_api_base"} and _may_hold_secret(value))
    return f"{'***' if hidden else repr(value)}  ({source})"


def _bare(model: str) -> str:
    return model.removeprefix("openai::").removeprefix("vertex::")


def _header(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_|~-]+", name):
        raise ConfigurationError(f"extra_headers must have names of headers; got {name!r}.")
    if name.lower() in _OWN_HEADERS:
        raise ConfigurationError(f"extra_headers may not hold {name!r}: the client writes it itself.")
    return name


def _hidden(value: Any) -> Any:
    return Secret(value) if isinstance(value, str) and value.strip() else value


def _value(name: str, value: object) -> Secret:
    value = Secret(_text(f"extra_headers[{name!r}]", value))
    _refuse(f"extra_headers[{name!r}]", _fault_in(value.reveal(), spaces=True))
    return value
