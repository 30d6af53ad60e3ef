"""What was set in this process, and what an estimator from another process brought with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any

from skllm_ray.config.secret import Secret
from skllm_ray.config.values import GGUFResources, Price, RateLimit, Timeouts, lasting


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
    confidence: str | None = None


ENV = {
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
    "confidence": "SKLLM_CONFIG_CONFIDENCE",
    "secret_resolver": "SKLLM_CONFIG_SECRET_RESOLVER",
}
DEFAULTS: dict[str, Any] = {
    "azure_api_version": "2024-10-21",
    "google_location": "global",
    "tuning_store": "~/.skllm/tuning",
    "gguf_max_gpu_layers": 0,
    "gguf_verbose": False,
    "show_progress": True,
    "reply_cache_max_bytes": 1_000_000_000,
    "confidence": "auto",
}

OPENAI_KEY_ENV = (ENV["openai_key"], "OPENAI_API_KEY")

_own = Settings()
DEFAULT_NAMESPACES = {"gpt": "openai", "vertex": "vertex"}
"""Whose model a name without a namespace is, by the family of the estimator."""
_setting = threading.Lock()
_brought: ContextVar[Settings | None] = ContextVar("skllm_ray_brought_settings", default=None)
"""The settings that an estimator brought with it from another process, while this thread works for that estimator."""


def current() -> Settings:
    """Return what was set in this process and, while a thread works for an estimator from another one, what it brought.

    What this process has set itself comes first.
    """
    return _joined(_own, _brought.get())


def read(name: str) -> Any:
    """Return a setting: what was set, else its environment variable, else its default."""
    value = getattr(current(), name)
    if value is None:
        value = os.environ.get(ENV[name]) or None
    return DEFAULTS.get(name) if value is None else value


def optional(name: str) -> str | None:
    """Return a setting as a text, or None where there is none."""
    value = read(name)
    return None if value is None else str(value)


def write(name: str, value: object) -> None:
    """Set a setting; None forgets it."""
    global _own
    with _setting:
        _own = replace(_own, **{name: value})  # type: ignore[arg-type]


def write_for(name: str, model: object, value: object) -> None:
    """Set what a setting is for one model."""
    global _own
    with _setting:
        known = dict(getattr(_own, name))
        _own = replace(_own, **{name: tuple({**known, model: value}.items())})  # type: ignore[arg-type]


def forget_all() -> None:
    """Forget everything that was set."""
    global _own
    _own = Settings()


def adopt(settings: Settings | None) -> None:
    """Take over the settings of another process, for whatever this process has not set itself."""
    global _own
    with _setting:
        _own = _joined(_own, settings)


@contextmanager
def borrowed(settings: Settings | None) -> Iterator[None]:
    """Use the settings of another process, in this thread, for whatever this process has not set itself."""
    token = _brought.set(settings)
    try:
        yield
    finally:
        _brought.reset(token)


def bare(model: str) -> str:
    """Return a model's name as settings know it: without the namespace that a name alone stands for."""
    namespace, separator, name = model.partition("::")
    return name if separator and namespace in DEFAULT_NAMESPACES.values() else model


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
