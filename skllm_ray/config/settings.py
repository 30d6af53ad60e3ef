"""Settings of this process: credentials, endpoints, GGUF placement, limits."""

from __future__ import annotations

import os

from skllm_ray.config.checks import _may_hold_secret
from skllm_ray.config.endpoints import EndpointSettings
from skllm_ray.config.gguf import GGUFSettings
from skllm_ray.config.limits import LimitSettings
from skllm_ray.config.process_state import DEFAULTS, ENV, Settings, adopt, borrowed, current, forget_all, read
from skllm_ray.config.values import Timeouts


class _ReadableSettings(type):
    """Gives the class itself a table as its repr."""

    @property
    def _settings(cls) -> Settings:
        """What was set in this process and, while a thread works for an estimator from another one, what it brought."""
        return current()

    def __repr__(cls) -> str:
        lines = [f"  {name} = {_shown(name)}" for name in ENV]
        settings = cls._settings
        lines.append(f"  timeouts = {settings.timeouts or Timeouts()}")
        lines += [f"  rate_limit[{model!r}] = {limit}" for model, limit in settings.rate_limits]
        lines += [f"  price[{model!r}] = {price}" for model, price in settings.prices]
        lines += [f"  gguf_resources[{model or 'all'!r}] = {given}" for model, given in settings.gguf_resources]
        lines += [f"  extra_headers[{name!r}] = ***" for name, _ in settings.extra_headers]
        return "\n".join(["SKLLMConfig(", *lines, ")"])


class SKLLMConfig(EndpointSettings, GGUFSettings, LimitSettings, metaclass=_ReadableSettings):
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

    _borrowed = staticmethod(borrowed)
    _adopt = staticmethod(adopt)

    @staticmethod
    def reset() -> None:
        """Forget everything that was set."""
        forget_all()


def _shown(name: str) -> str:
    value = SKLLMConfig.get_openai_key() if name == "openai_key" else read(name)
    if value is None:
        return "None"
    source = "set" if getattr(current(), name) is not None else "environment"
    if name in DEFAULTS and source == "environment" and not os.environ.get(ENV[name]):
        source = "default"
    hidden = name == "openai_key" or (name in {"gpt_url", "azure_api_base"} and _may_hold_secret(value))
    return f"{'***' if hidden else repr(value)}  ({source})"
